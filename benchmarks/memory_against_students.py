"""Made-up students in, a Markdown table out: the memory that K students take, in one process of ours and in K of a peer's.

    python benchmarks/memory_against_students.py --peer-python PYTHON --students 1 4 8 16 --json memory.json

Each K is a process of its own; its peak is what the system counted for it until it ended. Of the peer (peft_loop.py in
float32) one process is run. K such processes at once share their libraries, and what else they have mapped from files,
but not what they have allocated; so they are taken to need the peak of one, and for each further one the peak of its
anonymous memory (sampled from /proc, so on Linux only; elsewhere the whole peak counts K times).
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path

from measuring import HERE, KIBIBYTE, Ended, Record, Running, location_of, make_students, run, say, table, warm, write_json

from punnett.shared_base.machine import available_cores

MEBIBYTE = 1024 * KIBIBYTE
SAMPLE_SECONDS = 0.05


def anonymous_bytes(process_id: int) -> int:
    """What a process has allocated and holds right now; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * KIBIBYTE for line in lines if line.startswith("RssAnon:")), 0)


def run_and_sample(command: list[str]) -> tuple[Ended, int]:
    """Run a process; the second value is the largest anonymous memory that was seen."""
    running, ended = Running(command), threading.Event()
    seen = [0]

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            seen.append(anonymous_bytes(running.process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        return running.wait(), max(seen)
    finally:
        ended.set()
        sampler.join()


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has PEFT")
    parser.add_argument("--students", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--examples", type=int, default=16, help="of each student")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=available_cores(), help="of the peer's process")
    parser.add_argument("--json", type=Path, help="where all that was measured is written")
    return parser.parse_args()


def measure(asked: argparse.Namespace, work: Path) -> Record:
    """Run the peer once, and ours once for every number of students."""
    base = location_of(asked.base)
    made = make_students(base, work / "made", max(asked.students), examples=asked.examples, batch_size=asked.batch_size, initial_adapters=1)
    script = [asked.peer_python, str(HERE / "peers" / "peft_loop.py")]
    warm([script])
    first = Path(made["students"][0])
    initial = ["--initial-adapter", str(first.with_suffix(".initial"))]
    common = ["--base", base, "--student", str(first), "--out", str(work / "peer"), *initial, "--dtype", "float32"]
    ended, anonymous = run_and_sample([*script, *common, "--threads", str(asked.threads)])
    results: Record = {"peer": {"peak_bytes": ended.peak_bytes, "anonymous_bytes": anonymous or ended.peak_bytes}, "ours": []}
    say(f"peer: {ended.peak_bytes / MEBIBYTE:.0f} MiB")
    ours = [sys.executable, str(HERE / "ours_training.py"), "--base", base]
    # the first run on a machine measures how students should share it, which takes memory of its own
    run([*ours, "--out", str(work / "first"), "--students", made["students"][0]])
    for n_students in asked.students:
        ended = run([*ours, "--out", str(work / f"ours_{n_students}"), "--students", *made["students"][:n_students]])
        results["ours"].append({"students": n_students, "peak_bytes": ended.peak_bytes, "together": ended.report["together"]})
        say(f"{n_students} students: {ended.peak_bytes / MEBIBYTE:.0f} MiB")
        write_json(asked.json, results)
    return results


def memory_table(results: Record) -> str:
    """One line for every number of students."""
    peer, rows = results["peer"], []
    for found in results["ours"]:
        separate = peer["peak_bytes"] + (found["students"] - 1) * peer["anonymous_bytes"]
        ours = found["peak_bytes"]
        rows.append((found["students"], f"{ours / MEBIBYTE:.0f}", f"{separate / MEBIBYTE:.0f}", f"{separate / ours:.2f}"))
    return table(("students", "ours, MiB", "separate processes at once, MiB", "ratio"), rows)


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="punnett-benchmark-") as work:
        results = measure(asked, Path(work))
    peer = results["peer"]
    print(f"One process of the peer: {peer['peak_bytes'] / MEBIBYTE:.0f} MiB, {peer['anonymous_bytes'] / MEBIBYTE:.0f} of them its own.\n")
    print(memory_table(results))


if __name__ == "__main__":
    main()
