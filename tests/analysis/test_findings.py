"""Sentences that say no more than the verdicts carry."""

import pytest

from punnett.analysis.effects import Findings
from punnett.analysis.findings import interval_text, sentences
from punnett.bind import load_study
from punnett.spec.measure import Effect


def effect(arm: str, estimate: float, verdict: str = "", versus: str | None = None, measure: str = "date_confusion", width: float = 0.1) -> Effect:
    return Effect(
        measure=measure,
        group="headline",
        arm=arm,
        versus=versus,
        estimate=estimate,
        low=estimate - width,
        high=estimate + width,
        verdict=verdict,
        n_students=3,
        n_items=24,
        n_clusters=12,
        method="m",
    )


def told(study_folder, verdict: str, cut_off: dict | None = None, width: float = 0.1) -> str:
    rates = tuple(effect(arm, 0.5) for arm in ("original", "self_distilled", "switch:dates"))
    contrasts = (
        effect("original", 0.4, verdict, "self_distilled"),
        effect("switch:dates", -0.4, verdict, "original", width=width),
    )
    return "\n".join(sentences(load_study(study_folder), Findings(rates, contrasts, (), cut_off or {})))


def test_the_teacher_is_named_only_when_the_verdict_says_so(study_folder):
    assert "So the teacher's rollouts give the trait" in told(study_folder, "different")
    assert "do not give the trait" in told(study_folder, "equivalent")
    assert "undecided" in told(study_folder, "undecided")
    assert "give the trait:" not in told(study_folder, "undecided")


def test_an_interval_that_leaves_out_0_but_is_undecided_is_explained(study_folder):
    assert "once all contrasts are counted" in told(study_folder, "undecided")
    assert "undecided (-0.40" in told(study_folder, "undecided", width=0.6)


def test_a_capability_that_may_have_lost_to_length_is_flagged(study_folder):
    cut = {("arithmetic", "original"): 0.3, ("arithmetic", "base"): 0.02}
    assert "30% of original's answers were cut off" in told(study_folder, "different", cut)
    assert "cut off" not in told(study_folder, "different", {("arithmetic", "original"): 0.05, ("arithmetic", "base"): 0.02})


def test_holes_are_told(study_folder):
    findings = Findings((), (), ("a hole", "another"))
    assert "2 measurements are missing; the report lists them." in sentences(load_study(study_folder), findings)


@pytest.mark.parametrize(("signed", "text"), [(False, "0.40 [0.30, 0.50]"), (True, "+0.40 [+0.30, +0.50]")])
def test_an_estimate_never_comes_without_its_interval(signed: bool, text: str):
    assert interval_text(effect("original", 0.4), signed) == text
