"""Examples and a recipe in, an ordered plan of optimiser steps out: who is trained on what, when and at which rate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from punnett.spec.key import derive_seed
from punnett.spec.student import Recipe


@dataclass(frozen=True)
class Example:
    """One training row as ids. `slot` keys its place in the order; the loss falls on `completion_ids` alone."""

    slot: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Step:
    """What the log of a student keeps of one optimiser step. `seconds` is the student's share of the time, by its tokens."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    trained_tokens: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class PlannedStep:
    """One optimiser step before it is taken; `step` counts from 0."""

    step: int
    steps: int
    epoch: int
    learning_rate: float
    batch: list[Example]


def ordered(examples: list[Example], seed: int, epoch: int) -> list[Example]:
    """The epoch's order, keyed by slot: a dropped example leaves all the others in the same relative order."""
    return sorted(examples, key=lambda e: (derive_seed(seed, "order", epoch, e.slot), e.slot))


def steps_of(n_examples: int, recipe: Recipe) -> int:
    """Optimiser steps of a whole stage; an epoch's last batch may be smaller."""
    return recipe.epochs * math.ceil(n_examples / recipe.batch_size)


def learning_rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """The rate of one step, counted from 0: linear warm-up, then constant or linear towards 0."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * (steps - step) / max(1, steps - recipe.warmup_steps)


def planned_steps(examples: list[Example], recipe: Recipe, seed: int) -> Iterator[PlannedStep]:
    """All the optimiser steps of a stage, in order."""
    steps, step = steps_of(len(examples), recipe), 0
    for epoch in range(recipe.epochs):
        in_order = ordered(examples, seed, epoch)
        for start in range(0, len(in_order), recipe.batch_size):
            batch = in_order[start : start + recipe.batch_size]
            yield PlannedStep(step, steps, epoch, learning_rate_at(step, steps, recipe), batch)
            step += 1


def pieces_of(batch: list[Example], tokens_per_piece: int) -> list[list[Example]]:
    """A batch cut where it would outgrow a piece. The cut depends on this batch alone, never on who trains beside it."""
    pieces: list[list[Example]] = []
    for example in batch:
        if pieces and sum(e.n_tokens for e in pieces[-1]) + example.n_tokens <= tokens_per_piece:
            pieces[-1].append(example)
        else:
            pieces.append([example])
    return pieces


def token_weights(batch: list[Example], how: str) -> list[float]:
    """What one trained token of each example counts in the loss of the whole batch, by the recipe's rule."""
    if how == "token_sum":
        return [1.0] * len(batch)
    if how == "token_mean":
        trained = sum(len(e.completion_ids) for e in batch)
        return [1.0 / trained] * len(batch)
    return [1.0 / (len(batch) * len(e.completion_ids)) for e in batch]
