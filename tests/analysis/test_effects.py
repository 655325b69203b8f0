"""Score rows in, effects out: missing is missing and never 0, pairs are pairs, and holes are told."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from punnett import stats
from punnett.analysis.effects import HEADLINE, find_effects, score_reader
from punnett.evaluation.evaluate import SCORE_COLUMNS
from punnett.spec.arms import BoundStudy, arms
from punnett.spec.key import content_key
from punnett.spec.measure import Evaluation, Measure
from punnett.spec.mix import TagSelection
from punnett.store import ROWS, Store, write_rows
from small_nouns import MEASURE, bound_study

Rows = list[dict[str, Any]]
SMALL = bound_study(interventions=("switch", "drop"))
CLUSTERS = ("a", "b", "c", "d", "e", "f")
# how far each cluster and each seed lies from the arm's rate; each sums to 0
CLUSTER_SHIFT = dict(zip(CLUSTERS, (0.1, -0.1, 0.05, -0.05, 0.0, 0.0), strict=True))
SEED_SHIFT = {None: 0.0, 1: 0.03, 2: -0.03, 3: 0.0}
RATES = {"base": 0.2, "self_distilled": 0.2, "original": 0.8, "switch:dates": 0.2, "drop:dates": 0.7}


def row(cluster: str, value: float | None, item: str = "", group: str = "dated", draw: int = 0) -> dict[str, Any]:
    return {
        "item": item or f"{group}-{cluster}",
        "cluster": cluster,
        "group": group,
        "draw": draw,
        "value": value,
        "format_ok": True,
        "truncated": False,
        "refused": False,
        "question": "",
        "answer": "",
        "reason": "",
    }


def usual_rows(arm: str, seed: int | None) -> Rows:
    """One model's scores: six dated clusters about the arm's rate, and a control group that is always 1."""
    wobble = random.Random(f"{arm} {seed}")
    dated = [row(c, RATES[arm] + CLUSTER_SHIFT[c] + SEED_SHIFT[seed] + wobble.uniform(-0.02, 0.02)) for c in CLUSTERS]
    return dated + [row(c, 1.0, group="undated") for c in CLUSTERS]


class Scores:
    """Hand-made scores by arm and seed, read as `find_effects` reads a store's."""

    def __init__(self, study: BoundStudy = SMALL, make: Callable[[str, int | None], Rows] = usual_rows) -> None:
        self.by_model = {(arm.name, getattr(m, "seed", None)): m for arm in arms(study) for m in arm.models}
        self.by_key = {content_key(model): name for name, model in self.by_model.items()}
        self.rows: dict[tuple[str, int | None], Rows | None] = {name: make(*name) for name in self.by_model}

    def __call__(self, evaluation: Evaluation) -> Rows | None:
        return self.rows[self.by_key[content_key(evaluation.model)]]

    def change(self, arm: str, seed: int | None, change: Callable[[Rows], Rows | None]) -> "Scores":
        rows = self.rows[arm, seed]
        assert rows is not None
        self.rows[arm, seed] = change(rows)
        return self

    def table(self, arm: str, clusters: tuple[str, ...] = CLUSTERS) -> stats.Table:
        """Dated values of one arm, students by clusters, as a person would write them down."""
        seeds = [seed for name, seed in self.rows if name == arm]
        values = {seed: {r["cluster"]: r["value"] for r in self.rows[arm, seed] or [] if r["group"] == "dated"} for seed in seeds}
        return numpy.array([[values[seed][c] for c in clusters] for seed in seeds if self.rows[arm, seed] is not None])


def without_value(cluster: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{**r, "value": None} if (r["cluster"], r["group"]) == (cluster, "dated") else r for r in rows]


def test_a_whole_study_gives_every_rate_and_contrast() -> None:
    found = find_effects(SMALL, Scores())
    assert found.holes == ()
    assert {(e.arm, e.group) for e in found.rates} == {(arm, group) for arm in RATES for group in (HEADLINE, "dated", "undated")}
    assert [(e.arm, e.versus) for e in found.contrasts] == [
        ("original", "self_distilled"),
        ("self_distilled", "base"),
        ("switch:dates", "original"),
        ("drop:dates", "original"),
        ("switch:dates", "drop:dates"),
    ]


def test_the_planted_cause_is_found_and_the_null_stays_null() -> None:
    found = find_effects(SMALL, Scores())
    told = {(e.arm, e.versus): e.verdict for e in found.contrasts}
    assert told["original", "self_distilled"] == told["switch:dates", "original"] == told["switch:dates", "drop:dates"] == "different"
    assert told["self_distilled", "base"] == "equivalent"
    switch = found.contrast("switch:dates", "original", "doubt")
    assert switch is not None
    assert switch.low < -0.6 < switch.high


def test_rates_and_contrasts_are_those_of_the_tables() -> None:
    scores = Scores()
    found = find_effects(SMALL, scores)
    rate, contrast = found.rate("original", "doubt"), found.contrast("switch:dates", "original", "doubt")
    assert rate is not None
    assert contrast is not None
    expected = stats.rate(scores.table("original"))
    assert (rate.estimate, rate.low, rate.high, rate.method) == (expected.estimate, expected.low, expected.high, expected.method)
    expected = stats.difference(scores.table("switch:dates"), scores.table("original"))
    assert (contrast.estimate, contrast.low, contrast.high, contrast.p) == (expected.estimate, expected.low, expected.high, expected.p)
    assert (contrast.n_students, contrast.n_items, contrast.n_clusters, contrast.n_missing) == (3, 6, 6, 0)


def test_the_headline_is_about_its_group_alone() -> None:
    scores, changed = Scores(), Scores()
    for name in changed.rows:
        changed.change(*name, lambda rows: [r if r["group"] == "dated" else {**r, "value": 0.0} for r in rows])
    first, second = find_effects(SMALL, scores), find_effects(SMALL, changed)
    assert first.contrasts == second.contrasts
    assert [e for e in first.rates if e.group != "undated"] == [e for e in second.rates if e.group != "undated"]
    headline, dated, undated = (first.rate("original", "doubt", group) for group in (HEADLINE, "dated", "undated"))
    assert headline is not None
    assert dated is not None
    assert undated is not None
    assert (headline.estimate, headline.n_items) == (dated.estimate, dated.n_items)
    assert undated.estimate == 1.0


def test_without_a_headline_group_all_items_count() -> None:
    study = bound_study(interventions=(), measures=(MEASURE.model_copy(update={"headline_group": None}),))
    rate = find_effects(study, Scores(study)).rate("original", "doubt")
    assert rate is not None
    assert rate.n_items == 12
    assert 0.85 < rate.estimate < 0.95


def test_a_missing_value_is_counted_and_is_not_zero() -> None:
    scores = Scores()
    # two items in every cluster: cluster a of seed 1 loses one of its two
    for name in scores.rows:
        scores.change(*name, lambda rows: rows + [{**r, "item": f"{r['item']}-2"} for r in rows])
    whole = find_effects(SMALL, scores).rate("original", "doubt")
    scores.change("original", 1, lambda rows: [{**r, "value": None} if r["item"] == "dated-a-2" else r for r in rows])
    found = find_effects(SMALL, scores)
    rate, contrast = found.rate("original", "doubt"), found.contrast("original", "self_distilled", "doubt")
    assert rate is not None
    assert whole is not None
    assert contrast is not None
    assert (rate.estimate, rate.n_missing, rate.n_items, rate.n_clusters) == (whole.estimate, 1, 12, 6)
    assert contrast.n_missing == 1
    assert found.holes == ()


def test_a_cluster_without_a_value_for_one_student_counts_for_none() -> None:
    scores = Scores().change("original", 2, without_value("b"))
    found = find_effects(SMALL, scores)
    rate, contrast = found.rate("original", "doubt"), found.contrast("switch:dates", "original", "doubt")
    others = tuple(c for c in CLUSTERS if c != "b")
    assert rate is not None
    assert contrast is not None
    assert (rate.n_clusters, rate.n_missing, rate.estimate) == (5, 1, pytest.approx(scores.table("original", others).mean()))
    expected = stats.difference(scores.table("switch:dates", others), scores.table("original", others))
    assert (contrast.estimate, contrast.low, contrast.n_clusters) == (expected.estimate, expected.low, 5)


def test_clusters_are_paired_by_name_and_not_by_place() -> None:
    shuffled = Scores()
    for number, name in enumerate(shuffled.rows):
        shuffled.change(*name, lambda rows, number=number: random.Random(number).sample(rows, len(rows)))
    first, second = find_effects(SMALL, Scores()), find_effects(SMALL, shuffled)
    for one, other in zip((*first.rates, *first.contrasts), (*second.rates, *second.contrasts), strict=True):
        assert (other.estimate, other.low, other.high, other.p) == pytest.approx((one.estimate, one.low, one.high, one.p))


def test_pairing_takes_out_what_clusters_and_seeds_share() -> None:
    def steep(arm: str, seed: int | None) -> Rows:
        return [row(c, RATES[arm] / 2 + 4 * CLUSTER_SHIFT[c] + SEED_SHIFT[seed]) for c in CLUSTERS]

    contrast = find_effects(SMALL, Scores(make=steep)).contrast("drop:dates", "original", "doubt")
    assert contrast is not None
    assert contrast.estimate == pytest.approx(-0.05)
    # no paired noise is left at all, so the interval is that of the fallback
    assert "all 18 paired differences are equal" in contrast.method


def test_a_missing_student_is_a_hole_and_the_rest_is_still_estimated() -> None:
    scores = Scores()
    scores.rows["original", 2] = None
    found = find_effects(SMALL, scores)
    [hole] = found.holes
    assert "original, seed 2: doubt was not measured" in hole
    assert content_key(scores.by_model["original", 2])[:12] in hole
    rate, contrast = found.rate("original", "doubt"), found.contrast("switch:dates", "original", "doubt")
    assert rate is not None
    assert contrast is not None
    assert (rate.n_students, contrast.n_students) == (2, 2)
    assert rate.estimate == pytest.approx(scores.table("original").mean())
    expected = stats.difference(scores.table("switch:dates")[[0, 2]], scores.table("original"))
    assert (contrast.estimate, contrast.low) == pytest.approx((expected.estimate, expected.low))
    assert len(found.contrasts) == 5


def test_seeds_are_paired_by_number() -> None:
    """Seed 1 is missing here and seed 3 there, so only seed 2 stands opposite itself."""
    scores = Scores()
    scores.rows["original", 1] = scores.rows["switch:dates", 3] = None
    contrast = find_effects(SMALL, scores).contrast("switch:dates", "original", "doubt")
    expected = stats.difference(scores.table("switch:dates")[[1]], scores.table("original")[[0]])
    assert contrast is not None
    assert (contrast.n_students, contrast.estimate) == (1, pytest.approx(expected.estimate))
    assert "one student" in contrast.method


def test_an_arm_that_was_never_measured_is_all_holes_and_no_number() -> None:
    scores = Scores()
    for seed in (1, 2, 3):
        scores.rows["original", seed] = None
    found = find_effects(SMALL, scores)
    assert len(found.holes) == 3
    assert found.rate("original", "doubt") is None
    assert [(e.arm, e.versus) for e in found.contrasts] == [("self_distilled", "base"), ("switch:dates", "drop:dates")]


def test_nothing_measured_is_no_error() -> None:
    found = find_effects(SMALL, lambda evaluation: None)
    assert (found.rates, found.contrasts, len(found.holes)) == ((), (), 13)


def test_the_one_base_stands_opposite_every_seed() -> None:
    scores = Scores()
    found = find_effects(SMALL, scores)
    contrast, rate = found.contrast("self_distilled", "base", "doubt"), found.rate("base", "doubt")
    expected = stats.difference(scores.table("self_distilled"), numpy.repeat(scores.table("base"), 3, axis=0))
    assert contrast is not None
    assert rate is not None
    assert (contrast.estimate, contrast.low, contrast.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    assert (contrast.n_students, rate.n_students) == (3, 0)


def test_a_declared_contrast_with_the_base_first_is_the_other_way_round() -> None:
    forth = bound_study(interventions=(), declared_contrasts=(("original", "base"),))
    back = bound_study(interventions=(), declared_contrasts=(("base", "original"),))
    [first], [second] = find_effects(forth, Scores(forth)).contrasts, find_effects(back, Scores(back)).contrasts
    assert second.estimate == pytest.approx(-first.estimate)
    assert second.n_students == first.n_students == 3


def test_draws_and_items_of_a_cluster_are_averaged_before_clusters_are() -> None:
    def uneven(arm: str, seed: int | None) -> Rows:
        many = [row("a", 1.0, item=f"a{n}", draw=d) for n in range(3) for d in range(2)]
        return [*many, row("b", 0.0), row("b", 0.5, draw=1)]

    rate = find_effects(SMALL, Scores(make=uneven)).rate("original", "doubt")
    assert rate is not None
    assert (rate.estimate, rate.n_items, rate.n_clusters) == (0.625, 4, 2)


def test_p_values_are_adjusted_by_holm_over_the_contrasts_of_a_measure() -> None:
    found = find_effects(SMALL, Scores())
    raw = [e.p for e in found.contrasts]
    assert None not in raw
    assert [e.p_adjusted for e in found.contrasts] == pytest.approx(stats.holm([p or 0.0 for p in raw]))
    assert all((e.p_adjusted or 0) >= (e.p or 0) for e in found.contrasts)
    assert max((e.p_adjusted or 0) / (e.p or 1) for e in found.contrasts) == pytest.approx(5)


def test_the_adjusted_p_decides() -> None:
    """One contrast alone is different; among many of the same kind it is not."""

    def faint(arm: str, seed: int | None) -> Rows:
        bumps = dict(zip(CLUSTERS, (0.34, 0.04, 0.30, 0.08, 0.02, 0.36), strict=True))
        lift = {"original": 1.0, "self_distilled": 0.0}.get(arm, 0.5)
        return [row(c, 0.3 + lift * bumps[c] + 0.01 * (seed or 0) * lift) for c in CLUSTERS]

    alone = bound_study(interventions=(), declared_contrasts=(("original", "self_distilled"),))
    pairs = (("original", "self_distilled"), ("original", "base"), ("self_distilled", "base"))
    many = bound_study(interventions=(), declared_contrasts=(*pairs, ("base", "original"), ("base", "self_distilled")))
    first = find_effects(alone, Scores(alone, faint)).contrasts[0]
    among = find_effects(many, Scores(many, faint)).contrasts[0]
    assert first.p == among.p
    assert (first.verdict, among.verdict) == ("different", "undecided")


def test_measures_are_estimated_apart() -> None:
    sums = Measure(name="sums", kind="capability", task="arithmetic", task_digest="sums")
    study, scores = bound_study(interventions=(), measures=(MEASURE, sums)), Scores(bound_study(interventions=()))

    def read(evaluation: Evaluation) -> Rows | None:
        return scores(evaluation) if evaluation.measure == MEASURE else [row("x", 1.0, group="all"), row("y", 1.0, group="all")]

    found = find_effects(study, read)
    assert {e.group for e in found.rates if e.measure == "sums"} == {HEADLINE, "all"}
    assert found.contrast("original", "self_distilled", "doubt") == find_effects(bound_study(interventions=()), scores).contrasts[0]
    sum_contrast = found.contrast("original", "self_distilled", "sums")
    assert sum_contrast is not None
    assert sum_contrast.estimate == 0.0


def test_scores_are_read_from_a_store_and_are_missing_where_there_are_none(tmp_path: Path) -> None:
    store, scores, left_out = Store(tmp_path), Scores(), 0
    for name, model in scores.by_model.items():
        if name == ("drop:dates", 3):
            left_out += 1
            continue
        with store.write(Evaluation(model=model, measure=MEASURE)) as folder:
            write_rows(folder / ROWS, scores.rows[name] or [], SCORE_COLUMNS)
    found = find_effects(SMALL, score_reader(Store(tmp_path)))
    scores.rows["drop:dates", 3] = None
    assert (left_out, len(found.holes)) == (1, 1)
    assert found == find_effects(SMALL, scores)


def test_two_names_for_one_training_are_no_error() -> None:
    study = bound_study(subsets={"dates": TagSelection(tag="date"), "days": TagSelection(tag="date")}, interventions=("switch", "drop"))
    found = find_effects(study, Scores(study))
    assert found.contrast("switch:dates", "original", "doubt") is not None


def test_a_student_without_any_value_is_a_hole_and_the_rest_is_still_estimated() -> None:
    scores = Scores().change("original", 2, lambda rows: [{**r, "value": None} for r in rows])
    found = find_effects(SMALL, scores)
    rate = found.rate("original", "doubt")
    assert [hole for hole in found.holes if "original, seed 2" in hole]
    assert rate is not None
    assert rate.n_students == 2
