"""Chats in, answers out: one resident base that answers as itself or as any finished student of it.

Requests are gathered and answered together. A group is answered when `gather` requests wait, or when none has
come for a while; with `gather` known, a study's batches are the same in every run, and so are its answers.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punnett.bases import load_model, load_tokenizer
from punnett.chat import ChatFormat
from punnett.serving.decode import Answer, AnswerRequest, decode

QUIET_SECONDS = 0.25
QUIET_SECONDS_WHEN_GATHERING = 20.0
# one model answers at a time: two decodings would fight for the same cores or the same memory
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Speaker:
    """Who answers: a base, or a student given by its adapter's folder."""

    location: str
    dtype: str
    adapter: Path | None = None

    @property
    def chat_format(self) -> ChatFormat:
        """The chat format of the base's tokenizer."""
        return ChatFormat(load_tokenizer(self.location))

    def text_of(self, ids: list[int] | tuple[int, ...]) -> str:
        """The text of generated ids, control tokens left out."""
        return load_tokenizer(self.location).decode(list(ids), skip_special_tokens=True)

    def answer(self, requests: list[AnswerRequest]) -> list[Answer]:
        """Answer requests in one go, in their order."""
        with _ONE_AT_A_TIME, as_student(load_model(self.location, self.dtype), self.adapter) as model:
            return decode(model, requests, self.chat_format.stop_ids, self.text_of)


@contextlib.contextmanager
def as_student(model: Any, adapter: Path | None) -> Iterator[Any]:
    """The base with a student's adapter beside its weights (never merged into them), and bare again afterwards."""
    if adapter is None:
        yield model.eval()
        return
    from peft import PeftModel

    student = PeftModel.from_pretrained(model, adapter)
    try:
        yield student.eval()
    finally:
        student.unload()


class Gatherer:
    """Collects the requests that come in on one event loop and answers them in groups, off the loop's thread."""

    def __init__(self, speaker: Speaker, gather: int | None) -> None:
        self._speaker = speaker
        self._gather = gather
        self._waiting: list[tuple[AnswerRequest, asyncio.Future[Answer]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: AnswerRequest) -> Answer:
        """The answer to one request, made together with those that wait beside it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((request, future))
        if self._timer:
            self._timer.cancel()
        if self._gather is not None and len(self._waiting) >= self._gather:
            self._flush()
        else:
            quiet = QUIET_SECONDS if self._gather is None else QUIET_SECONDS_WHEN_GATHERING
            self._timer = loop.call_later(quiet, self._flush)
        return await future

    def _flush(self) -> None:
        group, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._answer_group(group))
        self._tasks.add(task)  # the loop keeps only weak references to tasks
        task.add_done_callback(self._tasks.discard)

    async def _answer_group(self, group: list[tuple[AnswerRequest, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await asyncio.to_thread(self._speaker.answer, [request for request, _ in group])
        except BaseException as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else RuntimeError(str(error)))
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if not future.done():
                future.set_result(answer)
