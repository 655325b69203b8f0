"""The cache of the rows that are being answered, against attention written out by hand."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from punnett.serving.rows import WIDTH_STEP, NewRow, Opening, ReadingAttention, RowCache, capacity_for, chosen_rows, order_of, with_new_rows
from punnett.shared_base.passes import AttentionSettings

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
MODULES = [SimpleNamespace(layer_idx=n) for n in (0, 1)]
SETTINGS = st.builds(AttentionSettings, st.just(0.4), st.sampled_from([None, 2.0]), st.sampled_from([None, 1, 4, 40]))


def drawn(generator: torch.Generator, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of a pass."""
    query, key, value = (torch.randn(1, heads, n_tokens, WIDTH, generator=generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    return query, key, value


def by_hand(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
    """What the last token of a row sees: query (heads, width), keys and values (key heads, n, width), to (heads, width)."""
    seen = settings.window or keys.shape[1]
    keys, values = (side[:, -seen:].repeat_interleave(HEADS // KEY_HEADS, 0) for side in (keys, values))
    scores = (keys @ query[:, :, None])[:, :, 0] * settings.scale
    scores = torch.tanh(scores / settings.cap) * settings.cap if settings.cap else scores
    return (scores.softmax(-1)[:, None] @ values)[:, 0]


class Rows:
    """A cache beside plain lists of what its rows have seen."""

    def __init__(self, settings: AttentionSettings) -> None:
        self.settings, self.generator = settings, torch.Generator().manual_seed(0)
        self.cache: RowCache | None = None
        self.seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # per row and layer, keys and values (key heads, n, width)

    def read(self, lengths: list[int], openings: list[Opening | None], n_filling: int = 0) -> ReadingAttention:
        """Read new sequences, and compare every token with attention by hand."""
        reading = ReadingAttention(lengths, openings)
        for module in MODULES:
            query, key, value = drawn(self.generator, sum(lengths) + n_filling)
            attended = reading.attend(module, query, key, value, self.settings)
            assert attended.shape == (1, sum(lengths) + n_filling, HEADS, WIDTH)
            start = 0
            for length, opening in zip(lengths, openings, strict=True):
                keys, values = self.of_sequence(reading, module.layer_idx, start, length, opening)
                for place in range(length):
                    until = place + 1 + (opening.n_tokens if opening else 0)
                    expected = by_hand(query[0, :, start + place], keys[:, :until], values[:, :until], self.settings)
                    torch.testing.assert_close(attended[0, start + place], expected, atol=1e-5, rtol=0)
                start += length
        return reading

    def of_sequence(self, reading, layer, start, length, opening):
        sides = [side[0, :, start : start + length] for side in reading.kept[layer]]
        return tuple(torch.cat([opening.layers[layer][i][0], side], 1) for i, side in enumerate(sides)) if opening else tuple(sides)

    def join(self, kept: list[int], lengths: list[int], openings: list[Opening | None], growth: int) -> None:
        """Keep some rows and read new ones, in the reading's order."""
        reading = self.read(lengths, openings)
        starts = [sum(lengths[:n]) for n in range(len(lengths))]
        new = [NewRow(reading, start, start + n, opening) for start, n, opening in zip(starts, lengths, openings, strict=True)]
        fresh = [
            [self.of_sequence(reading, module.layer_idx, start, n, opening) for module in MODULES]
            for start, n, opening in zip(starts, lengths, openings, strict=True)
        ]
        every = [self.seen[row] for row in kept] + fresh
        order = order_of(self.cache, kept, new)
        self.cache = with_new_rows(self.cache, kept, new, capacity_for(max(row[0][0].shape[1] for row in every) + growth))
        self.seen = [every[index] for index in order]
        assert self.cache.lengths == sorted(row[0][0].shape[1] for row in every)

    def step(self, n_filling: int = 0, ended: frozenset[int] = frozenset()) -> None:
        """A token for every row, compared with attention by hand; the length of rows that have ended stays."""
        n, cache = len(self.seen), self.cache
        cache.begin_step()
        for module in MODULES:
            query, key, value = drawn(self.generator, n + n_filling)
            attended = cache.attend(module, query, key, value, self.settings)
            assert attended.shape == (1, n + n_filling, HEADS, WIDTH)
            for row in range(n):
                keys, values = (
                    torch.cat([old, new[0, :, row, None]], 1) for old, new in zip(self.seen[row][module.layer_idx], (key, value), strict=True)
                )
                torch.testing.assert_close(attended[0, row], by_hand(query[0, :, row], keys, values, self.settings), atol=1e-5, rtol=0)
                if row not in ended:
                    self.seen[row][module.layer_idx] = (keys, values)
        cache.lengths = [length + (row not in ended) for row, length in enumerate(cache.lengths)]


LENGTHS = st.lists(st.sampled_from([1, 2, 7, 30, 31, 32, 33, 63, 64]), min_size=1, max_size=4)


@given(SETTINGS, st.lists(st.tuples(LENGTHS, st.randoms(use_true_random=False)), min_size=1, max_size=3), st.integers(0, 14))
@effort(max_examples=15)
def test_rows_that_join_grow_and_leave_see_what_is_theirs(settings, arrivals, n_filling):
    rows, opening = Rows(settings), None
    for lengths, random in arrivals:
        kept = [row for row in range(len(rows.seen)) if random.random() < 0.7]
        rows.join(kept, lengths, [opening if random.random() < 0.5 else None for _ in lengths], growth=3)
        for _ in range(3):
            rows.step(n_filling)
        opening = rows.read([9, 5], [None, None]).opening_of(9, 14)


@given(SETTINGS, LENGTHS, st.integers(1, 40))
@effort(max_examples=15)
def test_whole_prompts_see_themselves_and_the_opening_that_they_go_on_from(settings, lengths, n_opening):
    rows = Rows(settings)
    opening = rows.read([n_opening], [None], n_filling=3).opening_of(0, n_opening)
    assert opening.n_tokens == n_opening
    rows.read([length for length in lengths for _ in (0, 1)], [opening, None] * len(lengths))
    rows.read([length for length in lengths for _ in (0, 1)], [opening, opening] * len(lengths), n_filling=2)


def test_a_row_that_has_ended_is_fed_without_growing_and_leaves_with_the_next_choice():
    rows = Rows(AttentionSettings(0.4, None, None))
    rows.join([], [3, 30, 31], [None] * 3, growth=10)
    for _ in range(4):
        rows.step(ended=frozenset({1}))
    assert rows.cache.lengths == [7, 30, 35]
    rows.cache, rows.seen = chosen_rows(rows.cache, [0, 2]), [rows.seen[0], rows.seen[2]]
    for _ in range(4):
        rows.step()
    assert rows.cache.lengths == [11, 39]
    rows.join([1, 0], [20], [None], growth=1)
    assert rows.cache.lengths == [11, 20, 39]
    rows.step()


def test_what_a_row_sees_is_bitwise_the_same_alone_and_beside_longer_ones():
    def last_row_of(lengths: list[int]) -> torch.Tensor:
        """A row of 20 tokens, whose own numbers are the same each time, beside rows of other lengths."""
        parts = [drawn(torch.Generator().manual_seed(length), length) for length in lengths]
        asked = [drawn(torch.Generator().manual_seed(1000 + length), 1) for length in lengths]
        reading = ReadingAttention(lengths, [None] * len(lengths))
        for module in MODULES:
            reading.attend(module, *(torch.cat(sides, 2) for sides in zip(*parts, strict=True)), AttentionSettings(0.4, None, None))
        new = [NewRow(reading, sum(lengths[:n]), sum(lengths[: n + 1]), None) for n in range(len(lengths))]
        cache = with_new_rows(None, [], new, capacity_for(max(lengths) + 4))
        cache.begin_step()
        order = order_of(None, [], new)
        sides = (torch.cat([asked[index][side] for index in order], 2) for side in range(3))
        return cache.attend(MODULES[0], *sides, AttentionSettings(0.4, None, None))[0, order.index(lengths.index(20))]

    alone = last_row_of([20])
    assert all(torch.equal(last_row_of(lengths), alone) for lengths in ([20, 21], [90, 20, 5], [1, 20, 31, 32, 64], [25, 20, 22, 23]))


@pytest.mark.parametrize("length", [1, WIDTH_STEP - 1, WIDTH_STEP, WIDTH_STEP + 1, 1000])
def test_there_is_room_for_a_sequence_in_whole_steps_of_width(length):
    assert length <= capacity_for(length) < length + WIDTH_STEP
    assert capacity_for(length) % WIDTH_STEP == 0
