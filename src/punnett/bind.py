"""Study file in, bound study out: finds bases, reads prompt files, opens tasks. All that can be refused early is refused here."""

from pathlib import Path
from typing import Any

from punnett.bases import find_base
from punnett.data.gather import content_digest, read_prompts, take
from punnett.data.rewrites import REWRITES
from punnett.data.select import select
from punnett.errors import SpecError, nearest
from punnett.spec.arms import BoundStudy, MeasureSize, Pipeline, contrasts
from punnett.spec.measure import Engine, Measure
from punnett.spec.mix import ComplementSelection, FractionSelection, IdSelection, PlaceboSelection, Selection, TagSelection
from punnett.spec.prompt import Prompt, PromptSet
from punnett.spec.study import MeasureFile, PipelineFile, StudyFile, read_study
from punnett.spec.teacher import Base, ModelTeacher, Sampling, ScriptedTeacher, Teacher

SELF = "self"


def load_study(path: Path | str) -> BoundStudy:
    """Read and bind the study file at `path`. Raises SpecError for anything that cannot work, before any compute."""
    path = Path(path)
    if path.is_dir():
        path = path / "study.yaml"
    if not path.is_file():
        raise SpecError(f"there is no study file {path}; `punnett init {path}` writes one to start from")
    text = path.read_text(encoding="utf-8")
    return bind(read_study(text, path.name), path.parent, text)


def bind(study: StudyFile, folder: Path, text: str = "") -> BoundStudy:
    """Look up every name of a study; relative paths are taken from `folder`."""
    original = _pipeline(study, study.pipelines.original, folder)
    alternate = _pipeline(study, study.pipelines.alternate, folder)
    subsets = {name: _selection(study, name) for name in study.subsets}
    prompts = _read(study, study.pipelines.original, folder)[1]
    for name, selection in subsets.items():
        _check_subset(study, name, selection, prompts)
    measures, sizes = _measures(study)
    bound = BoundStudy(
        name=study.name,
        question=study.question,
        system_prompt=study.system_prompt,
        original=original,
        alternate=alternate,
        self_teacher=_self_teacher(study, original.base),
        subsets=subsets,
        interventions=study.interventions,
        measures=measures,
        recipe=study.recipe,
        seeds=study.seed_values,
        equivalence_margin=study.equivalence_margin,
        declared_contrasts=study.contrasts,
        engine=_engine(study),
        with_base=study.controls.base,
        with_self_distillation=study.controls.self_distillation,
        text=text,
        measure_sizes=sizes,
    )
    contrasts(bound)  # refuses arms that do not exist
    return bound


def _engine(study: StudyFile) -> Engine:
    """Who answers for students; vLLM has to be installed, or to run somewhere already."""
    import importlib.util
    import os

    if study.engine == "vllm" and not os.environ.get("VLLM_BASE_URL") and importlib.util.find_spec("vllm") is None:
        raise SpecError("engine: vllm needs vLLM, which is not installed; install it, name a running server in $VLLM_BASE_URL, or leave engine out")
    return study.engine


def _pipeline(study: StudyFile, pipeline: PipelineFile, folder: Path) -> Pipeline:
    base = find_base(pipeline.base, folder)
    prompts, _ = _read(study, pipeline, folder)
    return Pipeline(base, prompts, _teacher(study, pipeline.teacher, base))


def _read(study: StudyFile, pipeline: PipelineFile, folder: Path) -> tuple[PromptSet, list[Prompt]]:
    """A pipeline's prompts: a name under `prompts:`, or a path."""
    entry = study.prompts.get(pipeline.prompts)
    file, limit, seed = (entry.file, entry.limit, entry.seed) if entry else (pipeline.prompts, None, 0)
    path = (folder / file).resolve()
    if not path.is_file():
        beside = [p.name for p in folder.glob("*") if p.suffix in (".jsonl", ".json", ".csv", ".parquet")]
        raise SpecError(
            f'the prompts "{pipeline.prompts}" are neither defined under prompts: nor a file. {nearest(pipeline.prompts, [*study.prompts, *beside])}'
        )
    prompts = read_prompts(path)
    noun = PromptSet(name=pipeline.prompts, location=str(path), content_digest=content_digest(prompts), limit=limit, seed=seed)
    return noun, take(prompts, limit, seed)


def _teacher(study: StudyFile, name: str, base: Base) -> Teacher:
    entry = study.teachers[name]
    if entry.model is not None:
        sampling = Sampling(temperature=entry.temperature, top_p=entry.top_p, max_tokens=entry.max_tokens)
        return ModelTeacher(name=name, model=_model(name, entry.model, base), sampling=sampling)
    script = REWRITES.get(str(entry.rewrite))
    if script is None:
        raise SpecError(f'teachers.{name} names the rewrite "{entry.rewrite}", which there is not. {nearest(str(entry.rewrite), list(REWRITES))}')
    source = _teacher(study, str(entry.of), base)
    assert isinstance(source, ModelTeacher)
    return ScriptedTeacher(name=name, of=source, rewrite=script.name, rewrite_revision=script.revision, dose=entry.dose, seed=entry.seed)


def _model(teacher: str, name: str, base: Base) -> str | Base:
    if name == SELF:
        return base
    if "/" not in name:
        return find_base(name)
    from inspect_ai._util.entrypoints import ensure_entry_points
    from inspect_ai._util.registry import registry_find, registry_info

    provider = name.split("/", 1)[0]
    ensure_entry_points()
    known = sorted({str(registry_info(t).name).split("/")[-1] for t in registry_find(lambda info: info.type == "modelapi")})
    if provider not in known:
        raise SpecError(f'teachers.{teacher}: "{provider}" is no model provider of Inspect\'s. {nearest(provider, known)}')
    return name


def _self_teacher(study: StudyFile, base: Base) -> Teacher:
    """Self-distillation answers as the study's own `self` teacher does, if it has one, so that the two are one arm."""
    for name, entry in study.teachers.items():
        if entry.model == SELF:
            return _teacher(study, name, base)
    return ModelTeacher(name=SELF, model=base)


def _selection(study: StudyFile, name: str, depth: int = 0) -> Selection:
    if depth > len(study.subsets):
        raise SpecError(f"subsets.{name} is a complement of itself by a detour")
    subset = study.subsets[name]
    if subset.tag is not None:
        return TagSelection(tag=subset.tag)
    if subset.fraction is not None:
        return FractionSelection(fraction=subset.fraction, seed=subset.seed)
    if subset.ids is not None:
        return IdSelection(ids=subset.ids)
    return ComplementSelection(of=_selection(study, str(subset.complement), depth + 1))


def _check_subset(study: StudyFile, name: str, selection: Selection, prompts: list[Prompt]) -> None:
    try:
        chosen = select(selection, prompts)
        if "placebo" in study.interventions:
            select(PlaceboSelection(of=selection), prompts)
    except SpecError as error:
        raise SpecError(f"subsets.{name}: {error}") from error
    if isinstance(selection, IdSelection) and (unknown := set(selection.ids) - chosen):
        raise SpecError(f"subsets.{name} names ids that no prompt has: {', '.join(sorted(unknown)[:5])}")


def _measures(study: StudyFile) -> tuple[tuple[Measure, ...], dict[str, MeasureSize]]:
    measures: list[Measure] = []
    sizes: dict[str, MeasureSize] = {}
    for kind, entries in (("trait", study.traits), ("capability", study.capabilities)):
        for entry in entries:
            measure, size = _measure(study, MeasureFile(task=entry) if isinstance(entry, str) else entry, kind)
            if measure.name in sizes:
                raise SpecError(f'the measure "{measure.name}" is listed twice')
            measures.append(measure)
            sizes[measure.name] = size
    return tuple(measures), sizes


def _measure(study: StudyFile, entry: MeasureFile, kind: Any) -> tuple[Measure, MeasureSize]:
    from punnett.evaluation.evaluate import measure_kind, open_task, task_digest

    task = open_task(entry.task, dict(entry.arguments))
    headline = measure_kind(task)[1]
    asked = [s for s in task.dataset if headline in (None, (s.metadata or {}).get("group"))]
    clusters = {str((s.metadata or {}).get("cluster", s.id)) for s in asked}
    measure = Measure(
        name=entry.task.rpartition("/")[2],
        kind=kind,
        headline_group=headline,
        task=entry.task,
        task_digest=task_digest(task),
        arguments=tuple(sorted(entry.arguments.items())),
        system_prompt=entry.system_prompt if entry.system_prompt is not None else study.system_prompt,
        sampling=Sampling(temperature=entry.temperature, max_tokens=entry.max_tokens),
    )
    return measure, MeasureSize(len(task.dataset), len(asked), len(clusters))
