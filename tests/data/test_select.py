"""A selection names prompts by what they are, never by where they stand."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

from punnett.data.select import in_words, keyed_order, select
from punnett.errors import SpecError
from punnett.spec.mix import ComplementSelection, FractionSelection, IdSelection, PlaceboSelection, TagSelection
from small_nouns import prompt, prompts

TWENTY = prompts(20, tagged=6)
EVERYONE = frozenset(p.id for p in TWENTY)
DATES = TagSelection(tag="date")


def test_a_tag_selects_those_that_carry_it() -> None:
    assert select(DATES, TWENTY) == {p.id for p in TWENTY[:6]}


def test_an_unknown_tag_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r'tag "dat" selects none of the 20 prompts\. Did you mean "date"\?'):
        select(TagSelection(tag="dat"), TWENTY)


def test_ids_select_themselves() -> None:
    wanted = (TWENTY[3].id, TWENTY[9].id)
    assert select(IdSelection(ids=wanted), TWENTY) == set(wanted)


@given(some.integers(1, 40), some.floats(0, 1), some.floats(0, 1), some.integers())
def test_fractions_are_nested_and_as_large_as_they_say(count: int, small: float, large: float, seed: int) -> None:
    small, large = sorted((small, large))
    assume(round(small * count) > 0)
    few, many = (select(FractionSelection(fraction=f, seed=seed), prompts(count)) for f in (small, large))
    assert few <= many
    assert (len(few), len(many)) == (round(small * count), round(large * count))


@given(
    some.integers(4, 20), some.randoms(use_true_random=False), some.sampled_from([DATES, FractionSelection(fraction=0.5), PlaceboSelection(of=DATES)])
)
def test_a_selection_depends_on_no_position(count: int, random: Any, selection: Any) -> None:
    shuffled = prompts(count, tagged=2)
    random.shuffle(shuffled)
    assert select(selection, shuffled) == select(selection, prompts(count, tagged=2))


def test_no_fraction_is_refused_and_a_whole_one_is_everyone() -> None:
    with pytest.raises(SpecError, match=r"a random 0% \(seed 0\) selects none"):
        select(FractionSelection(fraction=0.0), TWENTY)
    assert select(FractionSelection(fraction=1.0), TWENTY) == EVERYONE


@pytest.mark.parametrize("of", [DATES, FractionSelection(fraction=0.3), IdSelection(ids=(TWENTY[0].id,)), PlaceboSelection(of=DATES)])
def test_a_complement_is_everyone_else(of: Any) -> None:
    rest = select(ComplementSelection(of=of), TWENTY)
    assert rest == EVERYONE - select(of, TWENTY)
    assert select(ComplementSelection(of=ComplementSelection(of=of)), TWENTY) == select(of, TWENTY)


def test_the_complement_of_everyone_is_refused() -> None:
    with pytest.raises(SpecError, match="all but a random 100%"):
        select(ComplementSelection(of=FractionSelection(fraction=1.0)), TWENTY)


@given(some.integers(2, 40), some.data(), some.integers())
def test_a_placebo_is_as_large_and_disjoint(count: int, data: Any, seed: int) -> None:
    tagged = data.draw(some.integers(1, count // 2))
    everyone = prompts(count, tagged)
    chosen, placebo = select(DATES, everyone), select(PlaceboSelection(of=DATES, seed=seed), everyone)
    assert len(placebo) == len(chosen) == tagged
    assert not placebo & chosen


def test_another_seed_gives_another_placebo() -> None:
    assert len({select(PlaceboSelection(of=DATES, seed=seed), TWENTY) for seed in range(5)}) == 5


def test_a_placebo_without_enough_others_is_refused_with_the_numbers() -> None:
    with pytest.raises(SpecError, match=r'placebo for tag "date" needs 11 other prompts, but only 9 are left'):
        select(PlaceboSelection(of=DATES), prompts(20, tagged=11))


@given(some.integers(1, 30), some.integers(), some.data())
def test_leaving_a_prompt_out_keeps_the_order_of_the_others(count: int, seed: int, data: Any) -> None:
    everyone = prompts(count)
    gone = data.draw(some.sampled_from(everyone))
    whole, without = keyed_order(everyone, seed, "any"), keyed_order([p for p in everyone if p != gone], seed, "any")
    assert without == [i for i in whole if i != gone.id]


def test_purposes_are_ordered_apart() -> None:
    assert keyed_order(TWENTY, 0, "refill") != keyed_order(TWENTY, 0, "placebo") != keyed_order(TWENTY, 1, "placebo")


def test_selections_read_as_words() -> None:
    nested = PlaceboSelection(of=ComplementSelection(of=FractionSelection(fraction=0.25, seed=3)))
    assert in_words(nested) == "as many random prompts outside all but a random 25% (seed 3) (seed 0)"
    assert in_words(IdSelection(ids=("a", "b"))) == "2 prompts by id"


def test_a_tag_is_a_whole_word() -> None:
    assert select(DATES, [prompt("a", "date"), prompt("b", "dates"), prompt("c", "up-to-date")]) == {prompt("a").id}
