"""Pieces of many students' batches in, gradients in their adapters out: one pass forwards and one backwards for all."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from punnett.shared_base.adapter import Adapter
from punnett.shared_base.attention import SequenceAttention, borders
from punnett.shared_base.linear import Piece, TrainedAdapters
from punnett.shared_base.passes import FEWEST_TOKENS, hidden_states, logit_cap, one_thread
from punnett.shared_base.share import SharedBase
from punnett.training.schedule import Example

# Logits are as wide as the vocabulary, so they are made for so many trained tokens at a time.
LABELS_AT_ONCE = 256


@dataclass(frozen=True)
class BatchPiece:
    """Examples of one student's batch, with what a trained token of each counts in the batch's loss."""

    adapter: Adapter
    examples: list[Example]
    weights: list[float]

    @property
    def n_tokens(self) -> int:
        """Tokens that pass through the model."""
        return sum(e.n_tokens for e in self.examples)


def add_gradients(shared: SharedBase, pieces: list[BatchPiece]) -> list[float]:
    """Add the gradient of each piece's loss to its adapter's; returns each piece's share of its batch's loss.

    Students share no trained weight, so the gradient of the sum of their losses is each one's own gradient.
    """
    examples = [e for piece in pieces for e in piece.examples]
    lengths = [e.n_tokens for e in examples]
    ids = [i for e in examples for i in (*e.prompt_ids, *e.completion_ids)]
    positions = [place for length in lengths for place in range(length)]
    spans = borders([piece.n_tokens for piece in pieces])
    adapters = TrainedAdapters([Piece(p.adapter, *span) for p, span in zip(pieces, spans, strict=True)])
    hidden = hidden_states(shared.model, ids, positions, SequenceAttention(lengths), adapters)
    own = hidden.split([piece.n_tokens for piece in pieces])
    losses = [_piece_loss(shared.model, rows, piece) for piece, rows in zip(pieces, own, strict=True)]
    torch.stack(losses).sum().backward()
    return [loss.item() for loss in losses]


def _piece_loss(model: Any, hidden: torch.Tensor, piece: BatchPiece) -> torch.Tensor:
    """Weighted sum of the token losses of one piece, from its own hidden states (n_tokens, width) alone."""
    predicting: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for (start, _), example, weight in zip(borders([e.n_tokens for e in piece.examples]), piece.examples, piece.weights, strict=True):
        first = start + len(example.prompt_ids) - 1  # the last token of the prompt predicts the first of the completion
        predicting += range(first, first + len(example.completion_ids))
        targets += example.completion_ids
        weights += [weight] * len(example.completion_ids)
    at = torch.tensor(predicting, device=hidden.device)
    aimed, counted = torch.tensor(targets, device=hidden.device), torch.tensor(weights, device=hidden.device)
    losses = _HeadLoss.apply(hidden.index_select(0, at), model.get_output_embeddings(), aimed, logit_cap(model))  # type: ignore[no-untyped-call]
    return (losses * counted).sum()


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy at the frozen head, a chunk of labels at a time: hidden (n, width), targets (n,) to losses (n,).

    The head is not trained, so the gradient of each loss is made on the way there and the logits are not kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Any, targets: torch.Tensor, cap: float | None) -> torch.Tensor:
        losses, gradients = [], []
        for rows, aims in zip(hidden.split(LABELS_AT_ONCE), targets.split(LABELS_AT_ONCE), strict=True):
            n = len(rows)
            filled = functional.pad(rows, (0, 0, 0, max(0, FEWEST_TOKENS - n)))
            logits = head(filled)[:n].float()
            squashed = torch.tanh(logits / cap) if cap else None
            logits = squashed * cap if squashed is not None and cap else logits
            losses.append(functional.cross_entropy(logits, aims, reduction="none"))
            slope = torch.softmax(logits, dim=-1)
            slope[torch.arange(n, device=aims.device), aims] -= 1.0
            if squashed is not None:
                slope *= 1.0 - squashed.square()
            slope = functional.pad(slope, (0, 0, 0, len(filled) - n)).to(rows.dtype)
            with one_thread():
                gradients.append((slope @ head.weight)[:n].float())
        ctx.save_for_backward(torch.cat(gradients))
        ctx.dtype = hidden.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (of_hidden,) = ctx.saved_tensors
        return (of_hidden * gradients[0][:, None]).to(ctx.dtype), None, None, None
