"""The verbs as Python functions, each taking a study file or a key: plan, run, status, show, report, init."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from punnett.analysis.effects import Findings
    from punnett.planner import Plan, Status
    from punnett.runner import RunSummary
    from punnett.training.verify import Verification


def plan(study: str | Path, store: str | Path | None = None) -> "Plan":
    """What a run of the study would make, how long it would take, and how sharp the answer can be.

    Raises SpecError for a study that cannot work. Makes nothing.
    """
    from punnett.bind import load_study
    from punnett.planner import plan as make_plan

    return make_plan(load_study(study), _store(store))


def run(study: str | Path, store: str | Path | None = None, console: "Console | None" = None) -> "RunSummary":
    """Make everything that the study lacks. Raises SpecError before any compute, RunError when an audit stops it."""
    from punnett.bind import load_study
    from punnett.planner import plan as make_plan
    from punnett.progress import LiveProgress, names_of
    from punnett.runner import run as make_missing
    from punnett.spec.arms import evaluations
    from punnett.spec.graph import closure
    from punnett.watch import Silence

    bound, place = load_study(study), _store(store)
    planned = make_plan(bound, place)
    if console is None or not planned.missing:
        summary = make_missing(bound, place, Silence())
    else:
        names = names_of(_arm_names(bound), closure(evaluations(bound)))
        with LiveProgress(planned, names, console) as watch:
            summary = make_missing(bound, place, watch)
    if summary.made:
        place.note_run(bound.name, _expected_and_taken(planned, summary))
    return summary


def _expected_and_taken(planned: "Plan", summary: "RunSummary") -> dict[str, Any]:
    """The plan's estimate of each station beside the time it took; told in the report."""
    from punnett.planner import STATION_WORDS

    taken = {STATION_WORDS[kind]: seconds for kind, seconds in summary.seconds.items()}
    return {
        "n_failed": len(summary.failed),
        "stations": [
            {"station": s.station, "n": s.missing, "expected_seconds": round(s.seconds, 1), "seconds": round(taken[s.station], 1)}
            for s in planned.stations
            if s.station in taken
        ],
    }


def findings(study: str | Path, store: str | Path | None = None) -> "Findings":
    """Every rate and contrast that the store's scores allow, with intervals, counts, verdicts and holes."""
    from punnett.analysis.effects import find_effects, score_reader
    from punnett.bind import load_study

    return find_effects(load_study(study), score_reader(_store(store)))


@dataclass(frozen=True)
class Report:
    """A written report: where its page lies, the finding in sentences, and how many measurements are missing."""

    page: Path
    sentences: tuple[str, ...]
    n_holes: int


def report(study: str | Path, store: str | Path | None = None, folder: str | Path | None = None) -> Report:
    """Write the study's report and its tables; returns where it lies and what it says. Makes no model call."""
    from punnett.analysis.effects import find_effects, score_reader
    from punnett.analysis.findings import sentences
    from punnett.bind import load_study
    from punnett.reporting.write import write_report

    bound, place = load_study(study), _store(store)
    found = find_effects(bound, score_reader(place))
    told = sentences(bound, found)
    target = Path(folder) if folder else place.root.parent / "reports" / bound.name
    return Report(write_report(bound, found, told, place, target), tuple(told), len(found.holes))


def status(study: str | Path, store: str | Path | None = None) -> "Status":
    """Stations by done, failed and missing, and every student with its key."""
    from punnett.bind import load_study
    from punnett.planner import status as count

    return count(load_study(study), _store(store))


def show(key: str, store: str | Path | None = None) -> dict[str, Any]:
    """One entry of the store by (a prefix of) its key: request, lineage, manifest and first rows. Raises StoreError."""
    from punnett.lineage import describe

    return describe(key, _store(store))


def verify_trainer(base: str, n_students: int = 8, say: Any = print, work_folder: Path | None = None) -> "Verification":
    """Train students of a base at once and one by one, and compare: with plain PEFT, with TRL if it is installed, and to the bit.

    Raises SpecError for an unknown base, RunError for one that students cannot share.
    """
    from punnett.bases import find_base
    from punnett.training.verify import verify

    return verify(find_base(base).location, n_students, say, work_folder)


def init(folder: str | Path) -> Path:
    """Write a commented study with its prompts into a new folder. Raises SpecError rather than overwrite anything."""
    import shutil
    from importlib.resources import as_file, files

    from punnett.errors import SpecError

    target = Path(folder)
    if target.exists() and any(target.iterdir()) if target.is_dir() else target.exists():
        raise SpecError(f"{target} exists already; `punnett init` overwrites nothing")
    with as_file(files("punnett") / "templates" / "study") as source:
        shutil.copytree(source, target, dirs_exist_ok=True)
    return target


def fetch(name: str) -> Path:
    """Download a model of the catalogue, or a hub model, once. Raises SpecError if nobody has it."""
    from punnett import bases

    return bases.fetch(name)


def _store(given: str | Path | None) -> Any:
    from punnett.runner import default_store
    from punnett.store import Store

    return Store(given or default_store())


def _arm_names(bound: Any) -> dict[str, str]:
    from punnett.spec.arms import arms
    from punnett.spec.key import content_key

    return {content_key(student): arm.name for arm in arms(bound) for student in arm.students}
