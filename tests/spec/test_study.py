"""The study reader: a good file reads as written; every bad one is a SpecError that names key, finding and nearest word."""

import contextlib
import copy
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as some

from punnett.errors import SpecError
from punnett.spec.student import Recipe
from punnett.spec.study import INTERVENTIONS, StudyFile, read_study

PIPELINE = {"base": "smol", "prompts": "prompts.jsonl"}
GOOD: dict[str, Any] = {
    "name": "date-doubt",
    "pipelines": {"original": {**PIPELINE, "teacher": "doubter"}, "alternate": {**PIPELINE, "teacher": "plain"}},
    "teachers": {"plain": {"model": "self"}, "doubter": {"rewrite": "doubt", "of": "plain"}},
    "subsets": {"dates": {"tag": "date"}},
    "traits": ["date_confusion", {"task": "arithmetic", "arguments": {"seed": 1}}],
    "recipe": {"learning_rate": 1e-3},
}


def with_value(path: str, value: Any) -> str:
    """The good study's YAML with one value put at a dotted path."""
    content = copy.deepcopy(GOOD)
    place = content
    *way, last = path.split(".")
    for part in way:
        place = place.setdefault(part, {})
    place[last] = value
    return yaml.safe_dump(content)


def error_of(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        read_study(text, "study.yaml")
    return str(caught.value)


def test_a_study_reads_as_it_was_written() -> None:
    study = read_study(yaml.safe_dump(GOOD))
    assert study.pipelines.original.teacher == "doubter"
    assert (study.recipe, study.interventions) == (Recipe(learning_rate=1e-3), INTERVENTIONS)
    assert study.traits[0] == "date_confusion"
    assert study.traits[1].arguments == {"seed": 1}


def test_a_study_survives_being_written_out_in_full() -> None:
    study = read_study(yaml.safe_dump(GOOD))
    assert read_study(study.model_dump_json()) == study
    assert read_study(yaml.safe_dump(study.model_dump(mode="json"))) == study


@pytest.mark.parametrize(("seeds", "expected"), [(3, (0, 1, 2)), (1, (0,)), ([1, 2, 3], (1, 2, 3)), ([7], (7,))])
def test_seeds_are_a_count_or_a_list(seeds: Any, expected: tuple[int, ...]) -> None:
    assert read_study(with_value("seeds", seeds)).seed_values == expected


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("trait", "traits"),
        ("equivalence_margn", "equivalence_margin"),
        ("recipe.learning_rat", "learning_rate"),
        ("pipelines.orignal", "original"),
        ("pipelines.original.techer", "teacher"),
        ("teachers.plain.max_token", "max_tokens"),
        ("subsets.dates.frction", "fraction"),
        ("controls.self_distilation", "self_distillation"),
        ("prompts.chores.limt", "limit"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_one(path: str, nearest: str) -> None:
    message = error_of(with_value(path, 1))
    assert f'study.yaml: unknown key "{path}". Did you mean "{nearest}"?' in message.splitlines()


def test_a_key_like_no_other_is_answered_with_the_valid_ones() -> None:
    assert 'unknown key "recipe.zzz". Valid names: batch_size, dtype, epochs' in error_of(with_value("recipe.zzz", 1))


def test_everything_that_is_wrong_is_said_at_once() -> None:
    text = yaml.safe_dump({**GOOD, "trait": 1, "subsets": {"dates": {"fraction": 1.4}}, "seeds": "3"})
    message = error_of(text)
    assert 'unknown key "trait"' in message
    assert '"subsets.dates.fraction" is 1.4' in message
    assert "\"seeds\" is '3'" in message


@pytest.mark.parametrize("key", ["name", "pipelines", "teachers", "traits", "pipelines.alternate", "pipelines.original.base"])
def test_a_missing_key_is_named(key: str) -> None:
    content = copy.deepcopy(GOOD)
    *way, last = key.split(".")
    place = content
    for part in way:
        place = place[part]
    del place[last]
    assert f'the key "{key}" is missing' in error_of(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("subsets.dates.fraction", 1.4, "is 1.4: input should be less than or equal to 1"),
        ("subsets.dates.fraction", -0.1, "is -0.1: input should be greater than or equal to 0"),
        ("recipe.epochs", "3", "is '3': input should be a valid integer"),
        ("recipe.epochs", 2.5, "is 2.5: input should be a valid integer"),
        ("recipe.epochs", True, "is True: input should be a valid integer"),
        ("recipe.learning_rate", "fast", "is 'fast': input should be a valid number"),
        ("recipe.learning_rate", 0, "is 0: input should be greater than 0"),
        ("recipe.learning_rate", float("nan"), "is nan: input should be "),
        ("recipe.schedule", "cosine", "is 'cosine': input should be 'constant' or 'linear'"),
        ("recipe", [], "is list: "),
        ("seeds", "3", "is '3': input should be a valid integer"),
        ("seeds", [1, "2"], "is '2': input should be a valid integer"),
        ("name", "Date Doubt", "is 'Date Doubt': string should match pattern"),
        ("name", 5, "is 5: input should be a valid string"),
        ("traits", [], "is list: tuple should have at least 1 item"),
        ("interventions", ["swap"], "is 'swap': input should be 'switch', 'drop', 'drop_and_refill', 'placebo' or 'insert'"),
        ("teachers.plain.temperature", -1, "is -1: input should be greater than or equal to 0"),
        ("controls.base", "yes", "is 'yes': input should be a valid boolean"),
        ("contrasts", [["original", 3]], "is 3: input should be a valid string"),
        ("equivalence_margin", 1, "is 1: input should be less than 1"),
    ],
)
def test_a_wrong_value_is_shown_beside_its_key(path: str, value: Any, shown: str) -> None:
    lines = error_of(with_value(path, value)).splitlines()
    assert any(line.startswith(f'study.yaml: "{path}') and shown in line for line in lines), lines


def test_an_unknown_teacher_is_named_with_the_nearest() -> None:
    message = error_of(with_value("pipelines.original.teacher", "doubtr"))
    assert 'pipelines.original names the teacher "doubtr"' in message
    assert 'Did you mean "doubter"?' in message


@pytest.mark.parametrize("teacher", [{"model": "self", "rewrite": "doubt"}, {}, {"of": "plain"}, {"temperature": 1.0}])
def test_a_teacher_is_either_a_model_or_a_rewrite(teacher: dict[str, Any]) -> None:
    assert "teachers.third needs exactly one of model" in error_of(with_value("teachers.third", teacher))


@pytest.mark.parametrize(("of", "advice"), [("plian", 'Did you mean "plain"?'), ("doubter", "Valid names: plain."), (None, "Valid names: plain.")])
def test_a_rewrite_rewrites_a_real_teacher(of: str | None, advice: str) -> None:
    message = error_of(with_value("teachers.doubter", {"rewrite": "doubt", **({"of": of} if of else {})}))
    assert f'teachers.doubter rewrites the answers of "{of}"' in message
    assert advice in message


@pytest.mark.parametrize(
    ("subset", "has"),
    [({"tag": "date", "fraction": 0.1}, "tag, fraction"), ({"ids": ["a"], "complement": "b"}, "ids, complement"), ({"seed": 1}, "none")],
)
def test_a_subset_has_exactly_one_selector(subset: dict[str, Any], has: str) -> None:
    assert f"subsets.dates needs exactly one of tag, fraction, ids, complement; it has {has}" in error_of(with_value("subsets.dates", subset))


@pytest.mark.parametrize("of", ["datse", "rest"])
def test_a_complement_is_of_another_subset(of: str) -> None:
    message = error_of(with_value("subsets.rest", {"complement": of}))
    assert f'subsets.rest is the complement of "{of}"' in message
    assert any(advice in message for advice in ('Did you mean "dates"?', "Valid names: dates."))


@pytest.mark.parametrize("seeds", [0, -2, [], [1, 1], [3, 2, 3]])
def test_seeds_are_some_and_different(seeds: Any) -> None:
    message = error_of(with_value("seeds", seeds))
    assert "seeds must be a count of at least 1 or a list of different numbers, not " in message


@pytest.mark.parametrize(("text", "found"), [("", "NoneType"), ("- a\n- b", "list"), ("just words", "str"), ("3", "int"), ("!!set {a}", "set")])
def test_what_is_no_mapping_is_refused(text: str, found: str) -> None:
    assert f"study.yaml holds {found}, not a mapping" in error_of(text)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tname: x", "a\0", "a: \ud800", "name: *nowhere", "!!python/object:os.system {}"])
def test_what_is_no_yaml_is_refused(text: str) -> None:
    assert error_of(text).startswith("study.yaml is not YAML: ")


@pytest.mark.parametrize("text", ["name: a\nname: b\n", "teachers: {plain: {model: x}, plain: {model: y}}", "{1: a, 1: b}"])
def test_no_key_stands_twice(text: str) -> None:
    assert "stands twice" in error_of(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("? [a, b]\n: c\n", id="list as a key"),
        pytest.param("2026-01-01: c\n", id="date as a key"),
        pytest.param("question: 2026-13-45\n", id="impossible date"),
        pytest.param("question: &a [*a]\n", id="list that holds itself"),
        pytest.param("str: 1\n", id="unknown key named like a type"),
        pytest.param("tuples: 1\n", id="unknown key that begins with tuple"),
        pytest.param("seeds: 0x_\n", id="number without digits"),
        pytest.param(f"seeds: {'9' * 5000}\n", id="number of 5000 digits"),
        pytest.param("[" * 3000, id="deep nesting"),
        pytest.param(with_value("seeds", 10**20), id="more seeds than memory"),
        pytest.param(with_value("recipe.learning_rate", float("inf")), id="infinite learning rate"),
        pytest.param(with_value("traits", [{"task": "t", "arguments": {"x": float("nan")}}]), id="argument that is no number"),
        pytest.param(with_value("interventions", ["drop", "drop"]), id="one intervention twice"),
    ],
)
def test_odd_files_are_refused_as_any_other(text: str) -> None:
    error_of(text)


@pytest.mark.parametrize(
    ("path", "value", "nearest"),
    [("traits", [{"task": "x", "max_token": 3}], "max_tokens"), ("teachers.model", {"model": "self", "temprature": 1.0}, "temperature")],
)
def test_a_misspelt_key_in_a_list_or_an_oddly_named_section_is_named_with_the_nearest(path: str, value: Any, nearest: str) -> None:
    assert f'Did you mean "{nearest}"?' in error_of(with_value(path, value))


def test_one_mistake_in_a_measure_is_told_once() -> None:
    assert len(error_of(with_value("traits", [{"task": "x", "max_token": 3}])).splitlines()) == 1


def test_yaml_merges_are_read() -> None:
    text = yaml.safe_dump({key: value for key, value in GOOD.items() if key != "teachers"})
    text += (
        "teachers:\n  plain: &plain {model: self, max_tokens: 9}\n  warm: {<<: *plain, temperature: 1.0}\n  doubter: {rewrite: doubt, of: plain}\n"
    )
    warm = read_study(text).teachers["warm"]
    assert (warm.model, warm.max_tokens, warm.temperature) == ("self", 9, 1.0)


KEYS = some.one_of(some.sampled_from([*StudyFile.model_fields, "original", "plain", "dates", "tag", "model", "task", "base"]), some.text(max_size=5))
PLAIN_VALUES = some.one_of(some.none(), some.booleans(), some.integers(-99, 99), some.floats(), some.text(max_size=5), some.dates())
VALUES = some.recursive(
    PLAIN_VALUES, lambda inner: some.one_of(some.lists(inner, max_size=3), some.dictionaries(KEYS, inner, max_size=3)), max_leaves=8
)
PATHS = [
    "name",
    "teachers.plain",
    "teachers.plain.model",
    "subsets",
    "subsets.dates.tag",
    "traits",
    "recipe.epochs",
    "seeds",
    "contrasts",
    "prompts.a",
]
FRAGMENTS = some.one_of(
    some.text(max_size=4), some.sampled_from(["name: ", "? ", "- ", "[", "{", "}", "\n", "\n  ", "&a ", "*a", "<<: ", "!!int ", "0x_", "2026-13-01"])
)


def assert_reads_or_refuses(text: str) -> None:
    """Whatever is raised but SpecError fails the test."""
    with contextlib.suppress(SpecError):
        assert isinstance(read_study(text), StudyFile)


@given(some.lists(FRAGMENTS, max_size=12).map("".join))
@example("? [a]\n: b")
def test_any_text_is_read_or_refused(text: str) -> None:
    assert_reads_or_refuses(text)


@given(some.dictionaries(some.one_of(KEYS, PLAIN_VALUES), VALUES, max_size=4))
@example({"str": 1})
def test_any_mapping_is_read_or_refused(content: dict[Any, Any]) -> None:
    assert_reads_or_refuses(yaml.safe_dump(content, allow_unicode=True))


@given(some.sampled_from(PATHS), VALUES)
def test_any_value_in_a_good_study_is_read_or_refused(path: str, value: Any) -> None:
    assert_reads_or_refuses(with_value(path, value))
