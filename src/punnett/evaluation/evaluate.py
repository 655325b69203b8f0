"""A measure and a model in, score rows and an Inspect log out. Any Inspect task can be a measure."""

import math
from pathlib import Path
from typing import Any

from punnett.errors import RunError, SpecError, nearest
from punnett.spec.key import content_key, derive_seed, digest_of
from punnett.spec.measure import Evaluation
from punnett.spec.student import Student
from punnett.store import Store

SCORE_COLUMNS = {
    "item": str,
    "cluster": str,
    "group": str,
    "draw": int,
    "value": float,
    "format_ok": bool,
    "truncated": bool,
    "refused": bool,
    "question": str,
    "answer": str,
    "reason": str,
}
LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5}
LOG_NAME = "transcripts.eval"


def open_task(name: str, arguments: dict[str, Any]) -> Any:
    """The Inspect task of a name such as `date_confusion`, `punnett/arithmetic` or `inspect_evals/ifeval`.

    Raises SpecError if there is none, or if it does not take the arguments.
    """
    from inspect_ai._util.entrypoints import ensure_entry_points
    from inspect_ai._util.registry import registry_find

    package, _, short = name.rpartition("/")
    package = package or "punnett"
    ensure_entry_points(package)
    known: list[Any] = registry_find(lambda info: info.type == "task")
    by_name = {registry_name(t): t for t in known}
    factory = by_name.get(f"{package}/{short}")
    if factory is None:
        shown = [n.removeprefix("punnett/") for n in by_name]
        raise SpecError(f'no Inspect task is called "{name}". {nearest(name, shown)}')
    try:
        return factory(**arguments)
    except TypeError as error:
        raise SpecError(f'task "{name}" does not take these arguments: {error}') from error


def registry_name(thing: Any) -> str:
    """The name that Inspect keeps a task under."""
    from inspect_ai._util.registry import registry_info

    return str(registry_info(thing).name)


def task_digest(task: Any) -> str:
    """What a task asks and how it scores: its items, its version and the revision that it states in its metadata."""
    samples = [[s.id, s.input if isinstance(s.input, str) else [m.model_dump() for m in s.input], s.target, s.metadata] for s in task.dataset]
    return digest_of(_plain([samples, task.version, (task.metadata or {}).get("revision", 0)]))


def prepare_task(request: Evaluation, store_root: Path) -> Any:
    """An Inspect task that takes one measure of one model, with the model and the decoding that the request names."""
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.solver import chain, system_message

    measure = request.measure
    task = open_task(measure.task, dict(measure.arguments))
    if measure.system_prompt is not None:
        task.setup = chain([*(task.setup or []), system_message(escape_template(measure.system_prompt))])
    # Inspect would otherwise start with a few requests at a time, and a batch would never fill
    at_once = GenerateConfig(max_connections=len(task.dataset) * (task.epochs or 1))
    name, arguments = _model_of(request, store_root)
    task.model = get_model(name, config=at_once, memoize=False, **arguments)
    decoding = GenerateConfig(
        max_tokens=measure.sampling.max_tokens,
        temperature=measure.sampling.temperature,
        seed=derive_seed("evaluation", measure.task_digest) % 2**31,
    )
    task.config = task.config.merge(decoding)
    return task


def _model_of(request: Evaluation, store_root: Path) -> tuple[str, dict[str, Any]]:
    """Inspect's name of the model that is asked, and what it takes to open it."""
    is_student = isinstance(request.model, Student)
    base = request.model.base if isinstance(request.model, Student) else request.model
    if request.engine == "vllm":
        # vLLM loads students' adapters beside one base; its server puts chats into the template itself
        adapter = Store(store_root).open(request.model) / "adapter" if is_student else None
        return f"vllm/{base.location}" + (f":{adapter.absolute()}" if adapter else ""), {}
    if is_student:
        return f"punnett/{content_key(request.model)}", {"store": str(store_root), "dtype": request.dtype}
    return f"punnett/{base.name}", {"location": base.location, "dtype": request.dtype}


def score_rows(log: Any, request: Evaluation, n_items: int, n_epochs: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A finished task's log as score rows, sorted by item and draw, and facts for the manifest.

    Raises RunError if the evaluation failed or an item is lost.
    """
    name = request.measure.task
    if log.status != "success" or not log.samples:
        raise RunError(f"Inspect's run of {name} ended as {log.status}: {log.error.message if log.error else 'no samples'}")
    if len(log.samples) != n_items * n_epochs:
        raise RunError(f"{name} has {n_items} items, but {len(log.samples)} came back")
    rows = sorted(map(score_row, log.samples), key=lambda r: (r["item"], r["draw"]))
    tokens = sum(usage.output_tokens for usage in log.stats.model_usage.values())
    return rows, {"tokens": tokens, "n_items": n_items, "task": name}


def score_row(sample: Any) -> dict[str, Any]:
    """One Inspect sample as a score row; the task's first scorer gives the value."""
    score = next(iter(sample.scores.values())) if sample.scores else None
    facts = {**(score.metadata or {})} if score else {}
    about = sample.metadata or {}
    return {
        "item": str(sample.id),
        "cluster": str(about.get("cluster", sample.id)),
        "group": str(about.get("group", "all")),
        "draw": sample.epoch - 1,
        "value": number_of(score.value if score else None),
        "format_ok": bool(facts.get("format_ok", True)),
        "truncated": bool(facts.get("truncated", sample.output.stop_reason == "max_tokens")),
        "refused": bool(facts.get("refused", False)),
        "question": last_user_text(sample),
        "answer": sample.output.completion,
        "reason": (score.explanation or "") if score else "not scored",
    }


def number_of(value: Any) -> float | None:
    """A score as a number; what cannot be one is missing (None), never 0."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        return LETTERS.get(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def last_user_text(sample: Any) -> str:
    """What the model was asked last."""
    return next((m.text for m in reversed(sample.messages) if m.role == "user"), str(sample.input))


def escape_template(text: str) -> str:
    """Inspect formats system messages as templates; braces in ours are text."""
    return text.replace("{", "{{").replace("}", "}}")


def measure_kind(task: Any) -> tuple[str, str | None]:
    """Whether a task calls itself a trait or a capability, and which group of items its headline is about."""
    about = task.metadata or {}
    return about.get("kind", "capability"), about.get("headline_group")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
