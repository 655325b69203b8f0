"""Who is trained on what and when: orders that survive a dropped example, rates, cuts, and what a token counts."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punnett.spec.student import Recipe
from punnett.training.schedule import Example, learning_rate_at, ordered, pieces_of, planned_steps, steps_of, token_weights
from shared_base.tiny_models import examples

BATCHES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12).map(
    lambda sizes: [Example(f"slot-{i}", (5,) * n_prompt, (6,) * n_completion) for i, (n_prompt, n_completion) in enumerate(sizes)]
)


@given(st.sets(st.integers(0, 11), max_size=11), st.integers(0, 5))
def test_dropping_examples_leaves_the_others_in_order(dropped, seed):
    rows, gone = examples(12), {f"slot-{i}" for i in dropped}
    for epoch in range(3):
        whole = [e.slot for e in ordered(rows, seed, epoch)]
        assert [e.slot for e in ordered([r for r in rows if r.slot not in gone], seed, epoch)] == [s for s in whole if s not in gone]


def test_the_order_is_that_of_seed_and_epoch_and_not_of_the_rows():
    rows = examples(12)
    assert ordered(rows, 1, 0) == ordered(rows[::-1], 1, 0)
    assert len({tuple(e.slot for e in ordered(rows, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.5]),
        ({"schedule": "constant", "warmup_steps": 2}, [0.5, 1.0, 1.0, 1.0]),
        ({"schedule": "linear", "warmup_steps": 8}, [0.125, 0.25, 0.375, 0.5]),
    ],
)
def test_learning_rates_warm_up_and_then_go_as_they_say(settings, rates):
    recipe = Recipe(learning_rate=1.0, **settings)
    assert [learning_rate_at(step, 4, recipe) for step in range(4)] == pytest.approx(rates)


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 3))
def test_every_epoch_has_every_example_once_in_full_batches_but_the_last(n, batch_size, epochs):
    rows, recipe = examples(n), Recipe(batch_size=batch_size, epochs=epochs)
    planned = list(planned_steps(rows, recipe, 1))
    assert len(planned) == steps_of(n, recipe) == epochs * math.ceil(n / batch_size)
    assert [(p.step, p.steps) for p in planned] == [(step, len(planned)) for step in range(len(planned))]
    assert [p.learning_rate for p in planned] == [learning_rate_at(step, len(planned), recipe) for step in range(len(planned))]
    for epoch in range(epochs):
        batches = [p.batch for p in planned if p.epoch == epoch]
        assert [e for batch in batches for e in batch] == ordered(rows, 1, epoch)
        assert all(len(batch) == batch_size for batch in batches[:-1])


@given(BATCHES, st.integers(1, 80))
def test_a_batch_is_cut_in_its_order_and_only_an_example_alone_outgrows_a_pass(batch, budget):
    pieces = pieces_of(batch, budget)
    assert [e for piece in pieces for e in piece] == batch
    assert all(piece for piece in pieces)
    assert all(len(piece) == 1 or sum(e.n_tokens for e in piece) <= budget for piece in pieces)
    assert all(sum(e.n_tokens for e in piece) + following[0].n_tokens > budget for piece, following in pairwise(pieces))


@given(BATCHES)
def test_loss_normalisations_count_tokens_as_they_say(batch):
    def total_of(how: str) -> list[float]:
        return [weight * len(e.completion_ids) for weight, e in zip(token_weights(batch, how), batch, strict=True)]

    trained = [len(e.completion_ids) for e in batch]
    assert total_of("token_sum") == trained
    assert total_of("token_mean") == pytest.approx([n / sum(trained) for n in trained])
    assert total_of("example_mean") == pytest.approx([1 / len(batch)] * len(batch))
