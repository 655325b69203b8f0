"""The algebra of the experiment: which arms a study has, which are one, and which contrasts count."""

import dataclasses
from pathlib import Path

import pytest

from punnett.bind import load_study
from punnett.errors import SpecError
from punnett.spec.arms import Arm, BoundStudy, Pipeline, arms, contrasts, evaluations
from punnett.spec.key import content_key
from punnett.spec.mix import Drop, DropAndRefill, PlaceboSelection, Switch, TagSelection
from small_nouns import BASE, DOUBTER, PLAIN, PROMPTS, bound_study

STANDARD = ["base", "self_distilled", "original", "switch:dates", "drop:dates", "drop_and_refill:dates", "placebo:dates", "insert:dates"]


@pytest.fixture
def study(study_folder: Path) -> BoundStudy:
    return load_study(study_folder)


def by_name(study: BoundStudy) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms(study)}


def mix_of(arm: Arm):
    return arm.students[0].stages[0].mix


def test_the_standard_study_has_every_arm_and_its_controls(study: BoundStudy) -> None:
    assert [arm.name for arm in arms(study)] == STANDARD


def test_a_bound_study_reads_the_same_twice(study_folder: Path) -> None:
    first, second = load_study(study_folder), load_study(study_folder / "study.yaml")
    assert [content_key(e) for e in evaluations(first)] == [content_key(e) for e in evaluations(second)]


def test_a_moved_study_has_the_same_keys(study_folder: Path, tmp_path: Path) -> None:
    first = [content_key(e) for e in evaluations(load_study(study_folder))]
    moved = study_folder.rename(tmp_path / "elsewhere")
    assert [content_key(e) for e in evaluations(load_study(moved))] == first


def test_each_arm_means_what_its_name_says(study: BoundStudy) -> None:
    found, dates = by_name(study), TagSelection(tag="date")
    plain, doubter = study.alternate.teacher, study.original.teacher
    assert mix_of(found["self_distilled"]).rollouts.teacher == plain
    assert mix_of(found["original"]).rollouts.teacher == doubter
    assert mix_of(found["original"]).interventions == ()
    switched = mix_of(found["switch:dates"]).interventions[0]
    assert isinstance(switched, Switch)
    assert (mix_of(found["switch:dates"]).rollouts.teacher, switched.selection, switched.to.teacher) == (doubter, dates, plain)
    assert mix_of(found["drop:dates"]).interventions == (Drop(selection=dates),)
    assert mix_of(found["drop_and_refill:dates"]).interventions == (DropAndRefill(selection=dates),)
    placebo = mix_of(found["placebo:dates"]).interventions[0]
    assert isinstance(placebo, Switch)
    assert (placebo.selection, placebo.to.teacher) == (PlaceboSelection(of=dates), plain)
    inserted = mix_of(found["insert:dates"])
    assert inserted.rollouts.teacher == plain
    assert [(i.selection, i.to.teacher) for i in inserted.interventions] == [(dates, doubter)]


def test_the_alternate_merges_into_self_distillation_when_they_are_the_same_training(study: BoundStudy) -> None:
    assert by_name(study)["self_distilled"].aliases == ("alternate",)


def test_an_alternate_of_another_teacher_is_an_arm_of_its_own() -> None:
    other = dataclasses.replace(bound_study().alternate, teacher=DOUBTER.model_copy(update={"dose": 0.9}))
    found = by_name(bound_study(alternate=other))
    assert found["self_distilled"].aliases == ()
    assert mix_of(found["alternate"]).rollouts.teacher == other.teacher


def test_an_alternate_of_another_base_trains_that_base() -> None:
    other = BASE.model_copy(update={"weights_digest": "other weights"})
    found = by_name(bound_study(alternate=Pipeline(other, PROMPTS, PLAIN)))
    assert {student.base for student in found["alternate"].students} == {other}
    assert {student.base for student in found["self_distilled"].students} == {BASE}


def test_every_arm_has_one_student_per_seed_in_the_same_order(study: BoundStudy) -> None:
    trained = [arm for arm in arms(study) if arm.name != "base"]
    assert {tuple(student.seed for student in arm.students) for arm in trained} == {study.seeds}
    assert by_name(study)["base"].models == (study.original.base,)


def test_no_two_students_of_a_study_are_the_same(study: BoundStudy) -> None:
    keys = [content_key(model) for arm in arms(study) for model in arm.models]
    assert len(set(keys)) == len(keys) == 1 + 7 * 2


def test_all_arms_leave_out_what_any_teacher_left_unfinished(study: BoundStudy) -> None:
    paired = {mix_of(arm).paired_with for arm in arms(study) if arm.students}
    assert len(paired) == 1
    assert {r.teacher for r in paired.pop()} == {study.original.teacher, study.alternate.teacher}


def test_a_subset_adds_its_arms_and_no_others() -> None:
    subsets = {"dates": TagSelection(tag="date"), "chores": TagSelection(tag="chore")}
    names = [arm.name for arm in arms(bound_study(subsets=subsets, interventions=("switch", "drop")))]
    assert names == ["base", "self_distilled", "original", "switch:dates", "drop:dates", "switch:chores", "drop:chores"]


def test_controls_can_be_switched_off() -> None:
    names = [arm.name for arm in arms(bound_study(with_base=False, with_self_distillation=False, subsets={}))]
    assert names == ["original", "alternate"]


def test_every_measure_is_taken_of_every_model(study: BoundStudy) -> None:
    taken = {(content_key(e.model), e.measure.name) for e in evaluations(study)}
    models = [content_key(model) for arm in arms(study) for model in arm.models]
    assert taken == {(model, measure.name) for model in models for measure in study.measures}


def test_the_standard_contrasts() -> None:
    pairs = [(contrast.arm, contrast.versus) for contrast in contrasts(bound_study())]
    assert pairs == [
        ("original", "self_distilled"),
        ("self_distilled", "base"),
        ("switch:dates", "original"),
        ("drop:dates", "original"),
        ("drop_and_refill:dates", "original"),
        ("placebo:dates", "original"),
        ("switch:dates", "drop:dates"),
        ("insert:dates", "self_distilled"),
    ]


def test_standard_contrasts_name_only_arms_that_the_study_has() -> None:
    pairs = [(c.arm, c.versus) for c in contrasts(bound_study(with_base=False, interventions=("switch",)))]
    assert pairs == [("original", "self_distilled"), ("switch:dates", "original")]


def test_without_self_distillation_the_alternate_is_the_null() -> None:
    pairs = [(c.arm, c.versus) for c in contrasts(bound_study(with_self_distillation=False, subsets={}))]
    assert pairs == [("original", "alternate"), ("alternate", "base")]


def test_declared_contrasts_replace_the_standard_ones_and_may_use_an_alias() -> None:
    declared = contrasts(bound_study(declared_contrasts=(("switch:dates", "alternate"),)))
    assert [(c.arm, c.versus, c.primary) for c in declared] == [("switch:dates", "self_distilled", True)]


def test_a_contrast_with_an_unknown_arm_is_refused_with_the_nearest_name(study_folder: Path) -> None:
    path = study_folder / "study.yaml"
    path.write_text(path.read_text() + "contrasts: [[swich:dates, original]]\n")
    with pytest.raises(SpecError, match=r'"swich:dates".*Did you mean "switch:dates"'):
        load_study(path)


def test_contrasts_of_merged_arms_name_the_arm_that_stayed() -> None:
    twice = bound_study(subsets={"dates": TagSelection(tag="date"), "days": TagSelection(tag="date")})
    names = set(by_name(twice))
    assert all(c.arm in names and c.versus in names for c in contrasts(twice))
