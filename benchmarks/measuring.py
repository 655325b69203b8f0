"""Commands in, what they printed and took out: whole processes measured from outside, and Markdown tables of that.

The other benchmarks are built on this module; it imports no heavy library, so that the memory of whoever starts a
process stays far below what the process itself takes.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KIBIBYTE = 1024
BYTES_OF_PEAK_UNIT = 1 if sys.platform == "darwin" else KIBIBYTE  # what ru_maxrss counts in

Record = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its last line as JSON, its life from outside, and its largest resident memory."""

    report: Record
    process_seconds: float
    peak_bytes: int


class Running:
    """A process that was started; what it writes goes to files, so that it never waits for a reader."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._printed, self._complained = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed once read)
        self._began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=self._printed, stderr=self._complained, stdin=subprocess.DEVNULL)

    def wait(self) -> Ended:
        """Wait for its end. Raises RuntimeError, with the end of what it complained of, if its last line is no JSON object.

        A process that has reported is done, even if it ends badly after that: vLLM ends itself by a signal.
        """
        _, status, usage = os.wait4(self.process.pid, 0)
        process_seconds = time.perf_counter() - self._began
        self.process.returncode = os.waitstatus_to_exitcode(status)
        printed, complained = (_all_of(file) for file in (self._printed, self._complained))
        try:
            report = json.loads(printed.strip().splitlines()[-1])
        except (ValueError, IndexError):
            report = None
        if not isinstance(report, dict):
            about = f"{' '.join(self._command[:2])}: exit status {self.process.returncode} and no report"
            raise RuntimeError(f"{about}\n{(printed + complained)[-2000:]}")
        if self.process.returncode != 0:
            say(f"{' '.join(self._command[:2])}: exit status {self.process.returncode} after its report")
        return Ended(report, process_seconds, usage.ru_maxrss * BYTES_OF_PEAK_UNIT)


def _all_of(file: Any) -> str:
    file.seek(0)
    with file:
        return file.read().decode("utf-8", "replace")


def run(command: list[str]) -> Ended:
    """Run one process to its end."""
    return Running(command).wait()


def run_at_once(commands: list[list[str]]) -> tuple[list[Ended], float]:
    """Run processes side by side; the second value is the seconds from the first start to the last end."""
    began = time.perf_counter()
    running = [Running(command) for command in commands]
    ended: list[Ended] = []
    failures: list[RuntimeError] = []
    for one in running:  # to the end of each, so that none goes on beside what is timed next
        try:
            ended.append(one.wait())
        except RuntimeError as error:
            failures.append(error)
    seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    return ended, seconds


def warm(commands: Iterable[list[str]]) -> None:
    """Start each command once with --help, so that its libraries are read from the disc before anything is timed."""
    for command in {tuple(command) for command in commands}:
        result = subprocess.run([*command, "--help"], capture_output=True, check=False)
        if result.returncode != 0:
            raise SystemExit(f"{' '.join(command)} does not start:\n{result.stderr.decode('utf-8', 'replace')[-2000:]}")


def location_of(base: str) -> str:
    """The folder of a base that punnett knows by this name."""
    from punnett.bases import find_base

    return find_base(base).location


def make_students(base: str, folder: Path, students: int, **options: float | str) -> Record:
    """Have `make_students.py` write student files and prompts into `folder`; returns what it says of them."""
    more = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(HERE / "make_students.py"), "--base", base, "--out", str(folder), "--students", str(students), *more]
    return run(command).report


def rotated(names: Sequence[str], turn: int, turns: int) -> list[str]:
    """The names in another order for each of `turns` repeats, so that nobody always comes first."""
    shift = turn * len(names) // max(1, turns)
    return [*names[shift:], *names[:shift]]


def records_of(name: str, measure: Callable[[], Record]) -> Record:
    """What `measure` returns, or the failure of a peer as a record, so that one peer does not end the others' run."""
    try:
        return measure()
    except RuntimeError as error:
        say(f"{name} failed: {error}")
        return {"failed": str(error)}


def say(text: str) -> None:
    """Tell whoever waits, beside the results."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path | None, value: Any) -> None:
    """Write results so far; a reader never sees half a file."""
    if path is not None:
        draft = path.with_name(path.name + ".draft")
        draft.write_text(json.dumps(value, indent=1))
        os.replace(draft, path)


def remove(folder: Path) -> None:
    """Remove what a run wrote, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def mean(values: Sequence[float]) -> float:
    """Their mean; not a number where there are none."""
    return sum(values) / len(values) if values else math.nan


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and in brackets the lowest and the highest."""
    if not values:
        return "–"
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
