"""Made-up students in, a Markdown table out: how fast punnett trains K students at once, next to one process for each.

    python benchmarks/training_throughput.py --peer-python PYTHON --students 1 4 8 16 --repeats 2 --json training.json

Every process is timed from outside, from its start to its end, so that imports and loading count. A peer trains one
student in a process, so K students are K of its processes, one after another (a peer with `per_core` in its name: as many
at once as there are cores, one thread each). Of these only --peer-students are really run in each repeat; the rate that
they have together is taken for all K. Ours is one process for all K. A ratio is ours' tokens per second by the peer's, of
whole processes and of training alone; "lowest" and "highest" are those of the repeats. In each repeat everyone is run
once, in an order that turns from repeat to repeat. Ours measures once for every machine and base how students should share
it, and remembers that; a run of one student before all others takes that measurement out of the figures.

Ours and the peers get the same examples, batches, order, rate and initial adapters (trl_default shuffles by itself, and
draws its own adapter), so the losses of the float32 peers must be ours; the largest difference is in the table. The
second table holds ours' training alone against half of this machine's forward rate (see forward_rate.py).
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from measuring import (
    HERE,
    Record,
    location_of,
    make_students,
    mean,
    records_of,
    remove,
    rotated,
    run,
    run_at_once,
    say,
    spread,
    table,
    warm,
    write_json,
)

from punnett.shared_base.machine import available_cores


@dataclass(frozen=True)
class Peer:
    """Another trainer: its script, how it is called, and whether its losses must be ours."""

    script: str
    options: tuple[str, ...] = ()
    same_losses: bool = False
    per_core: bool = False


PEERS = {
    "trl_default": Peer("trl_default.py"),
    "trl_tuned": Peer("trl_tuned.py", ("--loss", "trl"), same_losses=True),
    "trl_tuned_compact": Peer("trl_tuned.py", ("--loss", "compact"), same_losses=True),
    "trl_tuned_compact_per_core": Peer("trl_tuned.py", ("--loss", "compact"), same_losses=True, per_core=True),
    "peft_loop_bfloat16": Peer("peft_loop.py", ("--dtype", "bfloat16")),
    "peft_loop_float32": Peer("peft_loop.py", ("--dtype", "float32"), same_losses=True),
    "peft_loop_float32_per_core": Peer("peft_loop.py", ("--dtype", "float32"), same_losses=True, per_core=True),
}
USUAL_PEERS = ("trl_default", "trl_tuned", "trl_tuned_compact", "peft_loop_bfloat16", "peft_loop_float32")


@dataclass(frozen=True)
class Bench:
    """What all the runs have in common."""

    base: str
    made: Record
    work: Path
    peer_python: str
    peer_students: int
    threads: int

    def ours(self, n_students: int) -> Record:
        """Train so many students in one process."""
        out = self.work / "ours"
        remove(out)
        command = [sys.executable, str(HERE / "ours_training.py"), "--base", self.base, "--out", str(out)]
        ended = run([*command, "--students", *self.made["students"][:n_students]])
        tokens = ended.report["tokens"]
        return {
            "process_seconds": ended.process_seconds,
            "process_rate": tokens / ended.process_seconds,
            "train_rate": tokens / ended.report["train_seconds"],
            **ended.report,
        }

    def peer(self, name: str, n_students: int) -> Record:
        """Train some of so many students, a process each."""
        peer = PEERS[name]
        at_once = min(self.threads, n_students) if peer.per_core else 1
        n_run = min(n_students, max(at_once, self.peer_students // at_once * at_once))
        tokens, process_seconds, train_seconds = 0, 0.0, 0.0
        losses: dict[str, list[float]] = {}
        for start in range(0, n_run, at_once):
            files = [Path(path) for path in self.made["students"][start : min(start + at_once, n_run)]]
            ended, seconds = run_at_once([self._peer_command(peer, path, self.threads // at_once) for path in files])
            process_seconds += seconds
            train_seconds += max(one.report["train_seconds"] for one in ended)
            tokens += sum(one.report["tokens"] for one in ended)
            losses |= {path.stem: one.report["losses"] for path, one in zip(files, ended, strict=True)}
        return {
            "processes_run": n_run,
            "tokens": tokens,
            "process_seconds": process_seconds,
            "process_rate": tokens / process_seconds,
            "train_seconds": train_seconds,
            "train_rate": tokens / train_seconds,
            "losses": losses,
        }

    def _peer_command(self, peer: Peer, student: Path, threads: int) -> list[str]:
        out = self.work / f"peer_{student.stem}"
        remove(out)
        command = [self.peer_python, str(HERE / "peers" / peer.script), "--base", self.base, "--out", str(out), "--threads", str(threads)]
        initial = [] if peer.script == "trl_default.py" else ["--initial-adapter", str(student.with_suffix(".initial"))]
        return [*command, "--student", str(student), *peer.options, *initial]

    def forward_rate(self, seconds: float, shapes: int) -> Record:
        """What the machine can do."""
        command = [sys.executable, str(HERE / "forward_rate.py"), "--base", self.base]
        return run([*command, "--seconds", str(seconds), "--shapes", str(shapes)]).report


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has TRL and PEFT")
    parser.add_argument("--students", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(USUAL_PEERS))
    parser.add_argument("--peer-students", type=int, default=2, help="how many of a peer's processes are really run in a repeat")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--examples", type=int, default=32, help="of each student")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=available_cores(), help="of a peer's process")
    parser.add_argument("--forward-seconds", type=float, default=3.0, help="for each measurement of the forward rate; 0 leaves it out")
    parser.add_argument("--forward-shapes", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where all that was measured is written")
    return parser.parse_args()


def measure(asked: argparse.Namespace, work: Path) -> Record:
    """Run everything; what is there is written after every run."""
    base, most = location_of(asked.base), max(asked.students)
    shape = {"examples": asked.examples, "batch_size": asked.batch_size, "epochs": asked.epochs}
    made = make_students(base, work / "made", most, initial_adapters=min(most, max(asked.peer_students, asked.threads)), **shape)
    bench = Bench(base, made, work, asked.peer_python, asked.peer_students, asked.threads)
    warm([[asked.peer_python, str(HERE / "peers" / PEERS[name].script)] for name in asked.peers])
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    results: Record = {"settings": settings, "tokens_of_students": made["tokens"], "cores": available_cores(), "runs": [], "forward_rates": []}
    results["seconds_of_first_choice"] = bench.ours(1)["choose_seconds"]
    for repeat in range(asked.repeats):
        if asked.forward_seconds:
            results["forward_rates"].append(bench.forward_rate(asked.forward_seconds, asked.forward_shapes))
        for n_students in asked.students:
            for name in rotated(["ours", *asked.peers], repeat, asked.repeats):
                found = bench.ours(n_students) if name == "ours" else records_of(name, partial(bench.peer, name, n_students))
                results["runs"].append({"who": name, "students": n_students, "repeat": repeat, **found})
                say(f"repeat {repeat + 1}, {n_students} students, {name}: {found.get('process_rate', 0):.0f} tokens/s of whole processes")
                write_json(asked.json, results)
    return results


def largest_difference(ours: list[Record], peers: list[Record]) -> float:
    """Between losses of the same student, step and number of students."""
    pairs = [
        (own, other)
        for mine, theirs in zip(ours, peers, strict=True)
        for student, losses in theirs["losses"].items()
        for own, other in zip(mine["losses"][student], losses, strict=True)
    ]
    return max(abs(own - other) for own, other in pairs)


def throughput_table(results: Record) -> str:
    """One line for every number of students and peer."""
    rows = []
    settings, runs = results["settings"], results["runs"]
    for n_students in settings["students"]:
        for name in settings["peers"]:
            found = [r for r in runs if r["students"] == n_students and r["who"] == name and "failed" not in r]
            if not found:
                rows.append((n_students, name, "failed", *["–"] * 6))
                continue
            ours = [next(r for r in runs if (r["who"], r["students"], r["repeat"]) == ("ours", n_students, one["repeat"])) for one in found]
            cells: list[str] = []
            for rate in ("process_rate", "train_rate"):
                cells += [f"{mean([r[rate] for r in side]):.0f}" for side in (ours, found)]
                cells.append(spread([mine[rate] / theirs[rate] for mine, theirs in zip(ours, found, strict=True)]))
            difference = f"{largest_difference(ours, found):.1g}" if PEERS[name].same_losses else "–"
            rows.append((n_students, name, *cells, difference))
    whole = ("ours, whole", "peer, whole", "ratio (lowest–highest)")
    alone = ("ours, training", "peer, training", "ratio (lowest–highest)")
    return table(("students", "peer", *whole, *alone, "largest loss difference"), rows)


def limit_table(results: Record) -> str:
    """Ours' training alone as a share of what this machine could do."""
    limits = {part: max(r[part] for r in results["forward_rates"]) / 2 for part in ("decoder", "whole_model")}
    rows = []
    for n_students in results["settings"]["students"]:
        rates = [r["train_rate"] for r in results["runs"] if r["who"] == "ours" and r["students"] == n_students]
        shares = [spread([rate / limits[part] for rate in rates]) for part in limits]
        rows.append((n_students, f"{mean(rates):.0f}", *shares))
    head = [f"of half the {part.replace('_', ' ')}'s forward rate ({limit:.0f})" for part, limit in limits.items()]
    return table(("students", "ours, training", *head), rows)


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="punnett-benchmark-") as work:
        results = measure(asked, Path(work))
    shared = next(r["together"] for r in results["runs"] if r["who"] == "ours")
    print(f"Rates are tokens per second. Of a peer's K processes {asked.peer_students} were run in each of {asked.repeats} repeats.")
    print(f"{results['cores']} cores; how ours shared them for {asked.students[0]} students: {json.dumps(shared)}")
    print(f"Seconds that it took to measure how, before all this (0 where it was known): {results['seconds_of_first_choice']:.1f}\n")
    print(throughput_table(results))
    if results["forward_rates"]:
        print(f"\n{limit_table(results)}")


if __name__ == "__main__":
    main()
