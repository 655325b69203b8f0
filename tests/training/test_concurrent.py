"""Students that train at once: each becomes what it becomes alone, to the bit, whatever happens beside it."""

import functools
import threading
from contextlib import closing

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from punnett.bases import load_model, weights_fingerprint
from punnett.errors import RunError
from punnett.shared_base.share import SharedBase
from punnett.spec.student import Recipe
from punnett.training import concurrent
from punnett.training.concurrent import Begun, Finished, Stepped, Together, TrainingJob, train_together
from punnett.training.schedule import steps_of
from shared_base.tiny_models import FAMILIES, bytes_of, examples, job, outcomes, plainly_trained, tiny_model, trained, wide_base

JOBS = {
    student.name: student
    for student in (
        job("short", 7),
        job("wide", 12, lora_rank=16, batch_size=4, longest=40),
        job("tiny", 3, longest=3, batch_size=1),
        job("two epochs", 9, epochs=2, longest=20, weight_decay=0.1, schedule="constant"),
        job("one step", 8, lora_rank=16, seed=3, longest=60, batch_size=8),
        job("other loss", 5, lora_rank=8, longest=80, batch_size=2, loss_normalisation="example_mean"),
    )
}
# Of one layer each: how a sum is rounded is a matter of the shapes of products.
WIDTHS = {
    "as SmolLM2-135M": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    "as Qwen2.5-0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2},
    "no multiple of 32": {"hidden_size": 96, "intermediate_size": 176, "num_attention_heads": 6, "num_key_value_heads": 2},
}


@functools.cache
def alone(name: str):
    """What a student of the wide base becomes by itself, on one core."""
    return trained(wide_base(), [JOBS[name]])[name]


def assert_as_alone(found, names=JOBS):
    assert set(found) == set(names)
    for name, outcome in found.items():
        assert outcome.adapter is not None
        assert outcome == alone(name), f"{name} is another one than alone"


@given(
    st.lists(st.sampled_from(list(JOBS)), min_size=1, unique=True),
    st.builds(Together, st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.sampled_from([60, 300, 4096])),
)
@effort(max_examples=8)
def test_a_student_is_the_same_to_the_bit_in_every_company_place_and_share_of_the_machine(names, together):
    assert_as_alone(outcomes(train_together(wide_base(), [JOBS[name] for name in names], together)), names)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("shape", [*FAMILIES, *WIDTHS])
def test_students_stay_apart_to_the_bit_in_every_family_and_at_the_widths_of_real_models(shape, cores):
    shared = SharedBase(tiny_model(shape) if shape in FAMILIES else tiny_model(num_hidden_layers=1, **WIDTHS[shape]))
    students = [job("a", 2, longest=12), job("b", 4, longest=60, lora_rank=16), job("c", 4, longest=90, batch_size=4)]
    apart = {name: outcome for student in students for name, outcome in trained(shared, [student]).items()}
    differing = [
        (name, [student.name for student in company], workers)
        for company, workers in ((students, 1), (students[::-1], cores), (students[1:2], 1))
        for name, outcome in trained(shared, company, workers=workers, cores=cores).items()
        if outcome != apart[name]
    ]
    assert differing == [], "students that differ from those alone on one core, their company, and the workers"


def test_a_large_batch_of_a_narrow_base_is_the_same_to_the_bit_on_two_cores():
    shared = SharedBase(tiny_model("Gemma3Text", hidden_size=64, intermediate_size=40))
    student = job("large", 17, longest=90, batch_size=17, epochs=2)
    assert sum(e.n_tokens for e in student.examples) > 1024
    assert trained(shared, [student], cores=2) == trained(shared, [student], cores=1)


def test_students_of_other_lengths_end_by_themselves_after_their_own_steps():
    events = list(train_together(wide_base(), list(JOBS.values()), Together(students_at_once=6)))
    for name, student in JOBS.items():
        own = [event for event in events if event.name == name]
        n_steps = steps_of(len(student.examples), student.recipe)
        assert [type(event) for event in own] == [Begun, *[Stepped] * n_steps, Finished]
        assert [(event.step.step, event.step.steps) for event in own[1:-1]] == [(n + 1, n_steps) for n in range(n_steps)]
        assert sum(event.step.tokens for event in own[1:-1]) == student.recipe.epochs * sum(e.n_tokens for e in student.examples)
        trained_tokens = sum(event.step.trained_tokens for event in own[1:-1])
        assert trained_tokens == student.recipe.epochs * sum(len(e.completion_ids) for e in student.examples)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_no_more_students_are_in_training_than_asked_for(at_once):
    running, most = set(), 0
    for event in train_together(wide_base(), list(JOBS.values()), Together(workers=2, students_at_once=at_once)):
        if isinstance(event, Begun):
            running.add(event.name)
        elif not isinstance(event, Stepped):
            running.remove(event.name)
        most = max(most, len(running))
    assert most == at_once


def test_students_share_a_pass_and_no_pass_outgrows_its_tokens(monkeypatch):
    passes, add_gradients = [], concurrent.add_gradients

    def watched(shared, pieces):
        passes.append([piece.n_tokens for piece in pieces])
        return add_gradients(shared, pieces)

    monkeypatch.setattr(concurrent, "add_gradients", watched)
    assert_as_alone(trained(wide_base(), list(JOBS.values()), students_at_once=6, tokens_per_pass=300))
    assert any(len(sizes) > 2 for sizes in passes)
    assert all(len(sizes) == 1 or sum(sizes) <= 300 for sizes in passes)


def test_a_batch_larger_than_a_piece_is_cut_and_trains_nearly_as_the_whole():
    [whole], [cut] = (trained(wide_base(), [JOBS["wide"]], tokens_per_piece=size).values() for size in (2048, 30))
    assert cut.losses == pytest.approx(whole.losses, abs=1e-5)
    assert cut != whole
    beside = trained(wide_base(), list(JOBS.values()), tokens_per_piece=30, students_at_once=6, workers=2)
    assert beside["wide"] == cut


def test_a_student_that_diverges_fails_by_name_and_leaves_the_others_as_they_are():
    broken = job("broken", 12, learning_rate=1e30, schedule="constant")
    found = trained(wide_base(), [*list(JOBS.values())[:3], broken, *list(JOBS.values())[3:]], students_at_once=7)
    failed = found.pop("broken")
    assert failed.adapter is None
    assert isinstance(failed.error, RunError)
    assert "training broke at step" in str(failed.error)
    assert_as_alone(found)


def without_memory(monkeypatch, does_not_fit, error=torch.OutOfMemoryError):
    """Passes that `does_not_fit` is true for run out of memory half way, when some gradients are already added."""
    add_gradients = concurrent.add_gradients

    def starved(shared, pieces):
        losses = add_gradients(shared, pieces)
        if does_not_fit(pieces):
            raise error("no memory left")
        return losses

    monkeypatch.setattr(concurrent, "add_gradients", starved)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_students_that_do_not_fit_together_train_one_by_one_to_the_same_end(monkeypatch, error):
    without_memory(monkeypatch, lambda pieces: len(pieces) > 1, error)
    assert_as_alone(trained(wide_base(), list(JOBS.values()), students_at_once=6))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_student_that_does_not_fit_even_alone_fails_and_no_other_does(monkeypatch, workers):
    hungry = job("hungry", 6, lora_rank=5)
    without_memory(monkeypatch, lambda pieces: any(piece.adapter.rank == 5 for piece in pieces))
    found = trained(wide_base(), [hungry, *JOBS.values()], students_at_once=7, workers=workers)
    assert isinstance(found.pop("hungry").error, torch.OutOfMemoryError)
    assert_as_alone(found)


def test_a_student_without_memory_for_its_optimiser_fails_and_leaves_its_place(monkeypatch):
    fill = concurrent.Adapter.fill

    def starved(adapter, state):
        if adapter.rank == 5:
            raise MemoryError
        fill(adapter, state)

    monkeypatch.setattr(concurrent.Adapter, "fill", starved)
    found = trained(wide_base(), [job("hungry", 6, lora_rank=5), *JOBS.values()], students_at_once=1)
    assert isinstance(found.pop("hungry").error, MemoryError)
    assert_as_alone(found)


@pytest.fixture
def all_threads_end():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("n_events", [1, 5])
@pytest.mark.parametrize("workers", [1, 2])
def test_closing_the_iterator_early_leaves_no_thread(all_threads_end, workers, n_events):
    with closing(train_together(wide_base(), [job(str(n), 40) for n in range(4)], Together(workers=workers))) as events:
        for _ in range(n_events):
            next(events)


def test_an_interruption_in_the_middle_leaves_no_thread(all_threads_end):
    events = train_together(wide_base(), [job(str(n), 40) for n in range(4)], Together(workers=2))
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_breaks_ends_the_training_instead_of_hanging(all_threads_end, monkeypatch, workers):
    monkeypatch.setattr(concurrent, "add_gradients", lambda shared, pieces: pieces.no_such_thing)
    with pytest.raises(RunError, match="worker stopped"):
        trained(wide_base(), list(JOBS.values()), workers=workers)


def test_students_of_one_seed_start_from_one_adapter_and_end_in_the_same_bytes_twice(tmp_path):
    before = weights_fingerprint(wide_base().model)
    for name in ("a", "b"):
        student = TrainingJob(name, examples(4), Recipe(lora_rank=4, batch_size=2), 7)
        trained(wide_base(), [student])[name].adapter.save(tmp_path / name, "tiny")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert weights_fingerprint(wide_base().model) == before


@pytest.mark.model
def test_students_of_the_real_small_model_train_as_plain_peft_does_and_stay_apart_to_the_bit(small_base):
    model = load_model(small_base.location, "float32")
    students = [job("a", 2, learning_rate=1e-3, batch_size=1), job("b", 2, learning_rate=1e-3, lora_rank=16, longest=30, seed=1)]
    peer, expected = plainly_trained(model, students[0])
    peer.unload()
    shared = SharedBase(model)
    apart = {name: outcome for student in students for name, outcome in trained(shared, [student]).items()}
    assert apart["a"].losses == pytest.approx(expected, abs=1e-5)
    assert trained(shared, students, workers=2, cores=2) == apart
