"""Students and prompts in, a Markdown table out: how fast punnett answers with K students at once, next to other ways.

    python benchmarks/answering_throughput.py --peer-python PYTHON --students 1 4 8 --max-tokens 24 64 --json answering.json

Every student answers the 64 prompts of studies/date_doubt, greedily, in float32. Ours and each peer answer with all the
students in one process, timed from outside (imports and loading count); "answering" is the answers and the loading of the
adapters alone. A ratio is ours' answered tokens per second by the peer's; "lowest" and "highest" are those of the repeats.
"Differing" counts the answers whose ids are not ours: rounding decides where two tokens are about equally likely. The
students are trained by ours in a first step, so that they differ, unless --adapters names finished ones. The second table
is ours alone, with one and with several draws a prompt: prompts are read once, however many draws are asked.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    HERE,
    Record,
    location_of,
    make_students,
    mean,
    records_of,
    rotated,
    run,
    say,
    spread,
    table,
    warm,
    write_json,
)

from punnett.shared_base.machine import available_cores

PEERS: dict[str, tuple[str, ...]] = {
    "sequential": ("sequential_generate.py",),
    "sequential_merged": ("sequential_generate.py", "--merge"),
    "mixed": ("mixed_generate.py", "--order", "adapter"),
    "mixed_by_length": ("mixed_generate.py", "--order", "length"),
    "continuous": ("continuous_generate.py",),
    "vllm": ("vllm_generate.py",),
}
USUAL_PEERS = ("sequential", "sequential_merged", "mixed")


@dataclass(frozen=True)
class Bench:
    """What all the runs have in common."""

    base: str
    made: Record
    adapters: list[str]
    asked: argparse.Namespace

    def ours(self, n_students: int, max_tokens: int, draws: int = 1, temperature: float = 0.0) -> Record:
        """Answer with so many students."""
        command = [sys.executable, str(HERE / "ours_answering.py"), "--openings", self.made["openings"]]
        return self._run([*command, "--draws", str(draws), "--temperature", str(temperature)], n_students, max_tokens)

    def peer(self, name: str, n_students: int, max_tokens: int) -> Record:
        """Answer with so many students another way."""
        script, *options = PEERS[name]
        python = self.asked.vllm_python if name == "vllm" else self.asked.peer_python
        common = ["--batch", str(self.asked.batch), "--threads", str(self.asked.threads), "--end-token", str(self.made["end_token"])]
        return self._run([python, str(HERE / "peers" / script), *options, *common], n_students, max_tokens)

    def _run(self, command: list[str], n_students: int, max_tokens: int) -> Record:
        common = ["--base", self.base, "--prompts", self.made["prompts"], "--max-tokens", str(max_tokens)]
        ended = run([*command, *common, "--adapters", *self.adapters[:n_students]])
        tokens, seconds = ended.report["generated_tokens"], ended.report["answer_seconds"] + ended.report["adapter_seconds"]
        rates = {"process_rate": tokens / ended.process_seconds, "answer_rate": tokens / seconds}
        return {"process_seconds": ended.process_seconds, "answer_and_adapter_seconds": seconds, **rates, **ended.report}


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has PEFT")
    parser.add_argument("--vllm-python", default=sys.executable, help="a Python that has vLLM, for the peer vllm")
    parser.add_argument("--students", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(USUAL_PEERS))
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[24])
    parser.add_argument("--prompts", type=int, default=64, help="the first so many of the prompts")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="rows of a peer's batch")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of a peer's process")
    parser.add_argument("--draws", type=int, default=4, help="for the second table; 0 leaves it out")
    parser.add_argument("--adapters", nargs="*", default=[], help="folders of finished adapters, instead of training some first")
    parser.add_argument("--train-examples", type=int, default=32, help="of each student that is trained first, in batches of 8 and 2 epochs")
    parser.add_argument("--json", type=Path, help="where all that was measured is written")
    return parser.parse_args()


def prepare(asked: argparse.Namespace, work: Path) -> Bench:
    """Prompts, and adapters that differ."""
    base, most = location_of(asked.base), max(asked.students)
    options: dict[str, Any] = {"examples": asked.train_examples, "batch_size": 8, "epochs": 2, "learning_rate": 1e-3}
    made = make_students(base, work / "made", most, prompts=asked.prompts, **options)
    adapters = list(asked.adapters)
    if not adapters:
        say(f"training {most} students")
        command = [sys.executable, str(HERE / "ours_training.py"), "--base", base, "--out", str(work / "adapters")]
        run([*command, "--students", *made["students"]])
        adapters = [str(work / "adapters" / Path(path).stem) for path in made["students"]]
    if len(adapters) < most:
        raise SystemExit(f"{most} students are asked for, and there are {len(adapters)} adapters")
    return Bench(base, made, adapters, asked)


def measure(asked: argparse.Namespace, bench: Bench) -> Record:
    """Run everything; what is there is written after every run."""
    warm([[asked.vllm_python if name == "vllm" else asked.peer_python, str(HERE / "peers" / PEERS[name][0])] for name in asked.peers])
    bench.ours(asked.students[0], 1)  # what is measured once for a machine and a base is measured here
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    results: Record = {"settings": settings, "cores": available_cores(), "runs": [], "draws": []}
    for repeat in range(asked.repeats):
        for max_tokens in asked.max_tokens:
            for n_students in asked.students:
                for name in rotated(["ours", *asked.peers], repeat, asked.repeats):
                    at = (n_students, max_tokens)
                    found = bench.ours(*at) if name == "ours" else records_of(name, partial(bench.peer, name, *at))
                    results["runs"].append({"who": name, "students": n_students, "max_tokens": max_tokens, "repeat": repeat, **found})
                    say(f"repeat {repeat + 1}, {n_students} students, {max_tokens} tokens, {name}: {found.get('process_rate', 0):.0f} tokens/s")
                    write_json(asked.json, results)
        for draws in sorted({1, asked.draws}) if asked.draws else []:
            found = bench.ours(asked.students[0], asked.max_tokens[0], draws, temperature=1.0)
            found.pop("answers")
            results["draws"].append({"draws": draws, "students": asked.students[0], "max_tokens": asked.max_tokens[0], "repeat": repeat, **found})
            write_json(asked.json, results)
    return results


def n_differing(ours: Record, theirs: Record) -> int:
    """Answers whose ids are not the same."""
    pairs = [pair for of_student in zip(ours["answers"], theirs["answers"], strict=True) for pair in zip(*of_student, strict=True)]
    return sum(mine != other for mine, other in pairs)


def throughput_table(results: Record) -> str:
    """One line for every number of students, length and peer."""
    rows = []
    settings, runs = results["settings"], results["runs"]
    for max_tokens in settings["max_tokens"]:
        for n_students in settings["students"]:
            here = [r for r in runs if (r["students"], r["max_tokens"]) == (n_students, max_tokens)]
            for name in settings["peers"]:
                found = [r for r in here if r["who"] == name and "failed" not in r]
                if not found:
                    rows.append((max_tokens, n_students, name, "failed", *["–"] * 6))
                    continue
                ours = [next(r for r in here if (r["who"], r["repeat"]) == ("ours", one["repeat"])) for one in found]
                cells: list[str] = []
                for rate in ("process_rate", "answer_rate"):
                    cells += [f"{mean([r[rate] for r in side]):.0f}" for side in (ours, found)]
                    cells.append(spread([mine[rate] / theirs[rate] for mine, theirs in zip(ours, found, strict=True)]))
                differing = max(n_differing(mine, theirs) for mine, theirs in zip(ours, found, strict=True))
                rows.append((max_tokens, n_students, name, *cells, f"{differing} of {n_students * len(found[0]['answers'][0])}"))
    whole = ("ours, whole", "peer, whole", "ratio (lowest–highest)")
    alone = ("ours, answering", "peer, answering", "ratio (lowest–highest)")
    return table(("longest answer", "students", "peer", *whole, *alone, "differing"), rows)


def draws_table(results: Record) -> str:
    """Ours alone, sampled at temperature 1."""
    rows = []
    for draws in sorted({r["draws"] for r in results["draws"]}):
        found = [r for r in results["draws"] if r["draws"] == draws]
        seconds = [r["answer_seconds"] for r in found]
        rates = spread([r["answer_rate"] for r in found], 0)
        rows.append((found[0]["max_tokens"], found[0]["students"], draws, spread(seconds), spread([s / draws for s in seconds]), rates))
    return table(("longest answer", "students", "draws a prompt", "seconds", "seconds by draws", "tokens per second"), rows)


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="punnett-benchmark-") as work:
        results = measure(asked, prepare(asked, Path(work)))
    print(f"Rates are answered tokens per second; {asked.prompts} prompts a student, {asked.repeats} repeats, {results['cores']} cores.\n")
    print(throughput_table(results))
    if results["draws"]:
        print(f"\n{draws_table(results)}")


if __name__ == "__main__":
    main()
