"""How many students share a pass: as many as speed asks for and memory allows."""

from hypothesis import given
from hypothesis import strategies as st

from punnett.shared_base.share import load_shared
from punnett.training import capacity
from punnett.training.capacity import MEMORY_SHARE, PEAK_OVER_KEPT, TrainingSpeed, fit, training_speed

SPEED = TrainingSpeed({128: 300.0, 384: 390.0, 1024: 400.0}, bytes_per_token=1e6, workers=2)
GIGABYTE = 10**9


def test_the_smallest_pass_that_is_nearly_the_fastest_is_taken():
    assert (SPEED.best_pass, SPEED.best_speed) == (384, 390.0)


def test_short_steps_are_joined_until_a_pass_is_full_on_every_worker():
    assert fit(SPEED, 100, 10**7, 100 * GIGABYTE).students_at_once == 8
    assert fit(SPEED, 5000, 10**7, 100 * GIGABYTE).students_at_once == 2


def test_little_memory_makes_passes_smaller_then_workers_fewer_then_batches_cut():
    sizes = [fit(SPEED, 100, 10**8, int(gigabytes * GIGABYTE)) for gigabytes in (20, 1.5, 0.7, 0.3)]
    assert [s.tokens_per_pass for s in sizes] == sorted((s.tokens_per_pass for s in sizes), reverse=True)
    assert [s.workers for s in sizes] == sorted((s.workers for s in sizes), reverse=True)
    assert sizes[-1].workers == 1
    assert fit(SPEED, 3000, 10**8, GIGABYTE).tokens_per_piece < sizes[0].tokens_per_piece


@given(st.floats(1, 4000), st.integers(10**5, 10**9), st.integers(10**8, 10**12))
def test_what_is_chosen_fits_whenever_anything_does(step_tokens, bytes_per_student, memory_bytes):
    chosen = fit(SPEED, step_tokens, bytes_per_student, memory_bytes)
    assert min(chosen.students_at_once, chosen.workers, chosen.tokens_per_pass, chosen.tokens_per_piece) >= 1
    held = chosen.workers * max(chosen.tokens_per_pass, min(step_tokens, chosen.tokens_per_piece)) * SPEED.bytes_per_token * PEAK_OVER_KEPT
    if chosen.students_at_once > 1:
        assert held + chosen.students_at_once * bytes_per_student <= MEMORY_SHARE * memory_bytes


def test_a_machine_is_measured_once(tiny_base, own_models_folder, monkeypatch):
    first = training_speed(str(tiny_base), "float32", 2)
    assert min(first.tokens_per_second.values()) > 0
    assert first.bytes_per_token > 0
    monkeypatch.setattr(capacity, "measure", lambda *arguments: (_ for _ in ()).throw(AssertionError("measured again")))
    assert training_speed(str(tiny_base), "float32", 2) == first
    load_shared.cache_clear()  # the next test's base may lie elsewhere
