"""What stations tell in, a live line on the terminal out: what is being made, tokens per second, time left."""

import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from punnett.planner import STATION_WORDS, Plan
from punnett.spec.key import Noun, content_key
from punnett.spec.measure import Evaluation
from punnett.spec.prompt import PromptSet
from punnett.spec.student import Student
from punnett.spec.teacher import RolloutSet

WINDOW_SECONDS, MEASURABLE_SECONDS = 20.0, 0.2
SINGULAR = {"prompts": "prompts", "rollouts": "rollouts", "mixes": "mix", "students": "student", "evaluations": "evaluation"}


class LiveProgress:
    """A Watch that draws one bar per station; for use in a `with` statement. Without a terminal it prints a line per finished thing."""

    def __init__(self, plan: Plan, names: dict[str, str], console: Console) -> None:
        self._console = console
        self._names = names
        self._left = {s.station: s.seconds / s.missing for s in plan.stations if s.missing}
        self._missing = {s.station: s.missing for s in plan.stations}
        self._recent: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}"),
            console=console,
            transient=False,
        )
        self._tasks: dict[str, TaskID] = {
            s.station: self._progress.add_task(s.station, total=s.missing, doing="", start=False) for s in plan.stations if s.missing
        }
        self._doing: dict[str, str] = {}  # by key: the names of all that is being made right now
        self._station, self._tokens_done, self._tokens_begun = "", 0, 0
        self._since_last = (time.monotonic(), 0)
        self._begun: set[str] = set()

    def __enter__(self) -> "LiveProgress":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def begin(self, request: Noun, total_tokens: int) -> None:
        """Name what is being made; several things may be at once."""
        station = STATION_WORDS[type(request)]
        if station != self._station:
            self._station, self._doing, self._tokens_done, self._tokens_begun = station, {}, 0, 0
            self._since_last = (time.monotonic(), 0)
        self._doing[content_key(request)] = self._name(request)
        self._tokens_begun += total_tokens
        if station in self._tasks and station not in self._begun:
            self._begun.add(station)
            self._progress.start_task(self._tasks[station])
        self._show(station)

    def advance(self, tokens: int) -> None:
        """Count tokens into the rate."""
        now = time.monotonic()
        self._recent.append((now, tokens))
        while self._recent and now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()
        self._tokens_done += tokens
        self._show(self._station)

    def end(self, request: Noun) -> None:
        """Step the station's bar on."""
        station = STATION_WORDS[type(request)]
        self._missing[station] = max(0, self._missing.get(station, 0) - 1)
        self._doing.pop(content_key(request), None)
        if station in self._tasks:
            self._progress.update(self._tasks[station], advance=1, doing="" if not self._missing[station] else None)
        if not self._console.is_terminal:
            # what is made together ends together: its seconds are those since the last thing ended
            now, (since, tokens_before) = time.monotonic(), self._since_last
            tokens = self._tokens_done - tokens_before
            self._since_last = (now, self._tokens_done)
            speed = f"{tokens / (now - since):4.0f} tok/s, " if tokens and now - since > MEASURABLE_SECONDS else ""
            line = f"  {SINGULAR[station]:<10} {self._name(request):<44} {now - since:5.1f} s, {speed}about {_clock(self._seconds_left())} left"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _name(self, request: Noun) -> str:
        return self._names.get(content_key(request), content_key(request)[:12])

    def _show(self, station: str) -> None:
        names = list(self._doing.values())
        what = names[0] if len(names) == 1 else f"{len(names)} at once, {names[0]} the first" if names else ""
        share = f" {min(self._tokens_done / self._tokens_begun, 1):.0%}" if self._tokens_begun else ""
        text = f"{what}{share}  {self._speed():.0f} tok/s  {_clock(self._seconds_left())} left"
        if station in self._tasks:
            self._progress.update(self._tasks[station], doing=text)

    def _speed(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        span = time.monotonic() - self._recent[0][0]
        return sum(tokens for _, tokens in self._recent) / max(span, 0.5)

    def _seconds_left(self) -> float:
        return sum(self._left.get(station, 0.0) * n for station, n in self._missing.items())


def names_of(arm_names: dict[str, str], requests: list[Noun]) -> dict[str, str]:
    """Readable names of requests by key: arm and seed of students, teacher of rollouts."""
    names = {}
    for request in requests:
        key = content_key(request)
        match request:
            case PromptSet():
                names[key] = request.name
            case Student():
                arm = arm_names.get(key, key[:12])
                names[key] = f"{arm} seed {request.seed}"
                names[content_key(request.stages[0].mix)] = f"of {arm}"
            case Evaluation(model=Student() as student):
                names[key] = f"{arm_names.get(content_key(student), '')} seed {student.seed}, {request.measure.name}"
            case Evaluation():
                names[key] = f"base, {request.measure.name}"
            case RolloutSet():
                names[key] = f"by {request.teacher.name}"
    return names


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
