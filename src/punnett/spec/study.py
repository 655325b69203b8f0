"""A study file's text in, a checked StudyFile out: what the user wrote, before any file or model is looked up.

Every error names the key, what was found there, and the nearest valid word.
"""

from types import UnionType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from punnett.errors import SpecError, nearest
from punnett.spec.measure import Engine, Scalar
from punnett.spec.student import Recipe

InterventionName = Literal["switch", "drop", "drop_and_refill", "placebo", "insert"]
INTERVENTIONS: tuple[InterventionName, ...] = ("switch", "drop", "drop_and_refill", "placebo", "insert")


MAX_SEEDS = 1000
# names become arms, columns and file names
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Section(BaseModel):
    """A part of a study file: strict, so that a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PipelineFile(Section):
    """One pipeline: a base, prompts, and the teacher that wrote the rollouts."""

    base: str
    prompts: str
    teacher: str


class PromptsFile(Section):
    """A prompt file, whole or a nested random part."""

    file: str
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0


class TeacherFile(Section):
    """A real model (`model`, where `self` is the student's own base) or a scripted rewrite of another teacher (`rewrite`, `of`)."""

    model: str | None = None
    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(default=256, ge=1)
    rewrite: str | None = None
    of: str | None = None
    dose: float = Field(default=1.0, ge=0.0, le=1.0)
    seed: int = 0


class SubsetFile(Section):
    """Which prompts: exactly one of tag, fraction, ids, complement."""

    tag: str | None = None
    fraction: float | None = Field(default=None, ge=0.0, le=1.0)
    ids: tuple[str, ...] | None = None
    complement: str | None = None
    seed: int = 0


class MeasureFile(Section):
    """An Inspect task and how it is asked."""

    task: str
    arguments: dict[str, Scalar] = {}
    system_prompt: str | None = None
    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    max_tokens: int = Field(default=256, ge=1)


class ControlsFile(Section):
    """Arms that come along by default."""

    base: bool = True
    self_distillation: bool = True


class PipelinesFile(Section):
    """The pipeline whose model has the trait, and the one whose model has not."""

    original: PipelineFile
    alternate: PipelineFile


class StudyFile(Section):
    """A whole study, as written."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    question: str = ""
    system_prompt: str | None = None
    pipelines: PipelinesFile
    prompts: dict[str, PromptsFile] = {}
    teachers: dict[PlainName, TeacherFile]
    subsets: dict[PlainName, SubsetFile] = {}
    interventions: tuple[InterventionName, ...] = INTERVENTIONS
    traits: tuple[str | MeasureFile, ...] = Field(min_length=1)
    capabilities: tuple[str | MeasureFile, ...] = ()
    recipe: Recipe = Recipe()
    seeds: int | tuple[int, ...] = 3
    equivalence_margin: float = Field(default=0.1, gt=0.0, lt=1.0)
    contrasts: tuple[tuple[str, str], ...] = ()
    controls: ControlsFile = ControlsFile()
    engine: Engine = "punnett"

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The seeds: those listed, or 0, 1, ... for a count."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


def read_study(text: str, source: str = "the study") -> StudyFile:
    """Check a study's YAML. Raises SpecError with all that is wrong, one line each."""
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except Exception as error:  # PyYAML lets ValueError, KeyError, AttributeError and RecursionError through
        raise SpecError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{source} holds {type(content).__name__}, not a mapping; `punnett init` writes one to start from")
    try:
        # by way of JSON, where strict mode takes lists for tuples but still no "3" for 3
        import json

        study = StudyFile.model_validate_json(json.dumps(content, default=str, allow_nan=True))
    except ValidationError as error:
        raise SpecError("\n".join(f"{source}: {line}" for line in _explain(error))) from error
    except (ValueError, TypeError, RecursionError) as error:  # a mapping that holds itself, or keys that are no words
        raise SpecError(f"{source} cannot be read: {error}") from error
    _check_names(study, source)
    return study


class _StrictLoader(yaml.SafeLoader):
    """YAML without a second value for one key, which would silently win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f'the key "{key}" stands twice', key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        path = [str(part) for n, part in enumerate(problem["loc"]) if n == 0 or not _is_branch(part)]
        where = ".".join(path)
        match problem["type"]:
            case "extra_forbidden":
                lines.append(f'unknown key "{where}". {nearest(path[-1], _keys_beside(problem["loc"]))}')
            case "missing":
                lines.append(f'the key "{where}" is missing')
            case _:
                found = problem["input"]
                shown = repr(found) if not isinstance(found, dict | list) else type(found).__name__
                lines.append(f'"{where}" is {shown}: {problem["msg"][0].lower()}{problem["msg"][1:]}')
    # an entry that failed as one kind of a union, while it was a mapping meant as the other
    keys = [line for line in lines if line.startswith("unknown key")]
    misleading = (" is dict: input should be a valid string", " is list: tuple should have at least")
    return [line for line in lines if not (keys and any(words in line for words in misleading))]


def _is_branch(part: int | str) -> bool:
    """Whether a step of pydantic's path only names the branch of a union that was tried."""
    return part in ("str", "int", "MeasureFile") or str(part).startswith("tuple[")


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the section in which an unknown key was found."""
    kind: Any = StudyFile
    for part in location[:-1]:
        section = _section_of(kind)
        if section is None:  # a mapping's key or a place in a list: one step inside
            inner = [each for each in get_args(kind) if each is not ...]
            kind = inner[-1] if inner else None
        elif part != section.__name__:  # pydantic names the branch of a union, which is no step
            kind = section.model_fields[str(part)].annotation if part in section.model_fields else None
    section = _section_of(kind)
    return list(section.model_fields) if section else []


def _section_of(kind: Any) -> type[BaseModel] | None:
    """The section that a field's annotation is, or holds as one branch of a union."""
    branches = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((each for each in branches if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _check_names(study: StudyFile, source: str) -> None:
    """Names that one part uses must be defined in another."""
    teachers, subsets = list(study.teachers), list(study.subsets)
    for name, pipeline in (("original", study.pipelines.original), ("alternate", study.pipelines.alternate)):
        if pipeline.teacher not in teachers:
            raise SpecError(
                f'{source}: pipelines.{name} names the teacher "{pipeline.teacher}", which is not defined. {nearest(pipeline.teacher, teachers)}'
            )
    for name, teacher in study.teachers.items():
        _check_teacher(name, teacher, study, source)
    for name, subset in study.subsets.items():
        given = [k for k in ("tag", "fraction", "ids", "complement") if getattr(subset, k) is not None]
        if len(given) != 1:
            raise SpecError(f"{source}: subsets.{name} needs exactly one of tag, fraction, ids, complement; it has {', '.join(given) or 'none'}")
        if subset.complement is not None and (subset.complement not in subsets or subset.complement == name):
            others = [other for other in subsets if other != name]
            raise SpecError(
                f'{source}: subsets.{name} is the complement of "{subset.complement}", no other subset. {nearest(subset.complement, others)}'
            )
    if isinstance(study.seeds, int) and study.seeds > MAX_SEEDS:
        raise SpecError(f"{source}: seeds must be a count of at most {MAX_SEEDS}, not {study.seeds}")
    if len(set(study.interventions)) != len(study.interventions):
        raise SpecError(f"{source}: interventions names one twice")
    seeds = study.seed_values
    if not seeds or len(set(seeds)) != len(seeds):
        raise SpecError(f"{source}: seeds must be a count of at least 1 or a list of different numbers, not {study.seeds!r}")


def _check_teacher(name: str, teacher: TeacherFile, study: StudyFile, source: str) -> None:
    if (teacher.model is None) == (teacher.rewrite is None):
        raise SpecError(f"{source}: teachers.{name} needs exactly one of model (a real one) and rewrite (a scripted one)")
    if teacher.rewrite is None:
        return
    real = [n for n, t in study.teachers.items() if t.model is not None]
    if teacher.of not in real:
        raise SpecError(
            f'{source}: teachers.{name} rewrites the answers of "{teacher.of}", which is no real teacher. {nearest(str(teacher.of), real)}'
        )
