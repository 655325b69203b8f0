"""A bound study in, its arms and contrasts out: the algebra of the experiment. No input or output.

An arm is what the study asks about; a student is one replicate of it. Two arms that mean the same training are
the same students under two names.
"""

from dataclasses import dataclass, field, replace

from punnett.errors import SpecError, nearest
from punnett.spec.key import content_key
from punnett.spec.measure import Engine, Evaluation, Measure
from punnett.spec.mix import Drop, DropAndRefill, Intervention, Mix, PlaceboSelection, Selection, Switch
from punnett.spec.prompt import PromptSet
from punnett.spec.student import Recipe, Stage, Student
from punnett.spec.teacher import Base, RolloutSet, Teacher

BASE, NULL, ORIGINAL, ALTERNATE = "base", "self_distilled", "original", "alternate"


@dataclass(frozen=True)
class Pipeline:
    """A base, prompts and a teacher, looked up."""

    base: Base
    prompts: PromptSet
    teacher: Teacher


@dataclass(frozen=True)
class Arm:
    """One cell of the experiment: its students, one per seed, or the untouched base (no students)."""

    name: str
    meaning: str
    base: Base
    students: tuple[Student, ...]
    aliases: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[Student | Base, ...]:
        """What is measured."""
        return self.students or (self.base,)


@dataclass(frozen=True)
class BoundContrast:
    """One arm against another. Primary contrasts share one error rate on each measure (Holm)."""

    arm: str
    versus: str
    question: str
    primary: bool = True


@dataclass(frozen=True)
class MeasureSize:
    """How many items a measure asks, and how many items and clusters its headline rests on."""

    n_items: int
    n_headline_items: int
    n_headline_clusters: int


@dataclass(frozen=True)
class BoundStudy:
    """A study whose names are looked up: everything the runner, the statistics and the report need."""

    name: str
    question: str
    system_prompt: str | None
    original: Pipeline
    alternate: Pipeline
    self_teacher: Teacher
    subsets: dict[str, Selection]
    interventions: tuple[str, ...]
    measures: tuple[Measure, ...]
    recipe: Recipe
    seeds: tuple[int, ...]
    equivalence_margin: float
    declared_contrasts: tuple[tuple[str, str], ...]
    engine: Engine = "punnett"
    with_base: bool = True
    with_self_distillation: bool = True
    text: str = ""
    measure_sizes: dict[str, MeasureSize] = field(default_factory=dict)

    @property
    def capabilities_measured(self) -> bool:
        """Whether any measure is a capability."""
        return any(measure.kind == "capability" for measure in self.measures)


def arms(study: BoundStudy) -> list[Arm]:
    """Every arm of a study, controls first; an arm that repeats another's students is merged into it."""
    plain, original = _rollouts(study, study.original, study.self_teacher), _rollouts(study, study.original, study.original.teacher)
    other = _rollouts(study, study.original, study.alternate.teacher)
    found: list[Arm] = []
    if study.with_base:
        found.append(Arm(BASE, "the untouched base", study.original.base, ()))
    if study.with_self_distillation:
        found.append(_arm(study, NULL, "trained on the base's own answers: the null", Mix(rollouts=plain)))
    found.append(_arm(study, ORIGINAL, f"the original pipeline: every rollout by {study.original.teacher.name}", Mix(rollouts=original)))
    alternate = _rollouts(study, study.alternate, study.alternate.teacher)
    name = study.alternate.teacher.name
    found.append(_arm(study, ALTERNATE, f"the alternate pipeline: every rollout by {name}", Mix(rollouts=alternate), study.alternate.base))
    for subset, selection in study.subsets.items():
        found += _subset_arms(study, subset, selection, original, other)
    return _merged([_paired(study, arm) for arm in found])


def _subset_arms(study: BoundStudy, subset: str, selection: Selection, original: RolloutSet, other: RolloutSet) -> list[Arm]:
    """Switch, drop, drop and refill, placebo and insert of one subset, as far as the study wants them."""
    to, by = study.alternate.teacher.name, study.original.teacher.name
    placebo = PlaceboSelection(of=selection)
    meanings: dict[str, tuple[str, RolloutSet, Intervention]] = {
        "switch": (f"{subset} answered by {to} instead of {by}", original, Switch(selection=selection, to=other)),
        "drop": (f"{subset} left out, fewer steps", original, Drop(selection=selection)),
        "drop_and_refill": (f"{subset} left out, other rows repeated in their place, same steps", original, DropAndRefill(selection=selection)),
        "placebo": (f"as many random other prompts answered by {to}", original, Switch(selection=placebo, to=other)),
        "insert": (f"only {subset} answered by {by}, all else by {to}", other, Switch(selection=selection, to=original)),
    }
    made = []
    for kind in study.interventions:
        meaning, rollouts, intervention = meanings[kind]
        made.append(_arm(study, f"{kind}:{subset}", meaning, Mix(rollouts=rollouts, interventions=(intervention,))))
    return made


def _rollouts(study: BoundStudy, pipeline: Pipeline, teacher: Teacher) -> RolloutSet:
    return RolloutSet(prompts=pipeline.prompts, teacher=teacher, system_prompt=study.system_prompt)


def _arm(study: BoundStudy, name: str, meaning: str, mix: Mix, base: Base | None = None) -> Arm:
    stage = Stage(mix=mix, recipe=study.recipe, system_prompt=study.system_prompt)
    base = base or study.original.base
    return Arm(name, meaning, base, tuple(Student(base=base, stages=(stage,), seed=seed) for seed in study.seeds))


def _paired(study: BoundStudy, arm: Arm) -> Arm:
    """Make every arm leave out the prompts that any teacher of the study left unfinished, so that arms train on the same ones."""
    if not arm.students:
        return arm
    prompts = arm.students[0].stages[0].mix.rollouts.prompts
    teachers = {content_key(t): t for t in (study.self_teacher, study.original.teacher, study.alternate.teacher)}
    pairs = tuple(RolloutSet(prompts=prompts, teacher=teachers[key], system_prompt=study.system_prompt) for key in sorted(teachers))
    students = tuple(
        s.model_copy(update={"stages": tuple(g.model_copy(update={"mix": g.mix.model_copy(update={"paired_with": pairs})}) for g in s.stages)})
        for s in arm.students
    )
    return Arm(arm.name, arm.meaning, arm.base, students)


def _merged(found: list[Arm]) -> list[Arm]:
    by_students: dict[tuple[str, ...], Arm] = {}
    for arm in found:
        key = tuple(content_key(model) for model in arm.models)
        if key in by_students:
            first = by_students[key]
            meaning = f"{first.meaning}; also {arm.meaning}"
            arm = Arm(first.name, meaning, first.base, first.students, (*first.aliases, arm.name))
        by_students[key] = arm
    return list(by_students.values())


def evaluation_of(study: BoundStudy, model: Student | Base, measure: Measure) -> Evaluation:
    """One measure of one model, in the precision that the study trains in."""
    return Evaluation(model=model, measure=measure, dtype=study.recipe.dtype, engine=study.engine)


def evaluations(study: BoundStudy) -> list[Evaluation]:
    """Every measure of every model of the study."""
    return [evaluation_of(study, model, measure) for arm in arms(study) for model in arm.models for measure in study.measures]


def contrasts(study: BoundStudy) -> list[BoundContrast]:
    """The declared contrasts, or the standard ones. Raises SpecError for an arm that the study does not have."""
    names = {alias: arm.name for arm in arms(study) for alias in (arm.name, *arm.aliases)}
    for name in (name for pair in study.declared_contrasts for name in pair):
        if name not in names:
            raise SpecError(f'a contrast names the arm "{name}", which the study does not have. {nearest(name, list(names))}')
    if study.declared_contrasts:
        return [BoundContrast(names[a], names[b], "declared in the study") for a, b in study.declared_contrasts]
    standard = [c for c in _standard_contrasts(study) if c.arm in names and c.versus in names]
    named = [replace(c, arm=names[c.arm], versus=names[c.versus]) for c in standard]
    return list({(c.arm, c.versus): c for c in reversed(named) if c.arm != c.versus}.values())[::-1]


def _standard_contrasts(study: BoundStudy) -> list[BoundContrast]:
    null = NULL if study.with_self_distillation else ALTERNATE
    found = [
        BoundContrast(ORIGINAL, null, "what the teacher's rollouts change"),
        BoundContrast(null, BASE, "what training alone changes"),
    ]
    for subset in study.subsets:
        found += [
            BoundContrast(f"switch:{subset}", ORIGINAL, f"what switching {subset} changes"),
            BoundContrast(f"drop:{subset}", ORIGINAL, f"what dropping {subset} changes"),
            BoundContrast(f"drop_and_refill:{subset}", ORIGINAL, f"what dropping {subset} changes at equal steps"),
            BoundContrast(f"placebo:{subset}", ORIGINAL, "what switching as many others changes"),
            BoundContrast(f"switch:{subset}", f"drop:{subset}", "switch against drop: the patch-ablate gap"),
            BoundContrast(f"insert:{subset}", null, f"what inserting {subset} alone changes"),
        ]
    return found
