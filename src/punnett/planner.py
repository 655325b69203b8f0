"""Study and store in, plan out: what is missing, what it will cost, how sharp the answer can be, and what cannot work."""

import json
import math
import shutil
from dataclasses import dataclass

from punnett.bases import load_tokenizer
from punnett.chat import ChatFormat
from punnett.errors import SpecError
from punnett.spec.arms import Arm, BoundStudy, arms, evaluations
from punnett.spec.graph import STATIONS, closure
from punnett.spec.key import Noun, content_key
from punnett.spec.measure import Evaluation
from punnett.spec.mix import Mix
from punnett.spec.prompt import PromptSet
from punnett.spec.student import Student
from punnett.spec.teacher import ModelTeacher, RolloutSet
from punnett.store import Store

STATION_WORDS: dict[type[Noun], str] = {
    PromptSet: "prompts",
    RolloutSet: "rollouts",
    Mix: "mixes",
    Student: "students",
    Evaluation: "evaluations",
}
# tokens per second where this store has measured none yet: a small model on two cores. Training is measured instead.
USUAL_TOKENS_PER_SECOND = {RolloutSet: 200.0, Evaluation: 200.0}
SECONDS_PER_REQUEST = {PromptSet: 0.1, RolloutSet: 3.0, Mix: 0.1, Student: 0.3, Evaluation: 0.5}
TOKENS_PER_PROMPT, ANSWER_SHARE_OF_LIMIT = 40, 0.6
ADAPTER_BYTES_PER_RANK_AND_WEIGHT = 0.0094  # an all-linear adapter of rank 1 in float32, as a share of the base's parameters, times 4
SEED_STANDARD_DEVIATION = 0.05


@dataclass(frozen=True)
class StationPlan:
    """One station's requests; tokens and seconds are for the missing ones."""

    station: str
    total: int
    done: int
    failed: int
    missing: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run would do. `half_width` is that of a 95 % interval of a difference between two rates near one half."""

    study: str
    stations: tuple[StationPlan, ...]
    arms: tuple[tuple[str, str, int], ...]
    half_widths: tuple[tuple[str, float, float], ...]
    disk_bytes: int
    free_bytes: int
    notes: tuple[str, ...]
    sharing: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Estimated time for all that is missing."""
        return sum(s.seconds for s in self.stations)

    @property
    def missing(self) -> int:
        """Requests to be made."""
        return sum(s.missing for s in self.stations)


@dataclass(frozen=True)
class StudentState:
    """One student by its arm and seed: the key by which Inspect asks it, and whether it is done, failed or missing."""

    arm: str
    seed: int
    key: str
    state: str


@dataclass(frozen=True)
class Status:
    """How far a study is: its stations, and every student."""

    stations: tuple[StationPlan, ...]
    students: tuple[StudentState, ...]

    @property
    def missing(self) -> int:
        """Requests to be made."""
        return sum(s.missing for s in self.stations)


def status(study: BoundStudy, store: Store) -> Status:
    """Count stations by done, failed and missing, and list the students. Loads no model."""
    stations, _ = _count(study, store, measure=False)
    students = tuple(StudentState(arm.name, s.seed, content_key(s), _state(s, store)) for arm in arms(study) for s in arm.students)
    return Status(stations, students)


def _count(study: BoundStudy, store: Store, measure: bool) -> tuple[tuple[StationPlan, ...], list[Noun]]:
    """Every station's counts, and the requests that are missing. With `measure` this machine's speed is measured where nobody has yet."""
    everything = closure(evaluations(study))
    missing = [r for r in everything if not store.has(r)]
    return tuple(_station(kind, everything, missing, study, store, measure) for kind in STATIONS), missing


def _state(student: Student, store: Store) -> str:
    if store.has(student):
        return "done"
    return "failed" if store.failure(student) else "missing"


def plan(study: BoundStudy, store: Store) -> Plan:
    """Check what can be checked and estimate the rest. Raises SpecError for what cannot work."""
    for base in {content_key(p.base): p.base for p in (study.original, study.alternate)}.values():
        ChatFormat(load_tokenizer(base.location)).check()
    stations, missing = _count(study, store, measure=True)
    disk = sum(_adapter_bytes(r) for r in missing if isinstance(r, Student))
    free = shutil.disk_usage(_existing(store)).free
    if disk > free:
        raise SpecError(f"the missing students need about {disk / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free at {store.root}")
    return Plan(
        study=study.name,
        stations=stations,
        arms=tuple((arm.name, arm.meaning, len(arm.students)) for arm in arms(study)),
        half_widths=tuple(
            (name, *_half_widths(study, size.n_headline_items, size.n_headline_clusters)) for name, size in study.measure_sizes.items()
        ),
        disk_bytes=disk,
        free_bytes=free,
        notes=tuple(_notes(study, arms(study))),
        sharing=tuple(_sharing([r for r in missing if isinstance(r, Student)], study)),
    )


def _sharing(students: list[Student], study: BoundStudy) -> list[str]:
    """For every base that has students to train: how many will train at once, from what was measured on this machine."""
    from punnett.shared_base.machine import free_bytes
    from punnett.shared_base.share import load_shared
    from punnett.training.capacity import adapter_bytes, fit, training_speed

    lines = []
    for (location, dtype), group in _by_base(students).items():
        recipe = group[0].stages[0].recipe
        speed = training_speed(location, dtype, recipe.lora_rank)
        epoch_tokens = estimated_tokens(group[0], study) / recipe.epochs
        step_tokens = max(1.0, epoch_tokens / max(1, _n_prompts(group[0].stages[0].mix.rollouts.prompts)) * recipe.batch_size)
        shared = load_shared(location, dtype)
        together = fit(speed, step_tokens, adapter_bytes(shared.sites, recipe.lora_rank), free_bytes(shared.device))
        n = min(together.students_at_once, len(group))
        lines.append(
            f"{len(group)} students of {group[0].base.name} train {n} at once on {together.workers} workers, passes of up to "
            f"{together.tokens_per_pass} tokens: {speed.best_speed:.0f} tokens per second measured here"
        )
    return lines


def _by_base(students: list[Student]) -> dict[tuple[str, str], list[Student]]:
    groups: dict[tuple[str, str], list[Student]] = {}
    for student in students:
        groups.setdefault((student.base.location, student.stages[0].recipe.dtype), []).append(student)
    return groups


def _training_speed(students: list[Student]) -> float | None:
    """Tokens per second of training as measured on this machine, over the bases of these students."""
    from punnett.training.capacity import training_speed

    groups = _by_base(students)
    if not groups:
        return None
    seconds_per_token = [len(g) / training_speed(*where, g[0].stages[0].recipe.lora_rank).best_speed for where, g in groups.items()]
    return len(students) / sum(seconds_per_token)


def _station(kind: type[Noun], everything: list[Noun], missing: list[Noun], study: BoundStudy, store: Store, measure: bool) -> StationPlan:
    requests = [r for r in everything if isinstance(r, kind)]
    to_do = [r for r in missing if isinstance(r, kind)]
    failed = sum(store.failure(r) is not None for r in to_do)
    tokens = sum(estimated_tokens(r, study) for r in to_do)
    speed = measured_speed(kind, store) if tokens else None
    if speed is None and measure:
        speed = _training_speed([r for r in to_do if isinstance(r, Student)])
    speed = speed or USUAL_TOKENS_PER_SECOND.get(kind, 200.0)
    seconds = tokens / speed + len(to_do) * SECONDS_PER_REQUEST.get(kind, 0.0)
    return StationPlan(STATION_WORDS[kind], len(requests), len(requests) - len(to_do), failed, len(to_do), tokens, seconds)


def estimated_tokens(request: Noun, study: BoundStudy) -> int:
    """Tokens that are generated, or trained on with their prompts, before anything of it is made."""
    match request:
        case RolloutSet(teacher=ModelTeacher() as teacher):
            return int(_n_prompts(request.prompts) * request.draws * teacher.sampling.max_tokens * ANSWER_SHARE_OF_LIMIT)
        case Student(stages=(stage,)):
            writer = stage.mix.rollouts.teacher
            source = writer if isinstance(writer, ModelTeacher) else writer.of
            answer = source.sampling.max_tokens * ANSWER_SHARE_OF_LIMIT
            return int(_n_prompts(stage.mix.rollouts.prompts) * stage.recipe.epochs * (TOKENS_PER_PROMPT + answer))
        case Evaluation(measure=measure):
            size = study.measure_sizes[measure.name]
            return int(size.n_items * measure.sampling.max_tokens * ANSWER_SHARE_OF_LIMIT)
        case _:
            return 0


def measured_speed(kind: type[Noun], store: Store) -> float | None:
    """Tokens per second of this store's entries of a kind, or None where there are none."""
    tokens = seconds = 0.0
    for path in store.root.glob(f"{kind.__name__.lower()}/??/*/manifest.json"):
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        work = manifest.get("work", {})
        tokens += work.get("tokens", 0)
        seconds += work.get("seconds", manifest.get("seconds", 0.0))  # what is made at once tells its share of the time
    return tokens / seconds if tokens > 100 and seconds > 1 else None


def _half_widths(study: BoundStudy, n_items: int, n_clusters: int) -> tuple[float, float]:
    """Half-width of a difference's 95 % interval, for rates near one half and near 0 or 1, if seeds differ by 5 points."""
    n_students = len(study.seeds)

    def half(rate: float) -> float:
        cell = 2 * rate * (1 - rate) / max(n_items / n_clusters, 1)
        seed = 2 * SEED_STANDARD_DEVIATION**2
        if n_students == 1:
            return float("nan")
        from scipy.stats import t

        return float(t.ppf(0.975, n_students - 1) * math.sqrt((cell + n_clusters * seed) / (n_students * n_clusters)))

    return half(0.5), half(0.05)


def _notes(study: BoundStudy, found: list[Arm]) -> list[str]:
    notes = []
    if len(study.seeds) < 3:
        notes.append(f"{len(study.seeds)} seed(s): differences between students cannot be told from luck; three or more are usual")
    if not study.with_base or not study.with_self_distillation:
        notes.append("a control is switched off: without the base and self-distillation the report cannot say what training alone does")
    for arm in found:
        notes += [f'"{alias}" is the same training as "{arm.name}", so they share students' for alias in arm.aliases]
    if not study.capabilities_measured:
        notes.append("no capability is measured: a cost would go unseen")
    return notes


def _n_prompts(prompts: PromptSet) -> int:
    from pathlib import Path

    from punnett.data.gather import read_prompts

    n = len(read_prompts(Path(prompts.location)))
    return min(n, prompts.limit or n)


def _adapter_bytes(student: Student) -> int:
    from pathlib import Path

    weights = sum(p.stat().st_size for p in Path(student.base.location).glob("*.safetensors"))
    return int(weights * ADAPTER_BYTES_PER_RANK_AND_WEIGHT * student.stages[0].recipe.lora_rank / 4)


def _existing(store: Store) -> str:
    """The nearest folder above the store that exists, to ask for free space."""
    return str(next(p for p in (store.root, *store.root.absolute().parents) if p.exists()))
