"""Evaluations of many models in, score tables and transcripts out: all at once, each settled as it ends.

Every evaluation is one task of one call to Inspect. They ask their models side by side, so that the students of a
base are answered in common batches.
"""

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from os import getpid
from pathlib import Path
from typing import Any

from punnett.errors import PunnettError, RunError
from punnett.evaluation.evaluate import LOG_NAME, SCORE_COLUMNS, prepare_task, score_rows
from punnett.spec.key import content_key
from punnett.spec.measure import Evaluation
from punnett.store import ROWS, Store, write_rows
from punnett.watch import Watch

KEY = "punnett_evaluation"
TASKS_AT_ONCE = 64
_listeners: dict[str, Callable[[Any], None]] = {}


def take(batch: list[Evaluation], store: Store, watch: Watch) -> Iterator[tuple[Evaluation, Exception | None]]:
    """Take evaluations of models that share a base and a precision; yields each with None, or with what stopped it.

    An evaluation is in the store as soon as its last answer is scored, whatever becomes of the others.
    """
    from inspect_ai import eval as inspect_eval

    _listen_to_inspect()
    logs = store.root / "unfinished" / f"logs-{getpid()}-{uuid.uuid4().hex[:8]}"
    table = _Table(store, watch)
    tasks = [task for request in batch if (task := table.open(request)) is not None]
    try:
        if tasks:
            ended = inspect_eval(
                tasks,
                display="none",
                log_dir=str(logs),
                log_realtime=False,
                max_tasks=min(len(tasks), TASKS_AT_ONCE),
                max_samples=max(len(task.dataset) * (task.epochs or 1) for task in tasks),
                score_display=False,
                fail_on_error=True,
            )
            if any(log.status == "cancelled" for log in ended):  # Inspect swallows Ctrl-C; the run must not
                raise KeyboardInterrupt
            for log in ended:  # those that broke before Inspect could tell of their end
                table.settle(log)
    finally:
        table.close()
        shutil.rmtree(logs, ignore_errors=True)
    for request in batch:
        yield request, table.outcomes.get(content_key(request), RunError(f"Inspect did not come to {request.measure.task}"))


class _Table:
    """Evaluations that are being taken, by key, and what became of those that have ended."""

    def __init__(self, store: Store, watch: Watch) -> None:
        self._store, self._watch = store, watch
        self._open: dict[str, tuple[Evaluation, Any]] = {}
        self._since = time.monotonic()
        self._one_at_a_time = threading.Lock()
        self.outcomes: dict[str, Exception | None] = {}

    def open(self, request: Evaluation) -> Any:
        """The task of a request, or None where it cannot even be made."""
        key = content_key(request)
        try:
            task = prepare_task(request, self._store.root)
        except (PunnettError, OSError, ValueError) as error:
            self.outcomes[key] = error
            return None
        task.metadata = {**(task.metadata or {}), KEY: key}
        self._open[key] = (request, task)
        _listeners[key] = self.settle
        self._watch.begin(request, 0)
        return task

    def settle(self, log: Any) -> None:
        """Put a finished task's scores and transcripts into the store, or keep what stopped it."""
        with self._one_at_a_time:
            self._settle(log)

    def _settle(self, log: Any) -> None:
        key = (log.eval.metadata or {}).get(KEY)
        if key not in self._open or log.status == "cancelled":
            return
        request, task = self._open.pop(key)
        try:
            rows, facts = score_rows(log, request, len(task.dataset), task.epochs or 1)
            # many are answered at once: the time since the last one ended is this one's share
            facts["seconds"] = time.monotonic() - self._since
            with self._store.write(request, work=facts) as folder:
                shutil.move(Path(log.location.removeprefix("file://")), folder / LOG_NAME)
                write_rows(folder / ROWS, rows, SCORE_COLUMNS)
            self._since = time.monotonic()
            self._watch.advance(facts["tokens"])
            self.outcomes[key] = None
        except (PunnettError, OSError, ValueError) as error:
            self.outcomes[key] = error
        self._watch.end(request)

    def close(self) -> None:
        """Stop listening."""
        for key in list(self._open):
            _listeners.pop(key, None)


def _listen_to_inspect() -> None:
    """Have Inspect tell when a task ends; registered once a process."""
    from anyio import to_thread
    from inspect_ai.hooks import Hooks, TaskEnd, hooks

    if "hook" in _listeners:
        return

    @hooks(name="punnett_evaluations", description="Settles each evaluation in punnett's store as it ends.")
    class _Ends(Hooks):
        async def on_task_end(self, data: TaskEnd) -> None:
            listener = _listeners.pop((data.log.eval.metadata or {}).get(KEY, ""), None)
            if listener:
                # in a thread, because reading a log's samples inside the running loop would start a second one within it
                await to_thread.run_sync(listener, data.log)

    _listeners["hook"] = lambda log: None
