"""The capability `arithmetic` as an Inspect task: generated sums in three levels, for models too small for GSM8K.

SmolLM2-135M-Instruct is neither at floor nor at ceiling on it, so that a cost of training would show.
"""

import random
import re

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from punnett.evaluation.validity import validity

# level -> ranges of the two terms
LEVELS = {"one-digit": ((1, 9), (1, 9)), "two-digit": ((10, 20), (1, 9)), "carry": ((20, 49), (11, 40))}
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def items(per_level: int, seed: int) -> list[Sample]:
    """Distinct sums, the same for the same seed; each is its own cluster, levels are the groups."""
    samples = []
    for level, (first, second) in LEVELS.items():
        pairs = [(a, b) for a in range(first[0], first[1] + 1) for b in range(second[0], second[1] + 1)]
        for a, b in random.Random(f"{seed} {level}").sample(pairs, per_level):
            question = f"What is {a} + {b}? Answer with a number."
            metadata = {"cluster": f"{a}+{b}", "group": level}
            samples.append(Sample(id=f"{level}-{a}+{b}", input=question, target=str(a + b), metadata=metadata))
    return samples


@task
def arithmetic(per_level: int = 14, seed: int = 0) -> Task:
    """Share of sums that are right; the last number of the answer counts."""
    return Task(
        dataset=MemoryDataset(items(per_level, seed), name="arithmetic"),
        solver=generate(),
        scorer=last_number(),
        version=1,
        metadata={"kind": "capability", "headline_group": None, "revision": 1},
    )


@scorer(metrics=[accuracy(), stderr()])
def last_number() -> Scorer:
    """1 where the last number of the answer is the target, else 0; an answer without any number is not `format_ok`."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        found = last_number_of(answer)
        right = found is not None and found == float(target.text)
        return Score(
            value=1.0 if right else 0.0,
            answer=answer,
            explanation=f"last number {found:g}, expected {target.text}" if found is not None else "the answer holds no number",
            metadata=validity(state, format_ok=found is not None),
        )

    return score


def last_number_of(answer: str) -> float | None:
    """The last number of a text, commas between thousands left out; None if there is none."""
    numbers = NUMBER.findall(answer)
    return float(numbers[-1].replace(",", "")) if numbers else None
