"""A batch of students that share a base in, adapters out. The whole batch is audited before the first one trains."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from punnett.bases import load_tokenizer, weights_fingerprint
from punnett.chat import ChatFormat
from punnett.errors import RunError
from punnett.shared_base.share import load_shared
from punnett.spec.key import content_key
from punnett.spec.student import Student
from punnett.store import Store
from punnett.training.audit import Audit, prepare
from punnett.training.capacity import choose
from punnett.training.concurrent import Begun, Event, Failed, Finished, Stepped, Together, TrainingJob, train_together
from punnett.watch import Watch

LOG, ADAPTER = "log.jsonl", "adapter"


def train(batch: list[Student], store: Store, watch: Watch, together: Together | None = None) -> Iterator[tuple[Student, Exception | None]]:
    """Train students of one base and precision at once; each is settled in the store as it ends.

    Yields every student with None, or with what stopped it; one that fails leaves the others as they are.
    `together` is chosen by what this machine was measured to do, if not given. Raises RunError before any training
    if an audit fails, and after it if the base's weights have changed.
    """
    base, dtype = batch[0].base, batch[0].stages[0].recipe.dtype
    chat = ChatFormat(load_tokenizer(base.location))
    chat.check()
    students = {content_key(student): student for student in batch}
    jobs, audits = {}, {}
    for key, student in students.items():
        stage = student.stages[0]
        left_out = store.manifest(stage.mix).get("n_left_out_unfinished", 0)
        examples, audits[key] = prepare(store.rows(stage.mix), stage, chat, left_out)
        jobs[key] = TrainingJob(key, examples, stage.recipe, student.seed)
    broken = [f"{key}: {'; '.join(audit.problems)}" for key, audit in audits.items() if audit.problems]
    if broken:
        raise RunError("the audit stopped the run before training:\n  " + "\n  ".join(broken))
    shared = load_shared(base.location, dtype)
    together = together or choose(shared, list(jobs.values()))
    before = weights_fingerprint(shared.model)
    drafts = _Drafts(students, audits, before, together, store, watch)
    with contextlib.closing(drafts), contextlib.closing(train_together(shared, list(jobs.values()), together)) as events:
        for event in events:
            if outcome := drafts.take(event):
                yield outcome
    if weights_fingerprint(shared.model) != before:
        raise RunError("the base's weights changed while students were trained; nothing made in this run can be trusted")


class _Drafts:
    """The store's drafts of the students that train right now: a log that grows, an adapter at the end."""

    def __init__(
        self, students: dict[str, Student], audits: dict[str, Audit], base_fingerprint: str, together: Together, store: Store, watch: Watch
    ) -> None:
        self._students, self._audits, self._store, self._watch = students, audits, store, watch
        self._common = {"base_fingerprint": base_fingerprint, "trained_together": dataclasses.asdict(together)}
        self._open: dict[str, tuple[contextlib.ExitStack, Path, TextIO, dict[str, Any]]] = {}

    def take(self, event: Event) -> tuple[Student, Exception | None] | None:
        """Write down what happened; returns the student and its outcome when it has ended."""
        student = self._students[event.name]
        match event:
            case Begun():
                self._begin(student)
                return None
            case Stepped(step=step):
                _, _, log, work = self._open[event.name]
                log.write(json.dumps(dataclasses.asdict(step)) + "\n")
                log.flush()
                work["seconds"] += step.seconds
                self._watch.advance(step.tokens)
                return None
            case Finished(adapter=adapter):
                stack, folder, log, _ = self._open.pop(event.name)
                log.close()
                with stack:  # leaving it settles the entry
                    adapter.save(folder / ADAPTER, student.base.name)
                error = None
            case Failed(error=error):
                self._keep_log(student, event.name, error)
        self._watch.end(student)
        return student, error

    def _begin(self, student: Student) -> None:
        key = content_key(student)
        audit = self._audits[key]
        n_tokens = audit.tokens_per_epoch * student.stages[0].recipe.epochs
        work: dict[str, Any] = {"tokens": n_tokens, "seconds": 0.0}
        self._watch.begin(student, n_tokens)
        stack = contextlib.ExitStack()
        folder = stack.enter_context(self._store.write(student, audit=dataclasses.asdict(audit), work=work, **self._common))
        self._open[key] = (stack, folder, (folder / LOG).open("w"), work)

    def _keep_log(self, student: Student, key: str, error: Exception) -> None:
        if key not in self._open:  # it broke before its first step
            return
        stack, folder, log, _ = self._open.pop(key)
        log.close()
        self._store.keep_beside_failure(student, folder / LOG)  # the log of a student that broke is the one worth reading
        with contextlib.suppress(type(error)), stack:
            raise error

    def close(self) -> None:
        """Throw away what is half made: the run was stopped."""
        for stack, _, log, _ in self._open.values():
            log.close()
            with contextlib.suppress(InterruptedError), stack:
                raise InterruptedError("the run was stopped")
        self._open.clear()
