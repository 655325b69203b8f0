"""Model and requests in, answers out: batched decoding whose random numbers belong to the request, not to the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# Rows times positions of one batch; keeps the cache of a small model within a few hundred MB.
CACHE_TOKENS = 16_384
MAX_ROWS = 96


@dataclass(frozen=True)
class AnswerRequest:
    """One question as ids, and how to answer it. `seed` matters only where temperature is above 0."""

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Ids that were generated (without the stop token) and why they ended: `stop` or `length`."""

    ids: tuple[int, ...]
    finish_reason: str


@dataclass
class _Row:
    """One request while it is being answered."""

    index: int
    request: AnswerRequest
    generator: torch.Generator
    ids: list[int]


def batches(requests: list[AnswerRequest]) -> list[list[int]]:
    """Indices grouped by length, so that little is padded; the same groups for the same requests in any order.

    Grouping depends on nothing but the requests: floating-point rounding depends on a batch's shape,
    so an answer can be made again to the byte only if its batch is.
    """
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].ids), requests[i].ids, requests[i].seed))
    groups: list[list[int]] = []
    for index in order:
        request = requests[index]
        rows = len(groups[-1]) + 1 if groups else 0
        longest = max(r.max_tokens + len(r.ids) for r in (*(requests[i] for i in (groups[-1] if groups else [])), request))
        if groups and rows <= MAX_ROWS and rows * longest <= CACHE_TOKENS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@torch.inference_mode()
def decode(
    model: Any,
    requests: list[AnswerRequest],
    stop_ids: tuple[int, ...],
    text_of: Callable[[list[int]], str],
) -> list[Answer]:
    """Answer every request; answers come in the order of the requests. Raises RunError through the model only."""
    answers: dict[int, Answer] = {}
    for group in batches(requests):
        rows = [_Row(i, requests[i], _generator(model, requests[i].seed), []) for i in group]
        _decode_group(model, rows, set(stop_ids), text_of, answers)
    return [answers[i] for i in range(len(requests))]


def _decode_group(
    model: Any,
    rows: list[_Row],
    stop_ids: set[int],
    text_of: Callable[[list[int]], str],
    answers: dict[int, Answer],
) -> None:
    from transformers import DynamicCache

    device = model.device
    longest = max(len(row.request.ids) for row in rows)
    pad = next(iter(stop_ids))
    inputs = torch.tensor([[pad] * (longest - len(r.request.ids)) + list(r.request.ids) for r in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(r.request.ids)) + [1] * len(r.request.ids) for r in rows], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    while rows:
        output = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = [_choose(logits, row) for logits, row in zip(output.logits[:, -1].float(), rows, strict=True)]
        kept = [i for i, token in enumerate(tokens) if not _ends(rows[i], token, stop_ids, text_of, answers)]
        if not kept:
            return
        if len(kept) < len(rows):  # rows leave when they end; nobody computes their padding
            keep = torch.tensor(kept, device=device)
            cache.batch_select_indices(keep)
            mask, positions = mask[keep], positions[keep]
        rows = [rows[i] for i in kept]
        inputs = torch.tensor([[tokens[i]] for i in kept], device=device)
        mask = torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1)
        positions = positions[:, -1:] + 1


def _ends(row: _Row, token: int, stop_ids: set[int], text_of: Callable[[list[int]], str], answers: dict[int, Answer]) -> bool:
    """Add the token to the row, or end the row and settle its answer."""
    if token in stop_ids:
        answers[row.index] = Answer(tuple(row.ids), "stop")
        return True
    row.ids.append(token)
    if row.request.stop_strings:
        text = text_of(row.ids)
        if any(stop in text for stop in row.request.stop_strings):
            answers[row.index] = Answer(tuple(row.ids), "stop")
            return True
    if len(row.ids) >= row.request.max_tokens:
        answers[row.index] = Answer(tuple(row.ids), "length")
        return True
    return False


def _generator(model: Any, seed: int) -> torch.Generator:
    # on the CPU everywhere, so that one seed draws the same numbers on every device
    return torch.Generator(device="cpu").manual_seed(seed)


def _choose(logits: torch.Tensor, row: _Row) -> int:
    """The next token of one row; ties go to the lowest id."""
    request = row.request
    if request.temperature == 0.0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.cpu() / request.temperature, dim=-1)
    if request.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered > request.top_p
        probabilities[order[beyond]] = 0.0
    return int(torch.multinomial(probabilities, 1, generator=row.generator))
