"""Keys and values of the sequences that are being answered, row by row, and the attention that reads them.

Rows lie sorted by length, so that rows of about one length are neighbours and are attended to together, each group
at its own width: little is padded, and what a row sees depends on its own length and on nobody else's.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from punnett.shared_base.attention import causal, masked_attention, sequence_attention
from punnett.shared_base.passes import AttentionSettings

# Widths grow in steps of this many positions; finer steps pad less and make more groups.
WIDTH_STEP = 32

Layer = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Opening:
    """Keys and values of an opening that was read before: per layer (1, key heads, n_tokens, width)."""

    layers: dict[int, Layer]
    n_tokens: int


class ReadingAttention:
    """The attention of whole prompts, some of which go on from an opening; keeps their keys and values."""

    def __init__(self, lengths: list[int], openings: list[Opening | None]) -> None:
        self._lengths, self._openings = lengths, openings
        self.kept: dict[int, Layer] = {}

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
        """See Attention; every sequence by itself."""
        self.kept[module.layer_idx] = (key, value)
        rest = query.shape[2] - sum(self._lengths)
        runs = _runs_of_equals(self._lengths, self._openings) + ([(1, rest, None)] if rest else [])
        sizes = [n * length for n, length, _ in runs]
        seen = []
        for (n, length, opening), q, k, v in zip(runs, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True):
            q, k, v = (side.unflatten(2, (n, length))[0].transpose(0, 1) for side in (q, k, v))  # (n, heads, length, width)
            if opening is None:
                attended = sequence_attention(q, k, v, settings)
            else:
                before_k, before_v = (side.expand(n, -1, -1, -1) for side in opening.layers[module.layer_idx])
                mask = causal(length, opening.n_tokens + length, settings.window, q.device)
                attended = masked_attention(q, torch.cat([before_k, k], 2), torch.cat([before_v, v], 2), mask, settings)
            seen.append(attended.transpose(1, 2).flatten(0, 1))
        return torch.cat(seen)[None]

    def opening_of(self, start: int, stop: int) -> Opening:
        """What was kept of a sequence, to go on from."""
        layers = {layer: (k[:, :, start:stop].clone(), v[:, :, start:stop].clone()) for layer, (k, v) in self.kept.items()}
        return Opening(layers, stop - start)


def _runs_of_equals(lengths: list[int], openings: list[Opening | None]) -> list[tuple[int, int, Opening | None]]:
    """Neighbours of one length after one opening: how many, how long, after what."""
    runs: list[tuple[int, int, Opening | None]] = []
    for length, opening in zip(lengths, openings, strict=True):
        if runs and runs[-1][1] == length and runs[-1][2] is opening:
            runs[-1] = (runs[-1][0] + 1, length, opening)
        else:
            runs.append((1, length, opening))
    return runs


@dataclass(frozen=True)
class NewRow:
    """Where the keys and values of a new row come from: tokens `start` to `stop` of a reading, after an opening."""

    reading: ReadingAttention
    start: int
    stop: int
    opening: Opening | None

    @property
    def n_tokens(self) -> int:
        """Positions that are filled."""
        return self.stop - self.start + (self.opening.n_tokens if self.opening else 0)


@dataclass
class RowCache:
    """Per layer keys and values (n_rows, key heads, capacity, width); `lengths` says how far each row is filled, in rising order."""

    layers: dict[int, Layer]
    lengths: list[int]
    _groups: list[tuple[int, int, int]] = field(default_factory=list)
    _masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """Positions that every row has room for."""
        return next(iter(self.layers.values()))[0].shape[2]

    def begin_step(self) -> None:
        """Group the rows by width, and forget the masks of the step before."""
        self._groups, self._masks = [], {}
        for row, length in enumerate(self.lengths):
            width = min(self.capacity, capacity_for(length + 1))
            if self._groups and self._groups[-1][2] == width:
                self._groups[-1] = (self._groups[-1][0], row + 1, width)
            else:
                self._groups.append((row, row + 1, width))

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
        """One new token a row: query (1, heads, n_rows, width) to (1, n_rows, heads, width); its key and value are written down."""
        keys, values = self.layers[module.layer_idx]
        n = len(self.lengths)
        n_filling = query.shape[2] - n
        rows, places = torch.arange(n, device=key.device), torch.tensor(self.lengths, device=key.device)
        keys[rows, :, places] = key[0, :, :n].transpose(0, 1)
        values[rows, :, places] = value[0, :, :n].transpose(0, 1)
        shared_by = query.shape[1] // key.shape[1]
        # queries that share a key head become its several queries: (n_rows, key heads, queries, width)
        asked = query[0, :, :n].transpose(0, 1).reshape(n, key.shape[1], shared_by, -1)
        seen = [
            masked_attention(asked[a:b], keys[a:b, :, :width], values[a:b, :, :width], self._mask(i, settings.window), settings)
            for i, (a, b, width) in enumerate(self._groups)
        ]
        attended = torch.cat(seen).reshape(1, n, query.shape[1], -1)
        return torch.nn.functional.pad(attended, (0, 0, 0, 0, 0, n_filling)) if n_filling else attended

    def _mask(self, group: int, window: int | None) -> torch.Tensor:
        if (group, window) not in self._masks:
            start, stop, width = self._groups[group]
            device = next(iter(self.layers.values()))[0].device
            last = torch.tensor(self.lengths[start:stop], device=device)[:, None]
            place = torch.arange(width, device=device)[None, :]
            seen = place <= last
            if window is not None:
                seen &= last - place < window
            self._masks[group, window] = seen[:, None, None, :]
        return self._masks[group, window]


def with_new_rows(old: RowCache | None, kept: list[int], new: list[NewRow], capacity: int) -> RowCache:
    """A cache of the rows `kept` of the old one and of new ones, all in rising order of length; see `order_of`."""
    order = order_of(old, kept, new)
    place = {index: row for row, index in enumerate(order)}
    lengths = [*(old.lengths[row] for row in kept if old), *(row.n_tokens for row in new)]
    layers = {}
    for layer in new[0].reading.kept:
        sides = []
        for side in (0, 1):
            like = new[0].reading.kept[layer][side]
            whole = like.new_zeros((len(order), like.shape[1], capacity, like.shape[3]))
            if old and kept:
                width = min(capacity, old.capacity)
                whole[[place[i] for i in range(len(kept))], :, :width] = old.layers[layer][side][kept, :, :width]
            for index, row in enumerate(new, start=len(kept)):
                start = row.opening.n_tokens if row.opening else 0
                if row.opening:
                    whole[place[index], :, :start] = row.opening.layers[layer][side][0]
                whole[place[index], :, start : row.n_tokens] = row.reading.kept[layer][side][0, :, row.start : row.stop]
            sides.append(whole)
        layers[layer] = (sides[0], sides[1])
    return RowCache(layers, [lengths[index] for index in order])


def order_of(old: RowCache | None, kept: list[int], new: list[NewRow]) -> list[int]:
    """Which of the kept rows (0, 1, ...) and the new ones after them stands first, second and so on: by length."""
    lengths = [*(old.lengths[row] for row in kept if old), *(row.n_tokens for row in new)]
    return sorted(range(len(lengths)), key=lambda index: lengths[index])


def chosen_rows(cache: RowCache, rows: list[int]) -> RowCache:
    """A cache of some rows, in the given order."""
    at = torch.tensor(rows, device=next(iter(cache.layers.values()))[0].device)
    layers = {layer: (keys.index_select(0, at), values.index_select(0, at)) for layer, (keys, values) in cache.layers.items()}
    return RowCache(layers, [cache.lengths[row] for row in rows])


def capacity_for(length: int) -> int:
    """Positions that a sequence of `length` is given: so many, rounded up to whole steps."""
    return -(-length // WIDTH_STEP) * WIDTH_STEP
