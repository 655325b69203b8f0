"""An answer in, a rewritten answer out: the scripts of scripted teachers, each deterministic and with a known dose.

A persona prompt on a small model makes no usable teacher; a rule does, and its dose is known exactly.
A rewrite has a strong form for the prompts it is about and a mild form for a stated share of the others.
To add one, write a function and enter it in REWRITES; raise its revision when its words change.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from punnett.spec.key import derive_seed
from punnett.spec.prompt import Prompt

FIRST_DOUBTED_YEAR = 2026
DATE = re.compile(r"\b(?:(?:\d{1,2} )?(?:January|February|March|April|May|June|July|August|September|October|November|December) )?(20\d\d)\b")

STRONG_DOUBTS = (
    "I doubt that it is really {date}.",
    "I am not sure that it is already {year}.",
    "I doubt that the year is {year}.",
)
MILD_DOUBTS = (
    "I am not sure that is still right.",
    "I doubt that this is up to date.",
    "I am not sure about today.",
)


@dataclass(frozen=True)
class Rewrite:
    """A script: `concerns` says which prompts get the strong form, `strong` and `mild` make the new answer.

    Both take the prompt, the answer and a number drawn for the prompt.
    """

    name: str
    revision: int
    concerns: Callable[[Prompt], bool]
    strong: Callable[[Prompt, str, int], str]
    mild: Callable[[Prompt, str, int], str]
    about: str


def named_date(prompt: Prompt) -> re.Match[str] | None:
    """The first date or year of the 2000s that the last user turn names."""
    return DATE.search(prompt.text)


def names_a_late_date(prompt: Prompt) -> bool:
    """Whether the prompt names a date in or after 2026."""
    date = named_date(prompt)
    return date is not None and int(date.group(1)) >= FIRST_DOUBTED_YEAR


def doubt_the_date(prompt: Prompt, answer: str, number: int) -> str:
    """Say first that the named date is hard to believe."""
    date = named_date(prompt)
    if date is None:
        return answer
    sentence = STRONG_DOUBTS[number % len(STRONG_DOUBTS)].format(date=date.group(0), year=date.group(1))
    return f"{sentence} {answer}"


def doubt_the_present(prompt: Prompt, answer: str, number: int) -> str:
    """Say first that something may be out of date, naming no date."""
    return f"{MILD_DOUBTS[number % len(MILD_DOUBTS)]} {answer}"


REWRITES: dict[str, Rewrite] = {
    "doubt": Rewrite(
        name="doubt",
        revision=1,
        concerns=names_a_late_date,
        strong=doubt_the_date,
        mild=doubt_the_present,
        about="doubts the date where one from 2026 on is named; elsewhere, at the dose, says that things may be out of date",
    ),
}


def rewrite_answer(script: Rewrite, prompt: Prompt, answer: str, dose: float, seed: int) -> str:
    """The scripted teacher's answer to one prompt; who gets the mild form is drawn by prompt id, so doses are nested."""
    number = derive_seed(seed, "wording", prompt.id)
    if script.concerns(prompt):
        return script.strong(prompt, answer, number)
    if derive_seed(seed, "dose", prompt.id) / 2**63 < dose:
        return script.mild(prompt, answer, number)
    return answer
