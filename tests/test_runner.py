"""The whole road on a tiny random model: made once, never twice, the same after any kill, and with holes where something fails."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import punnett
from punnett.bind import load_study
from punnett.spec.arms import arms, evaluations
from punnett.spec.graph import closure
from punnett.spec.measure import Evaluation
from punnett.spec.student import Student
from punnett.store import ROWS, Store, damage

KILLS = 3


def final_scores(study_folder: Path, store: Path) -> dict[str, bytes]:
    """Bytes of every score table of a study, by key."""
    bound, place = load_study(study_folder), Store(store)
    return {place.folder(e).name: (place.open(e) / ROWS).read_bytes() for e in evaluations(bound)}


@pytest.fixture(scope="module")
def finished(tiny_study, tmp_path_factory):
    """A study that ran undisturbed, and its store."""
    store = tmp_path_factory.mktemp("finished") / "store"
    summary = punnett.run(tiny_study, store)
    assert not summary.failed
    return tiny_study, store


def test_a_run_makes_every_request(finished):
    study, store = finished
    assert all(Store(store).has(r) for r in closure(evaluations(load_study(study))))
    assert punnett.status(study, store).missing == 0


def test_a_second_run_makes_nothing_and_calls_no_model(finished, monkeypatch):
    study, store = finished
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}

    def refuse(*arguments, **settings):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("punnett.bases.load_model.__wrapped__", refuse, raising=False)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    assert punnett.run(study, store).nothing_to_do
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before


def test_another_run_elsewhere_gives_the_same_scores_byte_for_byte(finished, tmp_path):
    study, store = finished
    punnett.run(study, tmp_path / "store")
    assert final_scores(study, tmp_path / "store") == final_scores(study, store)


def test_a_run_killed_at_random_moments_ends_in_the_same_store(finished, tmp_path):
    study, store = finished
    place, generator = tmp_path / "store", random.Random(0)
    command = [sys.executable, "-m", "punnett.cli", "run", str(study), "--store", str(place)]
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_entries(place, len(list(Store(place).entries())) + generator.randint(1, 4), process)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        assert all(damage(entry) is None for entry in Store(place).entries())
    assert killed == KILLS
    punnett.run(study, place)
    assert not list((place / "unfinished").glob("*"))
    assert final_scores(study, place) == final_scores(study, store)


def wait_for_entries(place: Path, n_entries: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the store holds so many entries, or the process is done."""
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(Store(place).entries())) < n_entries and time.monotonic() < deadline:
        time.sleep(0.02)


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(finished, tmp_path):
    study, _ = finished
    place = tmp_path / "store"
    command = [sys.executable, "-m", "punnett.cli", "run", str(study), "--store", str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_entries(place, 4, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from there" in errors
    assert "Traceback" not in errors
    assert not list((place / "unfinished").glob("*"))
    assert not punnett.run(study, place).failed


def test_a_damaged_adapter_is_remade_and_never_used(finished, tmp_path):
    import shutil

    study, store = finished
    place = tmp_path / "store"
    shutil.copytree(store, place)
    student = next(s for arm in arms(load_study(study)) for s in arm.students)
    weights = Store(place).folder(student) / "adapter" / "adapter_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.warns(UserWarning, match="damaged"):
        summary = punnett.run(study, place)
    assert summary.made == 1
    assert weights.read_bytes() == original


def test_relabelling_makes_nothing_new(finished, tmp_path):
    import shutil

    study, store = finished
    renamed = tmp_path / "renamed"
    shutil.copytree(study, renamed)
    text = (renamed / "study.yaml").read_text()
    (renamed / "study.yaml").write_text(text.replace("doubter", "sceptic").replace("name: ", "name: other-"))
    assert punnett.status(renamed, store).missing == 0


def test_one_more_seed_makes_only_its_students(finished):
    study, store = finished
    text = (study / "study.yaml").read_text()
    more = study.parent / "more-seeds"
    more.mkdir()
    (more / "prompts.jsonl").write_text((study / "prompts.jsonl").read_text())
    (more / "study.yaml").write_text(text.replace("seeds: [1]", "seeds: [1, 2]"))
    stations = {s.station: s.missing for s in punnett.plan(more, store).stations}
    n_arms = sum(bool(arm.students) for arm in arms(load_study(study)))
    assert (stations["rollouts"], stations["mixes"], stations["students"]) == (0, 0, n_arms)


def test_adapters_open_with_peft(finished):
    from peft import PeftModel

    from punnett.bases import load_model

    study, store = finished
    student = next(r for r in closure(evaluations(load_study(study))) if isinstance(r, Student))
    model = PeftModel.from_pretrained(load_model(student.base.location, "float32"), Store(store).open(student) / "adapter")
    assert any("lora_A" in name for name, _ in model.named_parameters())
    model.unload()


def test_a_student_that_breaks_is_a_hole_and_the_others_go_on(finished, tmp_path):
    study, _ = finished
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "prompts.jsonl").write_text((study / "prompts.jsonl").read_text())
    # a rate at which float32 overflows within the first steps
    (broken / "study.yaml").write_text((study / "study.yaml").read_text().replace("learning_rate: 1.0e-2", "learning_rate: 1.0e+30"))
    store = tmp_path / "store"
    summary = punnett.run(broken, store)
    n_students = sum(len(arm.students) for arm in arms(load_study(broken)))
    assert len(summary.failed) == n_students
    assert summary.skipped == n_students * 2
    assert all("training broke" in reason for reason in summary.failed.values())
    assert sum(s.failed for s in punnett.status(broken, store).stations) == n_students
    assert list((store / "failures").glob("*.log.jsonl")), "the log of a student that broke is kept"
    report = punnett.report(broken, store)
    assert report.n_holes == n_students * 2
    assert "training broke" in report.page.read_text()


def test_show_tells_request_lineage_and_rows(finished):
    study, store = finished
    evaluation = next(e for e in evaluations(load_study(study)) if isinstance(e.model, Student))
    entry = punnett.show(Store(store).folder(evaluation).name[:10], store)
    assert entry["noun"] == "Evaluation"
    assert entry["rows"][0]["item"]
    labels = json.dumps(entry["lineage"])
    assert all(word in labels for word in ("student", "mix", "rollouts", "prompts"))


def test_evaluations_keep_their_transcripts(finished):
    from inspect_ai.log import read_eval_log

    study, store = finished
    evaluation = next(e for e in evaluations(load_study(study)) if isinstance(e, Evaluation))
    log = read_eval_log(str(Store(store).open(evaluation) / "transcripts.eval"))
    assert log.status == "success"
    assert len(log.samples) == len(Store(store).rows(evaluation))
