"""Tokens of many students in, the base's product and each student's own adapter's out.

Training loops over the students, so that every product with an adapter has a shape that depends on that student
alone. Reading prompts does the same. Writing answers, where a student has but a few rows, stacks the adapters and
takes one batched product for all of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from punnett.shared_base.adapter import Adapter
from punnett.shared_base.passes import FEWEST_TOKENS, current_pass, one_thread

# Ranks are filled up to blocks of this size, so that students of other ranks seldom change the shape of a product.
RANK_BLOCK = 16


class SharedLinear(nn.Linear):
    """A linear layer of the base that asks the running pass whose adapters are at work; elsewhere an ordinary one."""

    site: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., n_in) to (..., n_out)."""
        flat_pass = current_pass()
        if flat_pass is None or flat_pass.adapters is None:
            return functional.linear(input, self.weight, self.bias)
        return flat_pass.adapters.linear(self.site, input, self.weight, self.bias)


@dataclass(frozen=True)
class Piece:
    """A student's tokens in a pass: from `start` up to `stop`."""

    adapter: Adapter
    start: int
    stop: int


class TrainedAdapters:
    """Adapters that learn from a pass: gradients are added to each adapter's own, never to another's."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        # the embedding is frozen, so the first layers' inputs ask for no gradient; this makes autograd come by
        self._hook = torch.ones((), requires_grad=True)

    def linear(self, site: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See Adapters."""
        return _AdaptedLinear.apply(x, self._hook, weight, bias, site, self)  # type: ignore[no-untyped-call]


class _AdaptedLinear(torch.autograd.Function):
    """y = x W' + b + scale (x A') B per student, as LoRA has it (Hu et al. 2021, arXiv 2106.09685).

    Keeps x and x A' for the way back, and adds an adapter's gradients straight to their place in its flat vector.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, hook: torch.Tensor, weight: torch.Tensor, bias: Any, site: int, adapters: TrainedAdapters) -> torch.Tensor:
        y = functional.linear(x, weight, bias)
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        narrow = []
        with one_thread():
            for piece in adapters.pieces:
                a, b = piece.adapter.weights(site)
                rows = slice(piece.start, piece.stop)
                inner = flat_x[rows].to(a.dtype) @ a.t()
                _add_product(flat_y[rows], inner, b, piece.adapter.scale)
                narrow.append(inner)
        ctx.save_for_backward(x, weight, *narrow)
        ctx.site, ctx.adapters = site, adapters
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, *narrow = ctx.saved_tensors
        flat_x, flat_dy = x.view(-1, x.shape[-1]), gradients[0].reshape(-1, gradients[0].shape[-1])
        dx = flat_dy @ weight if ctx.needs_input_grad[0] else None
        with one_thread():
            for piece, inner in zip(ctx.adapters.pieces, narrow, strict=True):
                a, b = piece.adapter.weights(ctx.site)
                gradient_a, gradient_b = piece.adapter.gradients(ctx.site)
                rows, scale = slice(piece.start, piece.stop), piece.adapter.scale
                dy = flat_dy[rows].to(a.dtype)
                gradient_b.addmm_(inner.t(), dy, alpha=scale)
                d_inner = (dy @ b.t()).mul_(scale)
                gradient_a.addmm_(d_inner.t(), flat_x[rows].to(a.dtype))
                if dx is not None:
                    _add_product(dx[rows], d_inner, a, 1.0)
        return (None if dx is None else dx.view(x.shape)), None, None, None, None, None


def _add_product(place: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """place += scale * left @ right, in the finer precision of the two sides."""
    if place.dtype == left.dtype:
        place.addmm_(left, right, alpha=scale)
    else:
        place.copy_(torch.addmm(place.to(left.dtype), left, right, alpha=scale))


class ReadingAdapters:
    """Adapters that only answer, over whole prompts: each student's tokens lie together, in `pieces`."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces

    def linear(self, site: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See Adapters."""
        y = functional.linear(x, weight, bias)
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for piece in self._pieces:
            a, b = piece.adapter.weights(site)
            place = slice(piece.start, piece.stop)
            n = piece.stop - piece.start
            filling = (0, 0, 0, max(0, FEWEST_TOKENS - n))
            rows, sums = functional.pad(flat_x[place], filling).to(a.dtype), functional.pad(flat_y[place], filling)
            _add_product(sums, rows @ a.t(), b, piece.adapter.scale)
            flat_y[place] = sums[:n]
        return y


class StackedAdapters:
    """Adapters that only answer, one token a row: `owner_of_row` names the adapter of each row, or -1 for the base alone.

    Every student gets as many places as the one with the most rows, so that all adapters are one batched product.
    """

    def __init__(self, stack: "AdapterStack", owner_of_row: list[int]) -> None:
        self._stack = stack
        rows_of: list[list[int]] = [[] for _ in stack.scales]
        for row, owner in enumerate(owner_of_row):
            if owner >= 0:
                rows_of[owner].append(row)
        n_places = max(FEWEST_TOKENS, *map(len, rows_of))
        # an empty place computes row 0 and is never read
        self._row_at = torch.tensor([[*rows, *[0] * (n_places - len(rows))] for rows in rows_of], device=stack.device)
        place_of = {row: owner * n_places + place for owner, rows in enumerate(rows_of) for place, row in enumerate(rows)}
        self._owned = torch.tensor(sorted(place_of), device=stack.device)
        self._place_of = torch.tensor([place_of[row] for row in sorted(place_of)], device=stack.device)

    def linear(self, site: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See Adapters."""
        y = functional.linear(x, weight, bias)
        a, b = self._stack.sites[site]
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        placed = flat_x.index_select(0, self._row_at.view(-1)).view(*self._row_at.shape, -1).to(a.dtype)
        added = torch.bmm(torch.bmm(placed, a).mul_(self._stack.scales), b).view(-1, b.shape[-1])
        flat_y.index_add_(0, self._owned, added.index_select(0, self._place_of).to(y.dtype))
        return y


class AdapterStack:
    """The weights of several adapters side by side: for every site A (n, n_in, block) and B (n, block, n_out)."""

    def __init__(self, adapters: list[Adapter], device: Any) -> None:
        self.device = device
        self.scales = torch.tensor([adapter.scale for adapter in adapters], device=device)[:, None, None]
        self._block = -(-max(adapter.rank for adapter in adapters) // RANK_BLOCK) * RANK_BLOCK
        self.sites = [self._side_by_side(adapters, site) for site in range(len(adapters[0].sites))]

    def _side_by_side(self, adapters: list[Adapter], site: int) -> tuple[torch.Tensor, torch.Tensor]:
        sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for adapter in adapters:
            for side, weight in zip(sides, adapter.weights(site), strict=True):
                side.append(functional.pad(weight, (0, 0, 0, self._block - adapter.rank)))
        return torch.stack(sides[0]).transpose(1, 2), torch.stack(sides[1])
