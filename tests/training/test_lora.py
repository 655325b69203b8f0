"""Paired training on the real small model: the laws that make two arms comparable."""

import math

import pytest
import torch

from punnett.bases import load_model, weights_fingerprint
from punnett.errors import RunError
from punnett.spec.student import Recipe
from punnett.training.lora import Example, attach_adapter, batch_loss, learning_rate_at, normalise, ordered, steps_of, train_adapter

RECIPE = Recipe(lora_rank=4, learning_rate=1e-3, epochs=1, batch_size=2)


def examples(n: int) -> list[Example]:
    """Small rows of different lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(k: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 4000, (k,), generator=generator).tolist())

    return [Example(f"slot-{i}", draw(5 + i % 3), draw(2 + i % 4)) for i in range(n)]


@pytest.fixture(scope="module")
def model(small_base):
    return load_model(small_base.location, "float32")


@pytest.mark.model
def test_the_loss_of_a_batch_is_that_of_its_examples_one_by_one(model):
    rows = examples(5)
    loss, trained, tokens = batch_loss(model, rows, RECIPE)
    total = 0.0
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        labels = ids.clone()
        labels[0, : len(row.prompt_ids)] = -100
        total += model(input_ids=ids, labels=labels).loss.item() * len(row.completion_ids)
    assert trained == sum(len(r.completion_ids) for r in rows)
    assert tokens == sum(len(r.completion_ids) + len(r.prompt_ids) for r in rows)
    assert math.isclose(loss.item(), total / trained, abs_tol=1e-5)


@pytest.mark.model
def test_training_equals_a_plain_peft_and_adamw_loop(model, tmp_path):
    rows, losses = examples(4), []
    train_adapter(model, rows, RECIPE, 3, tmp_path / "ours", lambda step: losses.append(step.loss))
    peer = attach_adapter(model, RECIPE, 3)
    parameters = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RECIPE.learning_rate, weight_decay=0.0)
    in_order, expected = ordered(rows, 3, 0), []
    for step in range(2):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, 2, RECIPE)
        loss = peer_loss(peer, in_order[2 * step : 2 * step + 2])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    peer.unload()
    assert losses == pytest.approx(expected, abs=1e-5)


def peer_loss(peer, batch):
    """Token-mean loss by transformers itself, on rows padded to the right."""
    longest = max(len(r.prompt_ids) + len(r.completion_ids) for r in batch)
    ids, labels, mask = (torch.full((len(batch), longest), fill) for fill in (0, -100, 0))
    for i, row in enumerate(batch):
        n_prompt, n = len(row.prompt_ids), len(row.prompt_ids) + len(row.completion_ids)
        ids[i, :n] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        labels[i, n_prompt:n] = torch.tensor(row.completion_ids)
        mask[i, :n] = 1
    return peer(input_ids=ids, labels=labels, attention_mask=mask).loss


@pytest.mark.model
def test_a_seed_gives_every_arm_the_same_initial_adapter_and_leaves_the_global_generator_alone(model):
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        peft_model = attach_adapter(model, RECIPE, seed)
        parameters = {n: p.clone() for n, p in peft_model.named_parameters() if p.requires_grad}
        peft_model.unload()
        return parameters

    state, first = torch.random.get_rng_state(), drawn(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    second, other = drawn(1), drawn(2)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.model
def test_the_same_student_is_made_twice_bit_by_bit_and_the_base_stays_as_it_was(model, tmp_path):
    before = weights_fingerprint(model)
    for name in ("a", "b"):
        train_adapter(model, examples(4), RECIPE, 7, tmp_path / name, lambda step: None)
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (tmp_path / "b" / "adapter_model.safetensors").read_bytes()
    assert weights_fingerprint(model) == before


@pytest.mark.model
def test_a_loss_that_is_not_finite_stops_the_student(model, tmp_path):
    with pytest.raises(RunError, match="training broke at step"):
        train_adapter(model, examples(8), Recipe(lora_rank=4, learning_rate=1e30, epochs=8, batch_size=2), 0, tmp_path, lambda s: None)


def test_loss_normalisations_differ_as_they_say():
    losses, row_of = torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 1])
    assert normalise(losses, row_of, 2, "token_sum").item() == 12
    assert normalise(losses, row_of, 2, "token_mean").item() == 4
    assert normalise(losses, row_of, 2, "example_mean").item() == 5


def test_dropping_an_example_leaves_the_others_in_order():
    rows = examples(12)
    for epoch in range(3):
        whole = [e.slot for e in ordered(rows, 1, epoch)]
        part = [e.slot for e in ordered([r for r in rows if r.slot not in ("slot-3", "slot-8")], 1, epoch)]
        assert part == [s for s in whole if s not in ("slot-3", "slot-8")]


def test_schedules_end_where_they_should():
    recipe = Recipe(learning_rate=1.0, schedule="linear", warmup_steps=2)
    rates = [learning_rate_at(step, 10, recipe) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 8)
    assert steps_of(9, Recipe(epochs=2, batch_size=4)) == 6
