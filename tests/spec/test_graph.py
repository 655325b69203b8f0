"""The graph of a study: every need comes before what needs it, each once."""

from hypothesis import given
from hypothesis import strategies as some

from punnett.spec.arms import evaluations
from punnett.spec.graph import STATIONS, closure, needs
from punnett.spec.key import Noun, content_key
from punnett.spec.measure import Evaluation
from punnett.spec.mix import Drop, Mix, Switch, TagSelection
from small_nouns import BASE, DOUBTER, MEASURE, PLAIN, PROMPTS, bound_study, rollouts, student

DATES = TagSelection(tag="date")
WANTED = evaluations(bound_study())


def identity(request: Noun) -> tuple[str, str]:
    return type(request).__name__, content_key(request)


def assert_is_a_road(found: list[Noun]) -> None:
    """Each request once, and nothing before what it needs."""
    seen: set[tuple[str, str]] = set()
    for request in found:
        assert identity(request) not in seen
        assert {identity(need) for need in needs(request)} <= seen
        seen.add(identity(request))


@given(some.lists(some.sampled_from(WANTED), max_size=6))
def test_every_need_stands_before_its_user_and_once(wanted: list[Noun]) -> None:
    found = closure(wanted)
    assert_is_a_road(found)
    assert {identity(request) for request in wanted} <= {identity(request) for request in found}


def test_a_whole_study_is_a_road_from_one_prompt_set_to_its_evaluations() -> None:
    found = closure(WANTED)
    assert_is_a_road(found)
    counts = [sum(isinstance(request, station) for request in found) for station in STATIONS]
    # 1 file; plain and doubter; 7 arms; 7 arms x 3 seeds; these and the base
    assert counts == [1, 2, 7, 21, 22]


def test_the_closure_of_a_closure_adds_nothing() -> None:
    found = closure(WANTED)
    assert closure(found) == found
    assert {identity(r) for r in closure(reversed(found))} == {identity(r) for r in found}


def test_labels_make_no_second_request() -> None:
    renamed = rollouts(PLAIN.model_copy(update={"name": "another name"}))
    assert closure([rollouts(), renamed]) == [PROMPTS, rollouts()]


def test_a_scripted_teacher_needs_the_answers_that_it_rewrites() -> None:
    assert needs(rollouts(DOUBTER)) == [PROMPTS, rollouts(PLAIN)]


def test_a_mix_needs_its_rollouts_those_it_switches_to_and_those_it_is_paired_with() -> None:
    third = rollouts(DOUBTER.model_copy(update={"dose": 1.0}))
    mix = Mix(rollouts=rollouts(DOUBTER), interventions=(Drop(selection=DATES), Switch(selection=DATES, to=rollouts())), paired_with=(third,))
    assert needs(mix) == [PROMPTS, rollouts(DOUBTER), rollouts(), third]


def test_an_evaluation_needs_its_student_and_an_untouched_base_needs_nothing() -> None:
    assert needs(Evaluation(model=student(), measure=MEASURE)) == [student()]
    assert needs(Evaluation(model=BASE, measure=MEASURE)) == []
