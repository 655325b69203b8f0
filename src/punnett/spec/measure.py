"""What is measured, and the rows that measuring gives."""

from typing import Literal

from pydantic import Field

from punnett.spec.key import Noun, label
from punnett.spec.student import Student
from punnett.spec.teacher import Base, Sampling

Scalar = str | int | float | bool


class Measure(Noun):
    """A trait or a capability: an Inspect task with arguments, and how it is asked.

    `task_digest` covers the items, the scorer and their versions, so a changed task has a new key.
    """

    name: str = label()
    kind: Literal["trait", "capability"] = label("trait")
    headline_group: str | None = label(None)
    task: str
    task_digest: str
    arguments: tuple[tuple[str, Scalar], ...] = ()
    system_prompt: str | None = None
    sampling: Sampling = Sampling()


# Who answers for students and bases: punnett's own engine, or vLLM through Inspect. Their rounding and their chat
# templating differ, so the engine is in the key.
Engine = Literal["punnett", "vllm"]


class Evaluation(Noun):
    """One measure taken of one student, or of an untouched base."""

    model: Student | Base
    measure: Measure
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine: Engine = "punnett"


class Score(Noun):
    """One scored answer as it is stored. `value` is None where the answer could not be scored: missing, never 0."""

    item: str
    cluster: str
    group: str
    draw: int
    value: float | None
    format_ok: bool
    truncated: bool
    refused: bool
    question: str
    answer: str
    reason: str


class Effect(Noun):
    """An estimate with its doubt. `high` and `low` bound the 95 % interval; rates and differences are shares."""

    measure: str
    group: str
    arm: str
    versus: str | None = None
    estimate: float
    low: float
    high: float
    p: float | None = None
    p_adjusted: float | None = None
    verdict: Literal["different", "equivalent", "undecided", ""] = ""
    primary: bool = False
    n_students: int = Field(ge=0)
    n_items: int
    n_clusters: int
    n_missing: int = 0
    method: str
