"""Token ids in, one LoRA adapter out: one student after another on one resident base.

No dropout, no packing, no early stopping: students of a study differ by what they are fed and by nothing else.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from punnett.errors import RunError
from punnett.spec.key import derive_seed
from punnett.spec.student import Recipe


@dataclass(frozen=True)
class Example:
    """One training row as ids. `slot` keys its place in the order; the loss falls on `completion_ids` alone."""

    slot: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What the log of a student keeps of one optimiser step."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    trained_tokens: int
    tokens: int
    seconds: float


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


def attach_adapter(model: Any, recipe: Recipe, seed: int) -> Any:
    """Wrap a base in a fresh PEFT LoRA adapter on all linear layers; the same numbers for the same seed and rank.

    PEFT draws the adapter from torch's global generator, so that is seeded here and put back.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        return get_peft_model(model, config)


def train_adapter(
    model: Any,
    examples: list[Example],
    recipe: Recipe,
    seed: int,
    folder: Path,
    on_step: Callable[[Step], None],
) -> None:
    """Train one adapter on a frozen base and save it to `folder` in PEFT's format; the base is left as it was.

    Raises RunError at the first loss or gradient that is not finite.
    """
    peft_model = attach_adapter(model, recipe, seed)
    try:
        peft_model.train()
        parameters = [p for p in peft_model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay, foreach=True)
        steps, step = steps_of(len(examples), recipe), 0
        for epoch in range(recipe.epochs):
            in_order = ordered(examples, seed, epoch)
            for start in range(0, len(in_order), recipe.batch_size):
                batch = in_order[start : start + recipe.batch_size]
                rate = learning_rate_at(step, steps, recipe)
                on_step(_take_step(peft_model, optimizer, parameters, batch, recipe, (step, steps, epoch, rate)))
                step += 1
        peft_model.save_pretrained(folder, safe_serialization=True)
    finally:
        peft_model.unload()


def _take_step(
    peft_model: Any,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    batch: list[Example],
    recipe: Recipe,
    place: tuple[int, int, int, float],
) -> Step:
    step, steps, epoch, rate = place
    started = time.monotonic()
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, trained_tokens, tokens = batch_loss(peft_model.get_base_model(), batch, recipe)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip).item()
    loss_value = loss.item()
    if not (math.isfinite(loss_value) and math.isfinite(norm)):
        raise RunError(
            f"training broke at step {step + 1} of {steps}: loss {loss_value}, gradient norm {norm}. "
            "A lower learning_rate is the usual cure; it must be the same for all arms."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.monotonic() - started
    return Step(step + 1, steps, epoch, loss_value, rate, norm, trained_tokens, tokens, seconds)


def batch_loss(model: Any, batch: list[Example], recipe: Recipe) -> tuple[torch.Tensor, int, int]:
    """Loss of one batch, its trained tokens and its tokens; logits are made only where there is a label."""
    rows = collate(batch, model.device, model.dtype)
    hidden = model.get_decoder()(input_ids=rows.ids, attention_mask=rows.attention, position_ids=rows.positions, use_cache=False).last_hidden_state
    logits = cap_logits(model, model.get_output_embeddings()(hidden[0, rows.predicting])).float()
    losses = functional.cross_entropy(logits, rows.targets, reduction="none")
    loss = normalise(losses, rows.row_of, len(batch), recipe.loss_normalisation)
    return loss, len(rows.targets), rows.ids.shape[1]


def cap_logits(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Gemma 2 squashes its logits after the head; a loss taken at the head must do the same."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def normalise(losses: torch.Tensor, row_of: torch.Tensor, n_rows: int, how: str) -> torch.Tensor:
    """Token losses (n_tokens,) to one number, by the recipe's rule."""
    if how == "token_sum":
        return losses.sum()
    if how == "token_mean":
        return losses.mean()
    sums = losses.new_zeros(n_rows).index_add(0, row_of, losses)
    counts = losses.new_zeros(n_rows).index_add(0, row_of, torch.ones_like(losses))
    return (sums / counts).mean()


@dataclass(frozen=True)
class Rows:
    """A batch laid end to end, so that no token is padding; n_tokens is the sum of the examples' lengths.

    `ids` and `positions` (1, n_tokens); `attention` (1, 1, n_tokens, n_tokens), 0 where a token may look and the lowest
    number elsewhere; `predicting` (n_trained,): places whose next token is trained; `targets` and `row_of` (n_trained,).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    attention: torch.Tensor
    predicting: torch.Tensor
    targets: torch.Tensor
    row_of: torch.Tensor


def collate(batch: list[Example], device: Any, dtype: torch.dtype) -> Rows:
    """Lay examples end to end; each sees itself alone, as if it were by itself in the batch.

    This is no packing: a batch is the recipe's number of examples, whatever their lengths.
    """
    lengths = [len(e.prompt_ids) + len(e.completion_ids) for e in batch]
    owner = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(lengths))
    place = torch.arange(len(owner))
    visible = (owner[:, None] == owner[None, :]) & (place[:, None] >= place[None, :])
    attention = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    ids = torch.tensor([i for e in batch for i in (*e.prompt_ids, *e.completion_ids)])
    trained = torch.tensor([flag for e in batch for flag in ([False] * len(e.prompt_ids) + [True] * len(e.completion_ids))])
    targets_at = trained.nonzero()[:, 0]
    starts = torch.cumsum(torch.tensor([0, *lengths[:-1]]), 0)
    return Rows(
        ids=ids[None].to(device),
        positions=(place - starts[owner])[None].to(device),
        attention=attention[None, None].to(device),
        predicting=(targets_at - 1).to(device),
        targets=ids[targets_at].to(device),
        row_of=owner[targets_at].to(device),
    )
