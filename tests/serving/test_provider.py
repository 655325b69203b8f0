"""Students as Inspect models: any task runs on them by name, from Python and from Inspect's own command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import punnett
from punnett.bind import load_study
from punnett.errors import SpecError, StoreError
from punnett.serving.provider import open_speaker
from punnett.spec.arms import arms
from punnett.spec.key import content_key
from punnett.store import Store


@pytest.fixture(scope="module")
def finished(tiny_study, tmp_path_factory):
    store = tmp_path_factory.mktemp("served") / "store"
    punnett.run(tiny_study, store)
    student = next(s for arm in arms(load_study(tiny_study)) for s in arm.students)
    return store, content_key(student)


def test_inspect_eval_runs_a_task_of_ours_on_a_finished_student(finished, tmp_path):
    from inspect_ai.log import list_eval_logs, read_eval_log

    store, key = finished
    command = [str(Path(sys.executable).parent / "inspect"), "eval", "punnett/arithmetic", "--model", f"punnett/{key[:10]}"]
    result = subprocess.run(
        [*command, "--limit", "3", "--max-tokens", "4", "--display", "plain", "--log-dir", str(tmp_path)],
        env={**os.environ, "PUNNETT_STORE": str(store)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    [info] = list_eval_logs(str(tmp_path))
    log = read_eval_log(info)
    assert log.status == "success"
    assert log.eval.model == f"punnett/{key[:10]}"
    assert len(log.samples) == 3


def test_a_task_from_elsewhere_runs_too_with_prefill_and_several_turns(finished):
    from inspect_ai import Task
    from inspect_ai import eval as inspect_eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    store, key = finished
    chat = [
        ChatMessageUser(content="Hello."),
        ChatMessageAssistant(content="Hi."),
        ChatMessageUser(content="Go on."),
        ChatMessageAssistant(content="I"),
    ]
    task = Task(dataset=[Sample(input=chat, target="x", id=str(i)) for i in range(3)], solver=generate(), scorer=includes())
    model = get_model(f"punnett/{key}", store=str(store), memoize=False)
    [log] = inspect_eval(task, model=model, display="none", max_tokens=4, log_dir=str(store.parent / "logs"))
    assert log.status == "success"
    assert all(sample.output.usage.output_tokens <= 4 for sample in log.samples)


def test_a_student_differs_from_its_base_and_the_base_is_bare_again_afterwards(finished, tiny_base):
    from punnett.serving.decode import AnswerRequest
    from punnett.serving.engine import Speaker

    store, key = finished
    student = open_speaker(key, Store(store), None, "float32")
    base = Speaker(str(tiny_base), "float32")
    requests = [AnswerRequest((5, 6, 7, 8 + i), 12) for i in range(4)]
    before = base.answer(requests)
    assert student.answer(requests) != before
    assert base.answer(requests) == before


def test_unknown_names_are_refused(finished):
    store, _ = finished
    with pytest.raises(StoreError, match="no entry"):
        open_speaker("0123456789ab", Store(store), None, "float32")
    with pytest.raises(SpecError, match="is not there"):
        open_speaker("no-such-base", Store(store), None, "float32")


def test_only_students_answer(finished):
    store, _ = finished
    mix = next(Store(store).root.glob("mix/??/*")).name
    with pytest.raises(SpecError, match="only students and bases answer"):
        open_speaker(mix, Store(store), None, "float32")
