"""Student files in, one LoRA adapter each out: punnett's trainer, all students in one process at once.

    python benchmarks/ours_training.py --base FOLDER --students a.json b.json --out FOLDER

A student file holds "name", "seed", "recipe" and "examples" ({"slot", "prompt_ids", "completion_ids"}); see
make_students.py. How students share the machine is what the product itself chooses. The adapters go to FOLDER/NAME. The
last line printed is a JSON object: tokens (ids run, over all students), train_seconds (drawing the initial adapters,
training, and saving the adapters), choose_seconds (choosing how to share the machine), total_seconds (since the script
started, imports too), losses (for each student one per step) and together (how the machine was shared).
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

STARTED = time.perf_counter()

from punnett.shared_base.share import load_shared  # noqa: E402
from punnett.spec.student import Recipe  # noqa: E402
from punnett.training.capacity import choose  # noqa: E402
from punnett.training.concurrent import Failed, Finished, Stepped, TrainingJob, train_together  # noqa: E402
from punnett.training.schedule import Example  # noqa: E402


def read_job(path: Path) -> TrainingJob:
    """The student of a file."""
    student = json.loads(path.read_text())
    examples = [Example(e["slot"], tuple(e["prompt_ids"]), tuple(e["completion_ids"])) for e in student["examples"]]
    return TrainingJob(student["name"], examples, Recipe(**student["recipe"]), student["seed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--students", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    jobs = [read_job(path) for path in asked.students]
    shared = load_shared(asked.base, jobs[0].recipe.dtype)
    choose_started = time.perf_counter()
    together = choose(shared, jobs)
    choose_seconds = time.perf_counter() - choose_started

    losses: dict[str, list[float]] = {job.name: [] for job in jobs}
    train_started = time.perf_counter()
    for event in train_together(shared, jobs, together):
        match event:
            case Stepped(name=name, step=step):
                losses[name].append(step.loss)
            case Finished(name=name, adapter=adapter):
                adapter.save(asked.out / name, asked.base)
            case Failed(error=error):
                raise error
    train_seconds = time.perf_counter() - train_started

    report = {
        "tokens": sum(job.recipe.epochs * example.n_tokens for job in jobs for example in job.examples),
        "train_seconds": train_seconds,
        "choose_seconds": choose_seconds,
        "total_seconds": time.perf_counter() - STARTED,
        "losses": losses,
        "together": dataclasses.asdict(together),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
