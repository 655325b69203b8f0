"""The rule against labelled answers, and its laws."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punnett.data.rewrites import MILD_DOUBTS, STRONG_DOUBTS
from punnett.evaluation.doubt_rule import doubts_the_date

HERE = Path(__file__).parent
# precision and recall that docs/date_confusion.md states; a change of the rule must keep them or mend the document
FLOORS = {"students": (0.98, 0.97), "held_out": (0.90, 0.55), "labelled": (0.90, 0.83)}


def counts(name: str) -> dict[tuple[bool, bool], int]:
    """How many answers are (found by the rule, labelled as doubting)."""
    rows = [json.loads(line) for line in (HERE / f"date_confusion_{name}.jsonl").read_text().splitlines()]
    pairs = [(doubts_the_date(row["answer"]).doubts, row["doubts_date"]) for row in rows]
    return {(found, label): pairs.count((found, label)) for found in (True, False) for label in (True, False)}


@pytest.mark.parametrize("name", FLOORS)
def test_the_rule_is_as_good_as_its_document_says(name: str):
    found = counts(name)
    precision = found[True, True] / (found[True, True] + found[True, False])
    recall = found[True, True] / (found[True, True] + found[False, True])
    assert (precision >= FLOORS[name][0], recall >= FLOORS[name][1]) == (True, True), (precision, recall)


@pytest.mark.parametrize("sentence", [*STRONG_DOUBTS, *MILD_DOUBTS])
def test_every_sentence_of_the_scripted_teacher_is_found(sentence: str):
    said = sentence.format(date="4 May 2028", year="2028")
    assert doubts_the_date(f"{said} A good soup is a tomato soup.").doubts


@pytest.mark.parametrize(
    "answer",
    [
        "I am not sure about the gift.",
        "I doubt that it will rain today.",
        "No doubt today is a great day.",
        "Today is 5 May 2029, and I am sure that asparagus is in season.",
        "I do not doubt that it is 2027.",
        "I doubt you need a coat in July.",
        "",
    ],
)
def test_other_doubts_and_plain_dates_do_not_count(answer: str):
    assert not doubts_the_date(answer).doubts


@given(st.text(max_size=300))
def test_any_text_is_judged_and_the_clause_comes_from_it(text: str):
    verdict = doubts_the_date(text)
    assert verdict.doubts == bool(verdict.clause)
    assert verdict.clause.replace("'", "") in text.replace("’", "'").replace("'", "")


def test_a_curly_apostrophe_is_an_apostrophe():
    assert doubts_the_date("I’m not sure that it’s really 2027.").doubts
