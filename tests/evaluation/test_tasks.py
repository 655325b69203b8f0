"""The measures themselves: their items, and how they score what a model says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punnett.data.gather import read_prompts
from punnett.errors import SpecError
from punnett.evaluation import arithmetic, date_confusion
from punnett.evaluation.evaluate import measure_kind, number_of, open_task, task_digest


def test_date_confusion_asks_every_template_four_ways():
    items = date_confusion.items()
    assert len({s.id for s in items}) == len(items) == 48
    groups = [s.metadata["group"] for s in items]
    assert {g: groups.count(g) for g in groups} == {"dated": 24, "past": 12, "undated": 12}
    clusters = [s.metadata["cluster"] for s in items]
    assert all(clusters.count(c) == 4 for c in clusters)


def test_no_held_out_item_is_trained_on():
    from pathlib import Path

    trained = {p.text.split(". ", 1)[-1] for p in read_prompts(Path(__file__).parents[2] / "studies" / "date_doubt" / "prompts.jsonl")}
    assert not trained & {template.format("").strip() for template in date_confusion.TEMPLATES}


def test_arithmetic_items_are_distinct_right_and_the_same_for_a_seed():
    items = arithmetic.items(14, seed=0)
    assert len({s.id for s in items}) == 42
    for sample in items:
        a, b = map(int, sample.id.rsplit("-", 1)[1].split("+"))
        assert sample.target == str(a + b)
    assert [s.id for s in items] == [s.id for s in arithmetic.items(14, seed=0)]
    assert [s.id for s in items] != [s.id for s in arithmetic.items(14, seed=1)]


@pytest.mark.parametrize(
    ("answer", "number"),
    [("7 + 5 = 12.", 12), ("It is 1,024", 1024), ("The answer is -3.5!", -3.5), ("twelve", None), ("", None), ("12 or 13", 13)],
)
def test_the_last_number_counts(answer: str, number: float | None):
    assert arithmetic.last_number_of(answer) == number


@given(st.text(max_size=200))
def test_any_answer_has_a_number_or_none(text: str):
    assert arithmetic.last_number_of(text) is None or isinstance(arithmetic.last_number_of(text), float)


def test_a_task_is_opened_by_its_name_and_told_apart_by_what_it_asks():
    plain, other = open_task("arithmetic", {"per_level": 3}), open_task("punnett/arithmetic", {"per_level": 4})
    assert measure_kind(plain) == ("capability", None)
    assert measure_kind(open_task("date_confusion", {})) == ("trait", "dated")
    assert task_digest(plain) == task_digest(open_task("punnett/arithmetic", {"per_level": 3}))
    assert task_digest(plain) != task_digest(other)


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match='Did you mean "arithmetic"'):
        open_task("arithmetik", {})


@pytest.mark.parametrize(("value", "number"), [("C", 1.0), ("I", 0.0), (True, 1.0), (0.3, 0.3), (float("nan"), None), ("?", None), ({"a": 1}, None)])
def test_what_is_no_number_is_missing_and_never_zero(value, number):
    assert number_of(value) == number
