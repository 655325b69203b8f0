"""One pass over many sequences: each has what it has alone, and nothing of a pass stays behind."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch.nn import functional

from punnett.shared_base.attention import SequenceAttention, borders, causal, sequence_attention
from punnett.shared_base.linear import AdapterStack, Piece, ReadingAdapters, StackedAdapters, TrainedAdapters
from punnett.shared_base.passes import FEWEST_TOKENS, AttentionSettings, cap_logits, current_pass, hidden_states, one_thread
from punnett.shared_base.share import SharedBase
from shared_base.tiny_models import FAMILIES, drawn, flat_logits, plain_logits, some_adapter, tiny_model, wide_base

SEQUENCES = [drawn(n, length) for n, length in enumerate((1, 2, 5, 15, 16, 17, 31, 33, 64, 90))]


@pytest.fixture(autouse=True)
def own_thread():
    """Rounding of the bare products may depend on threads; workers that answer have one each."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def passed(shared, sequences, adapters=None):
    """Hidden states of several sequences in one pass, sequence by sequence."""
    lengths = [len(ids) for ids in sequences]
    ids, positions = [i for each in sequences for i in each], [place for n in lengths for place in range(n)]
    return hidden_states(shared.model, ids, positions, SequenceAttention(lengths), adapters).split(lengths)


@given(st.lists(st.sampled_from(SEQUENCES), min_size=1, max_size=8))
@effort(max_examples=25)
def test_a_sequence_of_a_student_or_the_base_is_bitwise_the_same_in_every_company(company):
    shared = wide_base()
    students = [None, some_adapter(shared, 1, 4), some_adapter(shared, 2, 16)]
    spans = borders([len(ids) for ids in company])
    owners = [students[n % 3] for n in range(len(company))]
    pieces = [Piece(owner, *span) for owner, span in zip(owners, spans, strict=True) if owner]
    with torch.inference_mode():
        together = passed(shared, company, ReadingAdapters(pieces))
        for ids, owner, ours in zip(company, owners, together, strict=True):
            [alone] = passed(shared, [ids], ReadingAdapters([Piece(owner, 0, len(ids))]) if owner else None)
            assert torch.equal(ours, alone)


@pytest.mark.parametrize("rank", [1, 4, 16, 20])
def test_reading_answering_and_training_add_the_same_for_an_adapter(rank):
    shared = wide_base()
    adapter, other = some_adapter(shared, 1, rank), some_adapter(shared, 2, 16)
    site, n = 2, FEWEST_TOKENS + 5
    linear = shared.model.get_submodule(shared.sites[site].name)
    x, (a, b) = torch.randn(1, 2 * n, linear.in_features, generator=torch.Generator().manual_seed(0)), adapter.weights(site)
    expected = functional.linear(x[:, :n], linear.weight) + adapter.scale * (x[:, :n] @ a.t()) @ b
    kinds = [
        ReadingAdapters([Piece(adapter, 0, n), Piece(other, n, 2 * n)]),
        TrainedAdapters([Piece(adapter, 0, n), Piece(other, n, 2 * n)]),
        StackedAdapters(AdapterStack([other, adapter], "cpu"), [1] * n + [0] * n),
    ]
    for kind in kinds:
        torch.testing.assert_close(kind.linear(site, x, linear.weight, None)[:, :n], expected, atol=1e-4, rtol=1e-5)


def test_a_row_without_an_adapter_gets_the_bare_product():
    shared = wide_base()
    linear = shared.model.get_submodule(shared.sites[0].name)
    x = torch.randn(1, 20, linear.in_features, generator=torch.Generator().manual_seed(0))
    stacked = StackedAdapters(AdapterStack([some_adapter(shared, 1)], "cpu"), [-1, 0] * 10)
    ours, bare = stacked.linear(0, x, linear.weight, None), functional.linear(x, linear.weight)
    assert torch.equal(ours[:, ::2], bare[:, ::2])
    assert not torch.isclose(ours[:, 1::2], bare[:, 1::2]).all()


@pytest.mark.parametrize("n", [1, 4, 5, 6, 40])
@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_is_causal_within_its_window_and_capped(n, window, cap):
    generator = torch.Generator().manual_seed(n)
    query, key, value = (torch.randn(1, heads, n, 8, generator=generator) for heads in (4, 2, 2))
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    scores = torch.tanh(scores / cap) * cap if cap else scores
    for q in range(n):
        for k in range(n):
            if k > q or (window is not None and q - k >= window):
                scores[:, :, q, k] = float("-inf")
    expected = scores.softmax(-1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(sequence_attention(query, key, value, AttentionSettings(0.3, cap, window)), expected, atol=1e-5, rtol=0)


def test_the_mask_of_queries_that_go_on_from_earlier_keys_is_the_end_of_the_whole_mask():
    assert torch.equal(causal(3, 10, 4, "cpu"), causal(10, 10, 4, "cpu")[7:])


def test_two_threads_pass_through_one_base_with_an_adapter_each_and_neither_sees_the_others():
    shared, meeting = wide_base(), threading.Barrier(2, timeout=20)
    adapters = [some_adapter(shared, seed) for seed in (1, 2)]
    alone = [flat_logits(shared, SEQUENCES, adapter) for adapter in adapters]

    def many(adapter):
        with one_thread():
            meeting.wait()
            return [flat_logits(shared, SEQUENCES, adapter) for _ in range(5)]

    with ThreadPoolExecutor(2) as threads:
        for found, expected in zip(threads.map(many, adapters), alone, strict=True):
            assert all(torch.equal(a, b) for each in found for a, b in zip(each, expected, strict=True))


def test_a_pass_that_breaks_leaves_the_base_as_it_was():
    shared = SharedBase(tiny_model("Gemma2"))
    before = plain_logits(shared.model, SEQUENCES[6])

    class Broken:
        def attend(self, *_):
            raise MemoryError

    with pytest.raises(MemoryError):
        hidden_states(shared.model, [3] * 20, list(range(20)), Broken(), None)
    assert current_pass() is None
    assert torch.equal(plain_logits(shared.model, SEQUENCES[6]), before)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_logits_are_capped_where_the_family_caps_them(family):
    logits = torch.tensor([-100.0, 0.0, 100.0])
    capped = cap_logits(tiny_model(family), logits)
    limit = FAMILIES[family].get("final_logit_softcapping")
    assert capped.tolist() == ([-limit, 0.0, limit] if limit else logits.tolist())


def test_one_thread_gives_the_threads_back_even_after_an_error():
    def break_down():
        with one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError

    torch.set_num_threads(2)
    with pytest.raises(KeyError):
        break_down()
    assert torch.get_num_threads() == 2
