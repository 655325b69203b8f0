"""Losses and gradients of pieces that share a pass, against plain formulas."""

import pytest
import torch

from punnett.bases import load_model
from punnett.shared_base.adapter import Adapter
from punnett.shared_base.passes import one_thread
from punnett.shared_base.share import SharedBase
from punnett.training.loss import BatchPiece, add_gradients
from punnett.training.schedule import Example, pieces_of, token_weights
from shared_base.tiny_models import examples, plain_logits, some_adapter, tiny_model

BATCH = examples(5, seed=1, longest=20)


@pytest.fixture(scope="module", params=["Llama", "Gemma2"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def shared(family):
    return SharedBase(tiny_model(family))


def trainable(shared, seed: int = 0, rank: int = 4) -> Adapter:
    adapter = Adapter(shared.sites, rank, 2.0 * rank, "cpu", trained=True)
    adapter.fill(some_adapter(shared, seed, rank).state())
    return adapter


def untrained(shared) -> Adapter:
    """One that adds nothing, so that the losses are the base's own."""
    return Adapter(shared.sites, 4, 8.0, "cpu", trained=True)


def whole(adapter: Adapter, batch: list[Example], how: str = "token_mean") -> BatchPiece:
    return BatchPiece(adapter, batch, token_weights(batch, how))


def token_losses(model, example: Example) -> torch.Tensor:
    """Loss of each trained token by the ordinary model."""
    n_prompt, n = len(example.prompt_ids), len(example.completion_ids)
    log_probabilities = plain_logits(model, (*example.prompt_ids, *example.completion_ids))[n_prompt - 1 : n_prompt + n - 1].log_softmax(-1)
    return -log_probabilities.gather(1, torch.tensor(example.completion_ids)[:, None])[:, 0]


@pytest.mark.parametrize("how", ["token_sum", "token_mean", "example_mean"])
def test_the_loss_of_a_batch_is_that_of_its_examples_one_by_one(family, shared, how):
    losses = [token_losses(tiny_model(family), e) for e in BATCH]
    expected = {
        "token_sum": torch.cat(losses).sum(),
        "token_mean": torch.cat(losses).mean(),
        "example_mean": torch.stack([each.mean() for each in losses]).mean(),
    }
    [loss] = add_gradients(shared, [whole(untrained(shared), BATCH, how)])
    assert loss == pytest.approx(expected[how].item(), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 70])
@pytest.mark.parametrize("how", ["token_sum", "token_mean", "example_mean"])
def test_a_batch_that_is_cut_has_the_loss_and_the_gradient_of_the_whole(shared, how, budget):
    in_one, cut = trainable(shared), trainable(shared)
    [loss] = add_gradients(shared, [whole(in_one, BATCH, how)])
    weight_of = dict(zip([e.slot for e in BATCH], token_weights(BATCH, how), strict=True))
    pieces = pieces_of(BATCH, budget)
    assert len(pieces) > 1
    losses = [add_gradients(shared, [BatchPiece(cut, piece, [weight_of[e.slot] for e in piece])])[0] for piece in pieces]
    assert sum(losses) == pytest.approx(loss, rel=1e-6)
    size = in_one.flat.grad.abs().max().item()
    torch.testing.assert_close(cut.flat.grad / size, in_one.flat.grad / size, atol=1e-6, rtol=0)


def test_the_gradient_is_that_of_the_losses_differences(shared):
    """Along a random direction, in the place where the loss is asked again."""
    adapter = trainable(shared)
    add_gradients(shared, [whole(adapter, BATCH)])
    direction = torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(0))
    slope = (adapter.flat.grad @ direction).item()
    start, losses = adapter.flat.detach().clone(), []
    for sign in (1, -1):
        adapter.flat.data.copy_(start + sign * 1e-3 * direction)
        losses += add_gradients(shared, [whole(adapter, BATCH)])
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_students_in_one_pass_get_the_loss_and_gradient_that_they_have_alone_to_the_bit(shared):
    batches = [BATCH, examples(2, seed=2, longest=8), examples(4, seed=3, longest=30)]
    together, alone = ([trainable(shared, n, rank) for n, rank in enumerate((4, 16, 4))] for _ in range(2))
    with one_thread():
        losses = add_gradients(shared, [whole(adapter, batch) for adapter, batch in zip(together, batches, strict=True)])
        assert losses == [add_gradients(shared, [whole(adapter, batch)])[0] for adapter, batch in zip(alone, batches, strict=True)]
    assert all(torch.equal(ours.flat.grad, own.flat.grad) for ours, own in zip(together, alone, strict=True))


def test_gradients_are_added_to_those_that_are_there(shared):
    adapter = trainable(shared)
    add_gradients(shared, [whole(adapter, BATCH)])
    once = adapter.flat.grad.clone()
    add_gradients(shared, [whole(adapter, BATCH)])
    torch.testing.assert_close(adapter.flat.grad, 2 * once)


def test_the_head_makes_its_logits_in_chunks_that_change_nothing(shared, monkeypatch):
    ours, chunked = trainable(shared), trainable(shared)
    [loss] = add_gradients(shared, [whole(ours, BATCH)])
    monkeypatch.setattr("punnett.training.loss.LABELS_AT_ONCE", 7)
    assert sum(len(e.completion_ids) for e in BATCH) > 3 * 7
    assert add_gradients(shared, [whole(chunked, BATCH)]) == pytest.approx([loss], rel=1e-6)
    size = ours.flat.grad.abs().max().item()
    torch.testing.assert_close(chunked.flat.grad / size, ours.flat.grad / size, atol=1e-6, rtol=0)


@pytest.mark.model
def test_the_loss_of_a_batch_on_the_real_small_model_is_that_of_its_examples_one_by_one(small_base):
    model = load_model(small_base.location, "float32")
    expected = torch.cat([token_losses(model, e) for e in BATCH]).mean().item()
    shared = SharedBase(model)
    assert add_gradients(shared, [whole(untrained(shared), BATCH)]) == pytest.approx([expected], abs=1e-5)
