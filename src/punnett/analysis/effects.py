"""Score rows in, effects out: rates of arms and paired contrasts, each with interval, counts, method and verdict."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy

from punnett import stats
from punnett.spec.arms import Arm, BoundStudy, arms, contrasts, evaluation_of
from punnett.spec.key import content_key
from punnett.spec.measure import Effect, Evaluation, Measure

HEADLINE = "headline"
ReadScores = Callable[[Evaluation], list[dict[str, Any]] | None]


@dataclasses.dataclass(frozen=True)
class Answers:
    """One arm's values on one group of items: students by clusters, and the counts that stand beside them."""

    table: stats.Table
    clusters: tuple[str, ...]
    seeds: tuple[int | None, ...]
    n_items: int
    n_missing: int


@dataclasses.dataclass(frozen=True)
class Findings:
    """All effects of a study: `rates` per arm, measure and group; `contrasts` per measure on its headline group."""

    rates: tuple[Effect, ...]
    contrasts: tuple[Effect, ...]
    holes: tuple[str, ...]
    # share of an arm's answers that hit the limit of tokens, by (measure, arm): what looks like a loss may be length
    cut_off: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)

    def rate(self, arm: str, measure: str, group: str = HEADLINE) -> Effect | None:
        """One arm's rate, if it was measured."""
        return next((e for e in self.rates if (e.arm, e.measure, e.group) == (arm, measure, group)), None)

    def contrast(self, arm: str, versus: str, measure: str) -> Effect | None:
        """One arm against another, if both were measured."""
        return next((e for e in self.contrasts if (e.arm, e.versus, e.measure) == (arm, versus, measure)), None)


def find_effects(study: BoundStudy, read: ReadScores) -> Findings:
    """Estimate every rate and contrast from the scores that exist; what is missing is listed as a hole."""
    rates: list[Effect] = []
    compared: list[Effect] = []
    holes: list[str] = []
    cut_off: dict[tuple[str, str], float] = {}
    for measure in study.measures:
        rows = {arm.name: _rows_of(study, arm, measure, read, holes) for arm in arms(study)}
        groups = sorted({r["group"] for by_seed in rows.values() for student in by_seed.values() for r in student})
        for arm in arms(study):
            flags = [bool(row.get("truncated")) for student in rows[arm.name].values() for row in student]
            if flags:
                cut_off[measure.name, arm.name] = sum(flags) / len(flags)
            for group in (HEADLINE, *groups):
                answers = _answers(rows[arm.name], _wanted(measure, group))
                if answers is not None:
                    rates.append(_rate(measure, group, arm, answers))
        compared += _compare(study, measure, rows)
    return Findings(tuple(rates), tuple(compared), tuple(holes), cut_off)


def _wanted(measure: Measure, group: str) -> str | None:
    """The items' group that a label stands for; None for all items."""
    return measure.headline_group if group == HEADLINE else group


def _rows_of(study: BoundStudy, arm: Arm, measure: Measure, read: ReadScores, holes: list[str]) -> dict[int | None, list[dict[str, Any]]]:
    """Score rows by seed; the untouched base has the one seed None."""
    found: dict[int | None, list[dict[str, Any]]] = {}
    for model in arm.models:
        seed = getattr(model, "seed", None)
        rows = read(evaluation_of(study, model, measure))
        if rows is not None and rows and all(r["value"] is None for r in rows):
            holes.append(f"{arm.name}, seed {seed}: no answer of {measure.name} could be scored (model {content_key(model)[:12]})")
        elif rows is None:
            holes.append(f"{arm.name}, seed {seed}: {measure.name} was not measured (model {content_key(model)[:12]})")
        else:
            found[seed] = rows
    return found


def _answers(by_seed: dict[int | None, list[dict[str, Any]]], group: str | None) -> Answers | None:
    """Mean value per student and cluster; a cluster counts only if every student has a value in it."""
    cells: list[dict[str, list[float]]] = []
    n_missing, items = 0, set()
    for rows in by_seed.values():
        cell: dict[str, list[float]] = {}
        for row in rows:
            if group is not None and row["group"] != group:
                continue
            items.add(row["item"])
            if row["value"] is None:
                n_missing += 1
            else:
                cell.setdefault(row["cluster"], []).append(row["value"])
        cells.append(cell)
    shared = sorted(set.intersection(*(set(c) for c in cells))) if cells else []
    if not shared:
        return None
    table = numpy.array([[numpy.mean(cell[name]) for name in shared] for cell in cells])
    return Answers(table, tuple(shared), tuple(by_seed), len(items), n_missing)


def _rate(measure: Measure, group: str, arm: Arm, answers: Answers) -> Effect:
    interval = stats.rate(answers.table)
    return Effect(
        measure=measure.name,
        group=group,
        arm=arm.name,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        n_students=len(arm.students) and len(answers.seeds),
        n_items=answers.n_items,
        n_clusters=len(answers.clusters),
        n_missing=answers.n_missing,
        method=interval.method,
    )


def _compare(study: BoundStudy, measure: Measure, rows: dict[str, dict[int | None, list[dict[str, Any]]]]) -> list[Effect]:
    """The study's contrasts on one measure; Holm's correction runs over all of them."""
    pending: list[tuple[Effect, stats.Interval]] = []
    for contrast in contrasts(study):
        first, second = (_answers(rows[name], measure.headline_group) for name in (contrast.arm, contrast.versus))
        if first is None or second is None:
            continue
        paired = _paired(first, second)
        if paired is None:
            continue
        interval = stats.difference(*paired)
        effect = Effect(
            measure=measure.name,
            group=HEADLINE,
            arm=contrast.arm,
            versus=contrast.versus,
            estimate=interval.estimate,
            low=interval.low,
            high=interval.high,
            p=interval.p,
            primary=contrast.primary,
            n_students=paired[0].shape[0],
            n_items=min(first.n_items, second.n_items),
            n_clusters=paired[0].shape[1],
            n_missing=first.n_missing + second.n_missing,
            method=interval.method,
        )
        pending.append((effect, interval))
    adjusted = stats.holm([i.p if i.p is not None else 1.0 for _, i in pending])
    return [
        effect.model_copy(update={"p_adjusted": p, "verdict": stats.verdict(interval, p, study.equivalence_margin)})
        for (effect, interval), p in zip(pending, adjusted, strict=True)
    ]


def _paired(first: Answers, second: Answers) -> tuple[stats.Table, stats.Table] | None:
    """Both tables on their shared seeds and clusters; the one base stands opposite every seed."""
    clusters = [c for c in first.clusters if c in second.clusters]
    seeds = [s for s in first.seeds if s in second.seeds or second.seeds == (None,)] if first.seeds != (None,) else list(second.seeds)
    if not clusters or not seeds:
        return None

    def part(answers: Answers) -> stats.Table:
        places = [0 if answers.seeds == (None,) else answers.seeds.index(seed) for seed in seeds]
        columns = [answers.clusters.index(c) for c in clusters]
        return answers.table[numpy.ix_(places, columns)]

    return part(first), part(second)


def score_reader(store: Any) -> ReadScores:
    """Scores from a store; None where an evaluation is missing."""

    def read(evaluation: Evaluation) -> list[dict[str, Any]] | None:
        return store.rows(evaluation) if store.has(evaluation) else None

    return read
