"""Requests for a base and its students in, answers out: one queue for all of them, and a worker for every core.

Who asks need not know who else does: an Inspect task of one student, twenty tasks of twenty students, or a teacher
that is sampled. Requests wait in one queue; a worker takes as many as its batch has room for and takes more as
answers end.
"""

import atexit
import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from punnett.bases import load_tokenizer
from punnett.chat import ChatFormat
from punnett.errors import RunError
from punnett.serving.decode import RunningBatch, Ticket
from punnett.serving.requests import Answer, AnswerRequest, ScoreRequest
from punnett.shared_base.adapter import Adapter, load_adapter
from punnett.shared_base.machine import available_cores
from punnett.shared_base.share import SharedBase, load_shared

# Rows that a batch may have, positions that its cache may hold, and students whose adapters are stacked in it.
MAX_ROWS, CACHE_TOKENS, MAX_STUDENTS = 128, 12_288, 8
# Requests come in one by one; a moment's wait lets the first batch be a full one.
QUIET_SECONDS = 0.02
FEWEST_ROWS_OF_A_WORKER = 16


@dataclass
class _Waiting:
    """A request in the queue."""

    adapter: Adapter | None
    request: AnswerRequest | ScoreRequest
    future: "Future[Answer]"


class Engine:
    """A resident base that answers as itself and as any finished student of it, for everyone at once."""

    def __init__(self, shared: SharedBase, chat: ChatFormat, text_of: Callable[[list[int]], str], workers: int) -> None:
        self._shared, self._stop_ids, self._text_of = shared, chat.stop_ids, text_of
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._closed = self._dropped = False
        self._workers = workers
        self._max_rows = MAX_ROWS
        self._adapter = functools.lru_cache(maxsize=64)(self._load)
        self._loading = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"answering-{n}") for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def _load(self, folder: Path) -> Adapter:
        return load_adapter(folder, self._shared.sites, self._shared.device)

    def submit(self, adapter: Path | None, request: AnswerRequest | ScoreRequest) -> "Future[Answer]":
        """Put a request into the queue. Raises RunError for an adapter that does not fit the base, or an empty request."""
        if not request.ids or (isinstance(request, ScoreRequest) and not request.continuation_ids):
            raise RunError("a request needs at least one token to go on from, and a continuation at least one to be scored")
        with self._loading:
            loaded = self._adapter(adapter) if adapter is not None else None
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                raise RunError("this base has been put away for another one")
            self._waiting.append(_Waiting(loaded, request, future))
            self._changed.notify()
        return future

    def answer(self, adapter: Path | None, requests: list[Any]) -> list[Answer]:
        """Answer requests, in their order, and wait for them."""
        return [future.result() for future in [self.submit(adapter, request) for request in requests]]

    def close(self, drop: bool = False) -> None:
        """Answer what waits, or with `drop` let it go, then let the workers end."""
        with self._changed:
            self._closed, self._dropped = True, drop
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        torch.set_num_threads(1)  # one worker a core; a row's rounding must not depend on how many are busy
        batch = RunningBatch(self._shared, self._stop_ids, self._text_of)
        while True:
            taken = self._take(batch)
            if taken is None:
                return
            try:
                if taken:
                    batch.admit([_ticket(waiting) for waiting in taken])
                batch.step()
            except Exception as error:
                batch = self._recover(batch, taken, error)

    def _take(self, batch: RunningBatch) -> list[_Waiting] | None:
        """Requests that join a batch now: none while it is more than half full, None when the engine is closed."""
        with self._changed:
            if self._dropped:
                return None
            if batch.n_alive == 0:
                while not self._waiting:
                    if self._closed:
                        return None
                    self._changed.wait()
                self._wait_for_quiet()
            room = self._max_rows - batch.n_alive
            if not self._waiting or 2 * batch.n_alive > self._max_rows:
                return []
            # leave the others their share
            fair = max(FEWEST_ROWS_OF_A_WORKER, -(-len(self._waiting) // self._workers))
            taken = _fitting(self._waiting, batch, min(room, fair))
            left = {id(waiting) for waiting in taken}
            self._waiting = [waiting for waiting in self._waiting if id(waiting) not in left]
            return [waiting for waiting in taken if not waiting.future.cancelled()]

    def _wait_for_quiet(self) -> None:
        n = 0
        while n < len(self._waiting) < self._max_rows * self._workers:
            n = len(self._waiting)
            self._changed.wait(QUIET_SECONDS)

    def _recover(self, batch: RunningBatch, taken: list[_Waiting], error: Exception) -> RunningBatch:
        """Without memory: ask again in smaller batches. Otherwise those in hand are told; nobody else loses anything."""
        hand = {id(w.future): w for w in (*map(_in_hand, batch.tickets), *taken)}
        left = [waiting for waiting in hand.values() if not waiting.future.done()]
        with self._changed:
            if _is_out_of_memory(error) and len(hand) > 1:
                self._max_rows = max(1, min(self._max_rows, len(hand)) // 2)
                self._waiting = left + self._waiting
                self._changed.notify_all()
            else:
                for waiting in left:
                    with contextlib.suppress(InvalidStateError):  # whoever asked has just given up
                        waiting.future.set_exception(error)
        return RunningBatch(self._shared, self._stop_ids, self._text_of)


class _Settle:
    """Takes an answer to the future of whoever asked."""

    def __init__(self, future: "Future[Answer]") -> None:
        self.future = future

    def __call__(self, answer: Answer) -> None:
        with contextlib.suppress(InvalidStateError):  # whoever asked has given up
            self.future.set_result(answer)


def _ticket(waiting: _Waiting) -> Ticket:
    return Ticket(waiting.adapter, waiting.request, _Settle(waiting.future), lambda: not waiting.future.cancelled())


def _in_hand(ticket: Ticket) -> _Waiting:
    assert isinstance(ticket.settle, _Settle)
    return _Waiting(ticket.adapter, ticket.request, ticket.settle.future)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _fitting(waiting: list[_Waiting], batch: RunningBatch, room: int) -> list[_Waiting]:
    """The first requests that fit (rows, positions in the cache, students in the stack), student by student as they first came."""
    came: dict[int, int] = {}
    for one in waiting:
        came.setdefault(id(one.adapter), len(came))
    students = {id(adapter) for adapter in batch.adapters}
    widest = max((ticket.tokens_at_most for ticket in batch.tickets), default=0)
    taken: list[_Waiting] = []
    for one in sorted(waiting, key=lambda w: came[id(w.adapter)]):
        if len(taken) >= room:
            break
        more = students | ({id(one.adapter)} if one.adapter is not None else set())
        wide = max(widest, _ticket(one).tokens_at_most)
        too_many = len(more) > MAX_STUDENTS or (batch.n_alive + len(taken) + 1) * wide > CACHE_TOKENS
        if too_many and (taken or batch.n_alive):
            continue
        taken.append(one)
        students, widest = more, wide
    return taken


_current: tuple[tuple[str, str], Engine] | None = None
_switching = threading.Lock()


@atexit.register
def _put_away() -> None:
    """A thread inside torch while the interpreter goes down would abort the process."""
    if _current is not None:
        _current[1].close(drop=True)


def engine_of(location: str, dtype: str) -> Engine:
    """The engine of a base's folder, started at its first use. One base is resident at a time."""
    global _current  # noqa: PLW0603 (one engine a process, as one base is)
    with _switching:
        if _current is None or _current[0] != (location, dtype):
            if _current is not None:
                _current[1].close()
            _current = ((location, dtype), _start(location, dtype))
        return _current[1]


def _start(location: str, dtype: str) -> Engine:
    tokenizer = load_tokenizer(location)
    text_of = functools.partial(tokenizer.decode, skip_special_tokens=True)
    shared = load_shared(location, dtype)
    on_processor = shared.device.type == "cpu"
    return Engine(shared, ChatFormat(tokenizer), text_of, available_cores() if on_processor else 1)


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

    def wake(self) -> None:
        """Have the base loaded and the workers started."""
        engine_of(self.location, self.dtype)

    def submit(self, request: AnswerRequest | ScoreRequest) -> "Future[Answer]":
        """Ask, together with whoever else asks this base or its students."""
        return engine_of(self.location, self.dtype).submit(self.adapter, request)

    def answer(self, requests: list[Any]) -> list[Answer]:
        """Answer requests, in their order."""
        return engine_of(self.location, self.dtype).answer(self.adapter, requests)
