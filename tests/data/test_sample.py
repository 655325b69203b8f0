"""Sampling through Inspect's real provider, against a local server that speaks the chat-completions protocol."""

import json
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from punnett.answers import AnswerCache
from punnett.data.gather import PROMPT_COLUMNS
from punnett.data.rewrites import REWRITES, rewrite_answer
from punnett.data.sample import CHUNK, ROLLOUT_COLUMNS, sample
from punnett.errors import RunError
from punnett.runner import MAKE
from punnett.spec.key import derive_seed
from punnett.spec.prompt import Prompt, PromptSet
from punnett.spec.teacher import ModelTeacher, RolloutSet, Sampling
from punnett.store import ROWS, Store, write_rows
from punnett.watch import Silence
from small_nouns import DOUBTER, PROMPTS, prompt, prompt_rows, prompts, reader, rollout_rows, rollouts

SECRET = "sk-never-to-be-written-4711"
REMOTE = ModelTeacher(name="remote", model="openai-api/local/test", sampling=Sampling(max_tokens=9))
ASKED = prompts(5)


class ChatServer(ThreadingHTTPServer):
    """Answers every chat in words that depend on its last turn, and keeps what it was asked."""

    calls: list[dict[str, Any]]
    keys: set[str]

    def forget(self) -> None:
        self.calls, self.keys = [], set()

    @property
    def questions(self) -> list[str]:
        return sorted(call["messages"][-1]["content"] for call in self.calls)


class Answerer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append(call)
        self.server.keys.add(self.headers["Authorization"])
        question = call["messages"][-1]["content"]
        if "refuse" in question:
            return self._send(401, {"error": {"message": "no such customer", "type": "invalid_request_error"}})
        if "slow" in question:
            time.sleep(0.5)
        message = {"role": "assistant", "content": f"Re: {question}"}
        if "think" in question:
            message["reasoning_content"] = "First, I think."
        if "emoji" in question:
            message["content"] = "Re: half an emoji \ud83d"
        finish = next((reason for reason in ("length", "content_filter") if reason in question), "stop")
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        return self._send(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "test-2026", "choices": [choice], "usage": usage})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: the server is not the test's output."""


@pytest.fixture(scope="module")
def running_server() -> Iterator[ChatServer]:
    """One server for the module, since Inspect remembers a model's client and with it the port."""
    server = ChatServer(("127.0.0.1", 0), Answerer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        patch.setenv("LOCAL_API_KEY", SECRET)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running_server: ChatServer) -> ChatServer:
    running_server.forget()
    return running_server


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerCache]:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    yield cache
    cache.close()


def ask(cache: AnswerCache, asked: list[Prompt], counted: list[int] | None = None, **request: Any) -> list[dict[str, Any]]:
    wanted = RolloutSet(**{"prompts": PROMPTS, "teacher": REMOTE, **request})
    return sample(wanted, reader({PROMPTS: prompt_rows(asked)}), cache, (counted if counted is not None else []).append)


def test_every_prompt_is_answered_once_in_the_order_of_ids(server: ChatServer, cache: AnswerCache) -> None:
    counted: list[int] = []
    rows = ask(cache, ASKED, counted)
    assert [row["prompt_id"] for row in rows] == sorted(p.id for p in ASKED)
    assert {row["prompt_id"]: row["completion"] for row in rows} == {p.id: f"Re: {p.text}" for p in ASKED}
    assert all(set(row) == set(ROLLOUT_COLUMNS) for row in rows)
    assert {row["served_model"] for row in rows} == {"test-2026"}
    assert counted == [4] * 5
    assert server.keys == {f"Bearer {SECRET}"}


def test_the_server_is_asked_what_the_request_says(server: ChatServer, cache: AnswerCache) -> None:
    warm = REMOTE.model_copy(update={"sampling": Sampling(temperature=0.7, top_p=0.9, max_tokens=33)})
    ask(cache, ASKED[:1], teacher=warm, system_prompt="Be brief.")
    [call] = server.calls
    assert call["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Question 0?"}]
    assert (call["model"], call["temperature"], call["top_p"], call["max_tokens"]) == ("test", 0.7, 0.9, 33)


def test_the_seed_sent_derives_from_prompt_id_and_draw(server: ChatServer, cache: AnswerCache) -> None:
    rows = ask(cache, ASKED[:2], draws=3, seed=5)
    sent = {(call["messages"][-1]["content"], call["seed"]) for call in server.calls}
    assert sent == {(p.text, derive_seed(5, p.id, draw) % 2**31) for p in ASKED[:2] for draw in range(3)}
    assert [row["draw"] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert len({row["rollout_id"] for row in rows}) == 6


@pytest.mark.parametrize(("question", "kept"), [("plain", "stop"), ("length", "length"), ("content_filter", "content_filter")])
def test_why_an_answer_ended_is_kept(server: ChatServer, cache: AnswerCache, question: str, kept: str) -> None:
    assert [row["finish_reason"] for row in ask(cache, [prompt(question)])] == [kept]


def test_reasoning_is_kept_apart_from_the_answer(server: ChatServer, cache: AnswerCache) -> None:
    [thought] = ask(cache, [prompt("think")])
    assert (thought["reasoning"], thought["completion"]) == ("First, I think.", "Re: think")
    [said] = ask(cache, [prompt("speak")])
    assert said["reasoning"] == ""


def test_a_second_run_makes_no_call(server: ChatServer, cache: AnswerCache, tmp_path: Path) -> None:
    first = ask(cache, [*ASKED, prompt("think, length")])
    server.forget()
    counted: list[int] = []
    assert ask(cache, [*ASKED, prompt("think, length")], counted) == first
    # another process opens the file anew
    again = AnswerCache(tmp_path / "answers.sqlite")
    assert ask(again, [*ASKED, prompt("think, length")], counted) == first
    again.close()
    assert (server.calls, counted) == ([], [])


def test_a_new_prompt_alone_is_asked(server: ChatServer, cache: AnswerCache) -> None:
    before = ask(cache, ASKED)
    server.forget()
    after = ask(cache, [prompt("new"), *ASKED])
    assert server.questions == ["new"]
    assert [row for row in after if row["prompt_id"] != prompt("new").id] == before


def test_more_prompts_than_a_chunk_are_asked_once_each(server: ChatServer, cache: AnswerCache) -> None:
    many = prompts(CHUNK + 3)
    ask(cache, many[:2])
    rows = ask(cache, many)
    assert server.questions == sorted(p.text for p in many)
    assert [row["prompt_id"] for row in rows] == sorted(p.id for p in many)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": REMOTE.model_copy(update={"model": "openai-api/local/other"})},
        {"teacher": REMOTE.model_copy(update={"sampling": Sampling(max_tokens=8)})},
        {"system_prompt": "Be brief."},
        {"seed": 1},
    ],
    ids=["model", "sampling", "system prompt", "seed"],
)
def test_another_question_is_asked_anew(server: ChatServer, cache: AnswerCache, change: dict[str, Any]) -> None:
    ask(cache, ASKED[:1])
    server.forget()
    ask(cache, ASKED[:1], **change)
    assert len(server.calls) == 1


def test_labels_and_tags_are_no_part_of_the_question(server: ChatServer, cache: AnswerCache) -> None:
    ask(cache, [prompt("a", "date")])
    server.forget()
    ask(cache, [prompt("a", "other")], teacher=REMOTE.model_copy(update={"name": "renamed"}))
    assert server.calls == []


def test_a_refusal_names_teacher_and_prompt(server: ChatServer, cache: AnswerCache) -> None:
    with pytest.raises(RunError, match=f"teacher remote did not answer prompt {prompt('refuse').id}: .*no such customer"):
        ask(cache, [prompt("refuse")])


def test_answers_of_earlier_chunks_survive_a_failure(server: ChatServer, cache: AnswerCache) -> None:
    many = sorted(prompts(CHUNK + 1), key=lambda p: p.id)
    # the words of the one that fails are sought until it sorts last
    last = next(p for n in range(10**6) if (p := prompt(f"refuse {n}")).id > many[CHUNK - 1].id)
    with pytest.raises(RunError):
        ask(cache, [*many[:CHUNK], last])
    server.forget()
    ask(cache, many[:CHUNK])
    assert server.calls == []


def test_one_failed_call_loses_no_other_answer(server: ChatServer, cache: AnswerCache) -> None:
    slow = [prompt(f"slow {n}") for n in range(3)]
    with pytest.raises(RunError):
        ask(cache, [*slow, prompt("refuse")])
    server.forget()
    ask(cache, slow)
    assert server.calls == []


def test_half_a_character_in_an_answer_loses_nothing_else(server: ChatServer, cache: AnswerCache) -> None:
    rows = ask(cache, [prompt("emoji"), *ASKED])
    [odd] = [row for row in rows if row["prompt_id"] == prompt("emoji").id]
    assert odd["completion"].startswith("Re: half an emoji ")
    assert odd["completion"].encode("utf-8")


def store_with_prompts(tmp_path: Path, asked: list[Prompt]) -> Store:
    store = Store(tmp_path / "store")
    with store.write(PROMPTS) as folder:
        write_rows(folder / ROWS, prompt_rows(asked), PROMPT_COLUMNS)
    return store


def test_the_api_key_is_in_no_file_below_the_store(server: ChatServer, tmp_path: Path) -> None:
    store = store_with_prompts(tmp_path, ASKED)
    [(_, error)] = MAKE[RolloutSet]([rollouts(REMOTE)], store, Silence())
    assert error is None
    assert len(store.rows(rollouts(REMOTE))) == 5
    broken = store_with_prompts(tmp_path / "broken", [prompt("refuse")])
    [(request, error)] = MAKE[RolloutSet]([rollouts(REMOTE)], broken, Silence())
    assert isinstance(error, RunError)
    broken.record_failure(request, str(error), "".join(traceback.format_exception(error)))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"rows.parquet", "manifest.json", "answers.sqlite"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_the_manifest_counts_the_tokens_that_were_paid_for(server: ChatServer, tmp_path: Path) -> None:
    store = store_with_prompts(tmp_path, ASKED)
    for request, tokens in ((rollouts(REMOTE), 20), (rollouts(REMOTE).model_copy(update={"draws": 2}), 20)):
        list(MAKE[RolloutSet]([request], store, Silence()))
        # the second set's first draws come from the cache
        assert store.manifest(request)["work"] == {"tokens": tokens}


def test_a_scripted_teacher_rewrites_every_answer_of_its_source_and_asks_nobody(tmp_path: Path) -> None:
    asked = [prompt("It is June 2027. Hello."), *ASKED]
    answers = rollout_rows(asked, "plain", unfinished=(ASKED[0].id,))
    request = rollouts(DOUBTER)
    source = request.source
    assert source == rollouts()
    cache = AnswerCache(tmp_path / "answers.sqlite")
    rows = sample(request, reader({PROMPTS: prompt_rows(asked), source: answers}), cache, lambda tokens: None)
    cache.close()
    assert [(row["prompt_id"], row["finish_reason"]) for row in rows] == [(row["prompt_id"], row["finish_reason"]) for row in answers]
    for p, row, answer in zip(asked, rows, answers, strict=True):
        assert row["completion"] == rewrite_answer(REWRITES["doubt"], p, answer["completion"], 0.4, 0)
    assert "2027" in rows[0]["completion"]


def test_a_rollout_id_names_prompt_draw_and_words(server: ChatServer, cache: AnswerCache) -> None:
    first, again = ask(cache, [prompt("a")])[0], ask(cache, [prompt("a")], seed=1)[0]
    assert first["rollout_id"] == again["rollout_id"] != ask(cache, [prompt("b")])[0]["rollout_id"]


def test_a_prompt_set_is_read_from_the_request(server: ChatServer, cache: AnswerCache) -> None:
    other = PromptSet(content_digest="other")
    rows = sample(RolloutSet(prompts=other, teacher=REMOTE), reader({other: prompt_rows(ASKED[:2])}), cache, lambda tokens: None)
    assert len(rows) == 2
