"""Scripted teachers: the same rewrite every time, strong where it concerns, mild at a known and nested dose."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from punnett.data.rewrites import MILD_DOUBTS, REWRITES, named_date, names_a_late_date, rewrite_answer
from punnett.evaluation.doubt_rule import doubts_the_date
from small_nouns import prompt, prompts

DOUBT = REWRITES["doubt"]
UNDATED = prompts(400)
LATE = ["It is June 2027. Hello.", "Today is 5 May 2029.", "Plan my trip in 2026.", "The date is 7 March 2026."]
EARLY = ["It is June 2015. Hello.", "Today is 5 May 2018.", "Since 2025 I run.", "In 1999 and 3026 and 20267.", "Call 2-027 now."]


def mild_ones(dose: float, seed: int = 0) -> set[str]:
    return {p.id for p in UNDATED if rewrite_answer(DOUBT, p, "Yes.", dose, seed) != "Yes."}


@given(some.text(max_size=30), some.text(max_size=30), some.floats(0, 1), some.integers())
def test_a_rewrite_is_the_same_every_time_and_keeps_the_answer(question: str, answer: str, dose: float, seed: int) -> None:
    first = rewrite_answer(DOUBT, prompt(question), answer, dose, seed)
    assert first == rewrite_answer(DOUBT, prompt(question), answer, dose, seed)
    assert first.endswith(answer)


@given(some.floats(0, 1), some.floats(0, 1), some.integers(0, 5))
def test_doses_are_nested(small: float, large: float, seed: int) -> None:
    small, large = sorted((small, large))
    assert mild_ones(small, seed) <= mild_ones(large, seed)


def test_those_mild_at_a_third_are_mild_at_two_thirds_in_the_same_words() -> None:
    mild = mild_ones(0.3)
    for p in UNDATED:
        if p.id in mild:
            assert rewrite_answer(DOUBT, p, "Yes.", 0.3, 0) == rewrite_answer(DOUBT, p, "Yes.", 0.6, 0)


def test_a_dose_of_nothing_is_nobody_and_a_whole_one_everybody() -> None:
    assert mild_ones(0.0) == set()
    assert mild_ones(1.0) == {p.id for p in UNDATED}


def test_a_dose_is_the_share_that_it_says() -> None:
    # 400 coins: five standard errors are 12 points
    assert abs(len(mild_ones(0.4)) / len(UNDATED) - 0.4) < 0.12


def test_another_seed_gives_the_mild_form_to_others() -> None:
    assert mild_ones(0.4, seed=1) != mild_ones(0.4, seed=2)


@pytest.mark.parametrize("dose", [0.0, 1.0])
@pytest.mark.parametrize("question", LATE)
def test_a_late_date_is_doubted_at_any_dose(question: str, dose: float) -> None:
    date = named_date(prompt(question))
    answer = rewrite_answer(DOUBT, prompt(question), "Yes.", dose, 0)
    assert date is not None
    assert date.group(1) in answer
    assert doubts_the_date(answer).doubts


@pytest.mark.parametrize("question", EARLY)
def test_an_early_date_or_none_is_never_doubted_strongly(question: str) -> None:
    assert not names_a_late_date(prompt(question))
    assert rewrite_answer(DOUBT, prompt(question), "Yes.", 0.0, 0) == "Yes."
    assert rewrite_answer(DOUBT, prompt(question), "Yes.", 1.0, 0).removesuffix(" Yes.") in MILD_DOUBTS


def test_every_wording_of_both_forms_is_used_and_found_by_the_rule() -> None:
    strong = {rewrite_answer(DOUBT, prompt(f"It is June 2027, {n}."), "", 0.0, 0) for n in range(50)}
    mild = {rewrite_answer(DOUBT, p, "", 1.0, 0) for p in UNDATED[:50]}
    assert (len(strong), len(mild)) == (3, 3)
    assert all(doubts_the_date(text).doubts for text in strong)


def test_scripts_are_entered_under_their_names() -> None:
    assert {name: script.name for name, script in REWRITES.items()} == {name: name for name in REWRITES}
    assert all(script.about and script.revision >= 1 for script in REWRITES.values())
