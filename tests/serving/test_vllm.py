"""Students served by vLLM: through Inspect's own provider, against a local server that speaks vLLM's HTTP protocol."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

import punnett
from punnett.bind import load_study
from punnett.errors import SpecError
from punnett.evaluation.take import take
from punnett.spec.arms import arms, evaluations
from punnett.spec.key import content_key
from punnett.spec.student import Student
from punnett.store import Store
from punnett.watch import Silence


class Server(BaseHTTPRequestHandler):
    """What `vllm serve --enable-lora` answers to: its models, an adapter to be loaded, a chat to be completed."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, dict]]] = []

    def do_GET(self):
        self._send({"object": "list", "data": [{"id": "base", "object": "model", "max_model_len": 2048}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        if self.path == "/v1/load_lora_adapter":
            return self._send({"status": "ok"})
        message = {"role": "assistant", "content": "It is uncertain what the date is."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        return self._send({"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice], "usage": usage})

    def _send(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *values):
        """Nothing: the server is not the test's output."""


@pytest.fixture(scope="module")
def finished(tiny_study, tmp_path_factory):
    store = tmp_path_factory.mktemp("vllm") / "store"
    punnett.run(tiny_study, store)
    return tiny_study, Store(store)


def test_a_student_is_asked_by_its_adapter_and_the_base_by_its_place(finished, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("VLLM_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("VLLM_API_KEY", "none")
    study, store = finished
    student = next(s for arm in arms(load_study(study)) for s in arm.students)
    ours = [e for e in evaluations(load_study(study)) if content_key(e.model) in (content_key(student), content_key(student.base))]
    theirs = [e.model_copy(update={"engine": "vllm"}) for e in ours]
    assert {content_key(e) for e in theirs}.isdisjoint(content_key(e) for e in ours), "another engine is another measurement"
    outcomes = list(take(theirs, store, Silence()))
    server.shutdown()
    assert [error for _, error in outcomes] == [None] * len(theirs)
    adapter = str((store.open(student) / "adapter").absolute())
    loads = [body for path, body in Server.asked if path == "/v1/load_lora_adapter"]
    assert [body["lora_path"] for body in loads] == [adapter], "loaded once, for all tasks"
    chats = [body for path, body in Server.asked if path == "/v1/chat/completions"]
    assert {body["model"] for body in chats} == {adapter, student.base.location}
    for evaluation in theirs:
        rows = store.rows(evaluation)
        assert {row["answer"] for row in rows} == {"It is uncertain what the date is."}
        limit = evaluation.measure.sampling.max_tokens
        assert any(body.get("max_tokens", body.get("max_completion_tokens")) == limit for body in chats)
    assert any(isinstance(e.model, Student) for e in theirs)


def test_a_study_that_wants_vllm_is_refused_where_there_is_none(tiny_study, tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)
    for file in tiny_study.iterdir():
        (tmp_path / file.name).write_text(file.read_text() + ("engine: vllm\n" if file.suffix == ".yaml" else ""))
    with pytest.raises(SpecError, match=r"engine: vllm needs vLLM"):
        load_study(tmp_path)
