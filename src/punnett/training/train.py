"""A batch of students that share a base in, adapters out. The whole batch is audited before the first one trains."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from punnett.bases import load_model, load_tokenizer, weights_fingerprint
from punnett.chat import ChatFormat
from punnett.errors import RunError
from punnett.spec.key import content_key
from punnett.spec.student import Student
from punnett.store import Store
from punnett.training.audit import Audit, prepare
from punnett.training.lora import Example, Step, train_adapter
from punnett.watch import Watch

LOG, ADAPTER = "log.jsonl", "adapter"


def train(batch: list[Student], store: Store, watch: Watch) -> Iterator[tuple[Student, Exception | None]]:
    """Train students of one base and precision, one after another; each is settled in the store as it ends.

    Yields every student with None, or with what stopped it; one that fails leaves the others as they are.
    Raises RunError before any training if an audit fails, and after it if the base's weights have changed.
    """
    base, dtype = batch[0].base, batch[0].stages[0].recipe.dtype
    chat = ChatFormat(load_tokenizer(base.location))
    chat.check()
    prepared = [(student, *_prepare(student, store, chat)) for student in batch]
    broken = [f"{content_key(s)}: {'; '.join(audit.problems)}" for s, _, audit in prepared if audit.problems]
    if broken:
        raise RunError("the audit stopped the run before training:\n  " + "\n  ".join(broken))
    model = load_model(base.location, dtype)
    before = weights_fingerprint(model)
    for student, examples, audit in prepared:
        watch.begin(student, audit.tokens_per_epoch * student.stages[0].recipe.epochs)
        try:
            _train_one(student, examples, audit, before, model, store, watch)
        except Exception as error:  # a hole in the report, told by name; the next student goes on
            yield student, error
        else:
            yield student, None
        watch.end(student)
    if weights_fingerprint(model) != before:
        raise RunError("the base's weights changed while students were trained; nothing made in this run can be trusted")


def _prepare(student: Student, store: Store, chat: ChatFormat) -> tuple[list[Example], Audit]:
    stage = student.stages[0]
    left_out = store.manifest(stage.mix).get("n_left_out_unfinished", 0)
    return prepare(store.rows(stage.mix), stage, chat, left_out)


def _train_one(student: Student, examples: list[Example], audit: Audit, base_fingerprint: str, model: Any, store: Store, watch: Watch) -> None:
    facts: dict[str, Any] = {"audit": dataclasses.asdict(audit), "base_fingerprint": base_fingerprint}
    facts["threads"] = _threads()
    facts["tokens"] = audit.tokens_per_epoch * student.stages[0].recipe.epochs
    with store.write(student, **facts) as folder:
        try:
            with (folder / LOG).open("w") as log:
                train_adapter(model, examples, student.stages[0].recipe, student.seed, folder / ADAPTER, _writer(log, watch))
        except Exception:
            store.keep_beside_failure(student, folder / LOG)  # the log of a student that broke is the one worth reading
            raise


def _writer(log: Any, watch: Watch) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        log.write(json.dumps(dataclasses.asdict(step)) + "\n")
        log.flush()
        watch.advance(step.tokens)

    return on_step


def _threads() -> int:
    import torch

    return torch.get_num_threads()
