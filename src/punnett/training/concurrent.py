"""Students that share a base in, trained adapters out: several at once, on every core, each as if it were alone.

Worker threads pass through one resident base. Between two optimiser steps a student belongs to nobody, so any
worker may take its next step, together with those of other students up to the tokens of a pass. What a student
becomes depends on its own examples, recipe and seed; in float32 on a CPU to the bit, whoever trains beside it.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from punnett.errors import RunError
from punnett.shared_base.adapter import Adapter, initial_state
from punnett.shared_base.machine import thread_counts
from punnett.shared_base.share import SharedBase
from punnett.spec.key import derive_seed
from punnett.spec.student import Recipe
from punnett.training.loss import BatchPiece, add_gradients
from punnett.training.schedule import Example, PlannedStep, Step, pieces_of, planned_steps, token_weights


@dataclass(frozen=True)
class TrainingJob:
    """A student as the trainer sees it: a name of the caller's, and what it is to be trained on."""

    name: str
    examples: list[Example]
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class Together:
    """How students share the machine: workers (threads) and cores, students at once, tokens up to which they share a pass.

    None of these changes what a student becomes. `tokens_per_piece` does, in the last bits: a batch larger than it
    is cut and its gradients are added up.
    """

    workers: int = 1
    cores: int = 1
    students_at_once: int = 8
    tokens_per_pass: int = 1024
    tokens_per_piece: int = 2048


@dataclass(frozen=True)
class Begun:
    """A student's training has started."""

    name: str


@dataclass(frozen=True)
class Stepped:
    """A student has taken an optimiser step."""

    name: str
    step: Step


@dataclass(frozen=True)
class Finished:
    """A student is trained."""

    name: str
    adapter: Adapter


@dataclass(frozen=True)
class Failed:
    """A student broke; the others are untouched."""

    name: str
    error: Exception


Event = Begun | Stepped | Finished | Failed


class _StudentInTraining:
    """An adapter, its optimiser, and the steps that are left."""

    def __init__(self, job: TrainingJob, shared: SharedBase, initial: dict[str, torch.Tensor], tokens_per_piece: int) -> None:
        self.job = job
        self.adapter = Adapter(shared.sites, job.recipe.lora_rank, job.recipe.lora_alpha, shared.device, trained=True)
        self.adapter.fill(initial)
        # one vector, so that the optimiser's step and the clipping are a handful of operations however many layers there are
        self.optimizer = torch.optim.AdamW(
            [self.adapter.flat], lr=job.recipe.learning_rate, betas=(0.9, 0.999), weight_decay=job.recipe.weight_decay, fused=True
        )
        self._steps = planned_steps(job.examples, job.recipe, job.seed)
        self._tokens_per_piece = tokens_per_piece
        self.planned: PlannedStep | None = next(self._steps, None)

    @property
    def gradients(self) -> torch.Tensor:
        """Of all weights, in one vector."""
        assert self.adapter.flat.grad is not None
        return self.adapter.flat.grad

    @property
    def n_tokens(self) -> int:
        """Tokens of the next step."""
        return sum(e.n_tokens for e in self.planned.batch) if self.planned else 0

    def pieces(self) -> list[BatchPiece]:
        """The next step's batch, cut into what one pass can hold."""
        assert self.planned is not None
        batch = self.planned.batch
        weight_of = dict(zip(map(id, batch), token_weights(batch, self.job.recipe.loss_normalisation), strict=True))
        return [BatchPiece(self.adapter, piece, [weight_of[id(e)] for e in piece]) for piece in pieces_of(batch, self._tokens_per_piece)]

    def take_step(self, loss: float, seconds: float) -> Step:
        """Clip, update, and go on to the next step. Raises RunError if loss or gradient is not finite."""
        planned, recipe = self.planned, self.job.recipe
        assert planned is not None
        norm = torch.nn.utils.clip_grad_norm_([self.adapter.flat], recipe.gradient_clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RunError(
                f"training broke at step {planned.step + 1} of {planned.steps}: loss {loss}, gradient norm {norm}. "
                "A lower learning_rate is the usual cure; it must be the same for all arms."
            )
        self.optimizer.param_groups[0]["lr"] = planned.learning_rate
        self.optimizer.step()
        self.gradients.zero_()
        trained = sum(len(e.completion_ids) for e in planned.batch)
        done = Step(planned.step + 1, planned.steps, planned.epoch, loss, planned.learning_rate, norm, trained, self.n_tokens, seconds)
        self.planned = next(self._steps, None)
        return done


class _Pool:
    """Students between two steps, and those that wait to begin. Workers take from it and put back."""

    def __init__(self, jobs: list[TrainingJob], together: Together, begin: Any) -> None:
        self._waiting = deque(jobs)
        self._ready: deque[_StudentInTraining] = deque()
        self._in_flight = 0
        self.together = together
        self._begin = begin
        self._changed = threading.Condition()
        self.stopped = False

    def take(self) -> tuple[list[_StudentInTraining], int]:
        """Students for one pass and the threads to run it on; none when all is done. Waits while others hold what is left."""
        with self._changed:
            while not self.stopped:
                while self._waiting and self._in_flight < self.together.students_at_once:
                    self._in_flight += 1
                    if student := self._begin(self._waiting.popleft()):
                        self._ready.append(student)
                    else:
                        self._in_flight -= 1
                if self._ready:
                    return self._share(), self._threads()
                if not self._in_flight:
                    break
                self._changed.wait(0.5)
            return [], 1

    def _threads(self) -> int:
        """Threads that a worker may use: cores that no other worker needs."""
        cores = self.together.cores // min(self.together.workers, self._in_flight)
        return max(count for count in thread_counts() if count == 1 or count <= cores)

    def _share(self) -> list[_StudentInTraining]:
        fair = math.ceil(self._in_flight / self.together.workers)
        taken = [self._ready.popleft()]
        while self._ready and len(taken) < fair and sum(s.n_tokens for s in (*taken, self._ready[0])) <= self.together.tokens_per_pass:
            taken.append(self._ready.popleft())
        return taken

    def put_back(self, student: _StudentInTraining, going_on: bool) -> None:
        """A student after its step; one that is done, or broke, leaves its place to another."""
        with self._changed:
            if going_on:
                self._ready.append(student)
            else:
                self._in_flight -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """No new steps."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()


def train_together(shared: SharedBase, jobs: list[TrainingJob], together: Together) -> Generator[Event, None, None]:
    """Train adapters on a frozen base, several at once; tells of each as it goes.

    A student that breaks (a loss that is not finite, no memory even by itself) is Failed, and the others go on
    unchanged. Closing the iterator stops the workers at their next step.
    """
    events: queue.Queue[Event | None] = queue.Queue()
    seeds = {(job.recipe.lora_rank, job.seed) for job in jobs}
    # PEFT draws them on the model itself, so they are drawn before the first pass
    initial = {(rank, seed): initial_state(shared.model, rank, derive_seed(seed, "adapter")) for rank, seed in sorted(seeds)}

    def begin(job: TrainingJob) -> _StudentInTraining | None:
        try:
            student = _StudentInTraining(job, shared, initial[job.recipe.lora_rank, job.seed], together.tokens_per_piece)
        except (RuntimeError, MemoryError) as error:
            events.put(Failed(job.name, error))
            return None
        events.put(Begun(job.name))
        return student

    pool = _Pool(jobs, together, begin)
    threads = [threading.Thread(target=_work, args=(shared, pool, events), daemon=True) for _ in range(together.workers)]
    for thread in threads:
        thread.start()
    try:
        n_left = len(jobs)
        while n_left:
            event = events.get()
            if event is None:  # a worker itself broke, and took the reason with it into the log
                raise RunError("a training worker stopped; its message is above")
            n_left -= isinstance(event, Finished | Failed)
            yield event
    finally:
        pool.stop()
        for thread in threads:
            thread.join()


def _work(shared: SharedBase, pool: _Pool, events: "queue.Queue[Event | None]") -> None:
    try:
        while True:
            students, n_threads = pool.take()
            if not students:
                return
            outcomes = _step_of_each(shared, students, n_threads, min(1.0, n_threads / pool.together.cores))
            for student, outcome in zip(students, outcomes, strict=True):
                going_on = isinstance(outcome, Step) and student.planned is not None
                if isinstance(outcome, Step):
                    events.put(Stepped(student.job.name, outcome))
                    if not going_on:
                        events.put(Finished(student.job.name, student.adapter))
                else:
                    events.put(Failed(student.job.name, outcome))
                pool.put_back(student, going_on)
    except BaseException:
        pool.stop()
        events.put(None)
        raise


def _step_of_each(shared: SharedBase, students: list[_StudentInTraining], n_threads: int, share_of_machine: float) -> list[Step | Exception]:
    """One optimiser step of several students. Where they cannot pass together, each goes by itself: only the culprit breaks."""
    started = time.monotonic()
    try:
        losses = _pass_of(shared, students, n_threads)
    except (RuntimeError, MemoryError, LookupError, ValueError) as error:
        for student in students:
            student.gradients.zero_()  # a pass that broke half way has left some
        if len(students) == 1:
            return [error]
        return [outcome for student in students for outcome in _step_of_each(shared, [student], n_threads, share_of_machine)]
    seconds = time.monotonic() - started
    total = sum(student.n_tokens for student in students)
    outcomes: list[Step | Exception] = []
    for student, loss in zip(students, losses, strict=True):
        try:
            outcomes.append(student.take_step(loss, seconds * share_of_machine * student.n_tokens / total))
        except RunError as error:
            outcomes.append(error)
    return outcomes


def _pass_of(shared: SharedBase, students: list[_StudentInTraining], n_threads: int) -> list[float]:
    """Add the gradients of every student's next batch; returns the losses."""
    pieces = [student.pieces() for student in students]
    losses = [0.0] * len(students)
    # first pieces together, then second ones: only a batch that outgrows a pass has more than one
    for turn in range(max(map(len, pieces))):
        present = [i for i, own in enumerate(pieces) if turn < len(own)]
        now = [pieces[i][turn] for i in present]
        # few rows round otherwise on several threads, and a worker has several only while others are idle
        many = sum(piece.n_tokens for piece in now) >= shared.fewest_tokens_on_threads
        torch.set_num_threads(n_threads if many else 1)
        for i, loss in zip(present, add_gradients(shared, now), strict=True):
            losses[i] += loss
    return losses
