"""Study in, finished store out: makes what is missing, station by station, and leaves a hole where something failed."""

import dataclasses
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from punnett.answers import AnswerCache
from punnett.data.blend import MIX_COLUMNS, blend
from punnett.data.gather import PROMPT_COLUMNS, gather, prompt_row
from punnett.data.sample import ROLLOUT_COLUMNS, sample
from punnett.errors import PunnettError
from punnett.spec.arms import BoundStudy, evaluations
from punnett.spec.graph import STATIONS, closure, needs
from punnett.spec.key import Noun, content_key
from punnett.spec.measure import Evaluation
from punnett.spec.mix import Mix
from punnett.spec.prompt import PromptSet
from punnett.spec.student import Student
from punnett.spec.teacher import RolloutSet
from punnett.store import ROWS, Store, write_rows
from punnett.watch import Silence, Watch

Outcome = tuple[Noun, Exception | None]
Station = Callable[[list[Any], Store, Watch], Iterator[Outcome]]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What a run made, and what it could not make."""

    made: int
    failed: dict[str, str]
    skipped: int
    seconds: dict[type[Noun], float] = dataclasses.field(default_factory=dict)

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything was there already."""
        return self.made == 0 and not self.failed and self.skipped == 0


def run(study: BoundStudy, store: Store, watch: Watch | None = None) -> RunSummary:
    """Make everything that the study needs and the store lacks.

    A request that fails is recorded and its dependants are skipped; all else goes on. Raises RunError when an audit
    stops the run before training. An interrupted run loses at most what it was making; the next one goes on.
    """
    watch = watch or Silence()
    store.clear_unfinished()
    everything = closure(evaluations(study))
    made, failed, skipped = 0, {}, 0
    seconds: dict[type[Noun], float] = {}
    for station in STATIONS:
        started = time.monotonic()
        missing = [r for r in everything if isinstance(r, station) and not store.has(r)]
        ready = [r for r in missing if not any(content_key(n) in failed for n in _all_needs(r))]
        skipped += len(missing) - len(ready)
        for batch in _batches(ready):
            for request, error in MAKE[station](batch, store, watch):
                if error is None:
                    made += 1
                else:
                    failed[content_key(request)] = f"{type(request).__name__} {content_key(request)}: {error}"
                    store.record_failure(request, str(error), "".join(traceback.format_exception(error)))
        if ready:
            seconds[station] = time.monotonic() - started
    return RunSummary(made, failed, skipped, seconds)


def _all_needs(request: Noun) -> list[Noun]:
    return closure(needs(request))


def _batches(requests: list[Noun]) -> Iterator[list[Noun]]:
    """Students are trained, and asked, by base and precision; all else goes together."""

    def shared(request: Noun) -> str:
        if isinstance(request, Student):
            return f"{content_key(request.base)} {request.stages[0].recipe.dtype}"
        if isinstance(request, Evaluation):
            base = request.model.base if isinstance(request.model, Student) else request.model
            return f"{content_key(base)} {request.dtype}"
        return ""

    for _, group in groupby(sorted(requests, key=shared), key=shared):
        yield list(group)


def _each(make: Callable[[Any, Store, Watch], None]) -> Station:
    """A station that makes requests one by one."""

    def station(batch: list[Any], store: Store, watch: Watch) -> Iterator[Outcome]:
        for request in batch:
            try:
                make(request, store, watch)
            except (PunnettError, RuntimeError, OSError, ValueError, MemoryError) as error:
                yield request, error
            else:
                yield request, None
            watch.end(request)

    return station


def _make_prompts(request: PromptSet, store: Store, watch: Watch) -> None:
    watch.begin(request, 0)
    rows = [prompt_row(p) for p in gather(request)]
    with store.write(request) as folder:
        write_rows(folder / ROWS, rows, PROMPT_COLUMNS)


def _make_rollouts(request: RolloutSet, store: Store, watch: Watch) -> None:
    watch.begin(request, 0)
    facts: dict[str, Any] = {"tokens": 0}

    def count(tokens: int) -> None:
        facts["tokens"] += tokens
        watch.advance(tokens)

    cache = AnswerCache(store.root / "answers.sqlite")
    try:
        with store.write(request, work=facts) as folder:
            write_rows(folder / ROWS, sample(request, store.rows, cache, count), ROLLOUT_COLUMNS)
    finally:
        cache.close()


def _make_mix(request: Mix, store: Store, watch: Watch) -> None:
    watch.begin(request, 0)
    rows, facts = blend(request, store.rows)
    with store.write(request, **facts) as folder:
        write_rows(folder / ROWS, rows, MIX_COLUMNS)


def _make_students(batch: list[Student], store: Store, watch: Watch) -> Iterator[Outcome]:
    from punnett.training.train import train

    yield from train(batch, store, watch)


def _make_evaluations(batch: list[Evaluation], store: Store, watch: Watch) -> Iterator[Outcome]:
    from punnett.evaluation.take import take

    yield from take(batch, store, watch)


MAKE: dict[type[Noun], Station] = {
    PromptSet: _each(_make_prompts),
    RolloutSet: _each(_make_rollouts),
    Mix: _each(_make_mix),
    Student: _make_students,
    Evaluation: _make_evaluations,
}


def default_store() -> Path:
    """Where a study's store lies unless the user says otherwise."""
    import os

    return Path(os.environ.get("PUNNETT_STORE") or Path(".punnett") / "store")
