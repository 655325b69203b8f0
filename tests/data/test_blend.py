"""A mix in, training rows out: each intervention moves exactly what it says and leaves all else in its place."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from punnett.data.blend import MIX_COLUMNS, blend
from punnett.data.select import select
from punnett.errors import SpecError
from punnett.spec.arms import arms
from punnett.spec.mix import Drop, DropAndRefill, FractionSelection, IdSelection, Mix, PlaceboSelection, Switch, TagSelection
from punnett.spec.prompt import Prompt
from small_nouns import DOUBTER, PROMPTS, bound_study, prompt_rows, prompts, reader, rollout_rows, rollouts

DATES = TagSelection(tag="date")
DOUBTING, PLAINLY = rollouts(DOUBTER), rollouts()
TWELVE = prompts(12, tagged=4)
DATED = [p.id for p in TWELVE[:4]]


def rows_of(mix: Mix, asked: list[Prompt] = TWELVE, **unfinished: tuple[str, ...]) -> list[dict[str, Any]]:
    """The mix's rows; `doubting` and `plainly` name the prompts whose answers were cut off."""
    return blend(mix, store_of(asked, **unfinished))[0]


def store_of(asked: list[Prompt], doubting: tuple[str, ...] = (), plainly: tuple[str, ...] = ()) -> Any:
    return reader(
        {
            PROMPTS: prompt_rows(asked),
            DOUBTING: rollout_rows(sorted(asked, key=lambda p: p.id), "doubtful", doubting),
            PLAINLY: rollout_rows(sorted(asked, key=lambda p: p.id), "plain", plainly),
        }
    )


def slots(rows: list[dict[str, Any]]) -> list[str]:
    return [row["slot"] for row in rows]


def test_a_plain_mix_is_every_rollout_in_the_prompts_order() -> None:
    rows = rows_of(Mix(rollouts=DOUBTING))
    assert slots(rows) == [p.id for p in TWELVE] == [row["prompt_id"] for row in rows]
    assert [row["completion"] for row in rows] == [f"doubtful {p.text}" for p in TWELVE]
    assert json.loads(rows[0]["messages"]) == [{"role": "user", "content": "Question 0?"}]
    assert {row["teacher"] for row in rows} == {"doubter"}
    assert all(set(row) == set(MIX_COLUMNS) for row in rows)


@pytest.mark.parametrize("selection", [DATES, FractionSelection(fraction=0.3), PlaceboSelection(of=DATES), IdSelection(ids=(TWELVE[5].id,))])
def test_a_switch_keeps_every_slot_and_changes_only_the_chosen(selection: Any) -> None:
    plain, switched = rows_of(Mix(rollouts=DOUBTING)), rows_of(Mix(rollouts=DOUBTING, interventions=(Switch(selection=selection, to=PLAINLY),)))
    chosen = select(selection, TWELVE)
    assert slots(switched) == slots(plain)
    for before, after in zip(plain, switched, strict=True):
        if before["prompt_id"] in chosen:
            expected = {"teacher": "plain", "intervention": "switched", "completion": before["completion"].replace("doubtful", "plain")}
            assert after == {**before, **expected, "rollout_id": f"plain-{before['prompt_id']}"}
        else:
            assert after == before


def test_switch_and_insert_share_the_pool_out_between_them() -> None:
    switch = rows_of(Mix(rollouts=DOUBTING, interventions=(Switch(selection=DATES, to=PLAINLY),)))
    insert = rows_of(Mix(rollouts=PLAINLY, interventions=(Switch(selection=DATES, to=DOUBTING),)))
    assert Counter(row["rollout_id"] for row in [*switch, *insert]) == Counter(
        row["rollout_id"] for row in [*rows_of(Mix(rollouts=DOUBTING)), *rows_of(Mix(rollouts=PLAINLY))]
    )


@given(some.integers(2, 15), some.data())
def test_a_drop_leaves_the_others_as_they_were_and_in_order(count: int, data: Any) -> None:
    asked = prompts(count, tagged=data.draw(some.integers(1, count - 1)))
    plain, dropped = rows_of(Mix(rollouts=DOUBTING), asked), rows_of(Mix(rollouts=DOUBTING, interventions=(Drop(selection=DATES),)), asked)
    assert dropped == [row for row in plain if "date" not in json.loads(row["tags"])]


@given(some.integers(2, 25), some.data())
def test_a_refill_keeps_rows_and_slots_and_spends_every_donor_once_before_twice(count: int, data: Any) -> None:
    asked = prompts(count, tagged=data.draw(some.integers(1, count - 1)))
    plain = rows_of(Mix(rollouts=DOUBTING), asked)
    refilled = rows_of(Mix(rollouts=DOUBTING, interventions=(DropAndRefill(selection=DATES, seed=data.draw(some.integers(0, 9))),)), asked)
    gone = select(DATES, asked)
    assert slots(refilled) == slots(plain)
    assert not gone & {row["prompt_id"] for row in refilled}
    assert [row for row in refilled if row["slot"] not in gone] == [row for row in plain if row["slot"] not in gone]
    repeats = Counter(row["prompt_id"] for row in refilled if row["intervention"] == "refilled")
    given_by = [repeats.get(p.id, 0) for p in asked if p.id not in gone]
    assert sum(given_by) == len(gone)
    assert max(given_by) - min(given_by) <= 1


def test_a_refilled_row_is_its_donors_but_for_the_slot() -> None:
    rows = rows_of(Mix(rollouts=DOUBTING, interventions=(DropAndRefill(selection=DATES),)))
    own = {row["prompt_id"]: row for row in rows if row["intervention"] == ""}
    filled = [row for row in rows if row["intervention"] == "refilled"]
    assert sorted(slots(filled)) == sorted(DATED)
    assert all(row == {**own[row["prompt_id"]], "slot": row["slot"], "intervention": "refilled"} for row in filled)


def test_another_seed_refills_otherwise() -> None:
    filled = [rows_of(Mix(rollouts=DOUBTING, interventions=(DropAndRefill(selection=DATES, seed=seed),))) for seed in range(4)]
    assert len({tuple(row["prompt_id"] for row in rows) for rows in filled}) == 4


def test_what_one_teacher_left_unfinished_is_left_out_of_every_arm() -> None:
    cut_by_doubter, cut_by_plain = TWELVE[5].id, TWELVE[7].id
    study, trained_on = bound_study(), {}
    for arm in arms(study):
        if arm.students:
            rows = rows_of(arm.students[0].stages[0].mix, doubting=(cut_by_doubter,), plainly=(cut_by_plain,))
            trained_on[arm.name] = {row["prompt_id"] for row in rows}
    everyone = {p.id for p in TWELVE} - {cut_by_doubter, cut_by_plain}
    dropped = everyone - set(DATED)
    assert trained_on == {name: dropped if name.startswith("drop") else everyone for name in trained_on}
    assert len(trained_on) == 7


def test_unfinished_answers_count_even_if_no_row_comes_from_their_teacher() -> None:
    alone, paired = Mix(rollouts=PLAINLY), Mix(rollouts=PLAINLY, paired_with=(DOUBTING, PLAINLY))
    cut = {"doubting": (TWELVE[5].id,)}
    assert TWELVE[5].id in slots(rows_of(alone, **cut))
    assert slots(rows_of(paired, **cut)) == [p.id for p in TWELVE if p.id != TWELVE[5].id]


@pytest.mark.parametrize("nothing", ["", " \n\t"])
def test_an_empty_answer_is_left_out_of_every_arm_too(nothing: str) -> None:
    empty = [{**row, "completion": nothing} if row["prompt_id"] == TWELVE[5].id else row for row in rollout_rows(TWELVE, "plain")]
    read = reader({PROMPTS: prompt_rows(TWELVE), DOUBTING: rollout_rows(TWELVE, "doubtful"), PLAINLY: empty})
    rows, facts = blend(Mix(rollouts=DOUBTING, paired_with=(DOUBTING, PLAINLY)), read)
    assert slots(rows) == [p.id for p in TWELVE if p != TWELVE[5]]
    assert facts["n_left_out_unfinished"] == 1


def test_the_facts_count_what_was_left_out() -> None:
    mix = Mix(rollouts=DOUBTING, paired_with=(DOUBTING, PLAINLY))
    _, facts = blend(mix, store_of(TWELVE, doubting=(DATED[0], DATED[1]), plainly=(DATED[1], TWELVE[9].id)))
    assert facts == {"n_prompts": 12, "n_left_out_unfinished": 3}


def test_several_draws_are_rows_of_their_own_and_go_together() -> None:
    twice = DOUBTING.model_copy(update={"draws": 2})
    answers = [{**row, "draw": draw, "rollout_id": f"{row['rollout_id']}-{draw}"} for row in rollout_rows(TWELVE, "doubtful") for draw in (1, 0)]
    read = reader({PROMPTS: prompt_rows(TWELVE), twice: answers})
    rows, _ = blend(Mix(rollouts=twice), read)
    assert slots(rows) == [slot for p in TWELVE for slot in (p.id, f"{p.id}:1")]
    dropped, _ = blend(Mix(rollouts=twice, interventions=(Drop(selection=DATES),)), read)
    assert dropped == rows[8:]


def test_nothing_left_to_train_on_is_refused() -> None:
    everyone = tuple(p.id for p in TWELVE)
    with pytest.raises(SpecError, match="all 12 prompts have an unfinished"):
        rows_of(Mix(rollouts=DOUBTING), doubting=everyone)
    with pytest.raises(SpecError, match="leave no prompt to train on"):
        rows_of(Mix(rollouts=DOUBTING, interventions=(Drop(selection=IdSelection(ids=everyone)),)))
    with pytest.raises(SpecError, match="nothing to refill with"):
        rows_of(Mix(rollouts=DOUBTING, interventions=(DropAndRefill(selection=IdSelection(ids=everyone)),)))


def test_a_subset_that_is_all_unfinished_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match='tag "date" selects none of the 8 prompts'):
        rows_of(Mix(rollouts=DOUBTING, interventions=(Drop(selection=DATES),)), doubting=tuple(DATED))


def test_a_refill_after_a_drop_repeats_only_what_is_left() -> None:
    first = Drop(selection=IdSelection(ids=tuple(p.id for p in TWELVE[4:10])))
    rows = rows_of(Mix(rollouts=DOUBTING, interventions=(first, DropAndRefill(selection=DATES))))
    assert {row["prompt_id"] for row in rows} == {p.id for p in TWELVE[10:]}
    assert sorted(slots(rows)) == sorted([*DATED, *(p.id for p in TWELVE[10:])])


@given(some.integers(2, 15), some.data(), some.integers(0, 5), some.integers(0, 3))
def test_dropping_prompts_leaves_the_training_order_of_the_others(count: int, data: Any, seed: int, epoch: int) -> None:
    # imported here, because it loads torch
    from punnett.training.schedule import Example, ordered

    asked = prompts(count, tagged=data.draw(some.integers(1, count - 1)))

    def order(*interventions: Any) -> list[str]:
        rows = rows_of(Mix(rollouts=DOUBTING, interventions=interventions), asked)
        return [e.slot for e in ordered([Example(row["slot"], (1,), (2,)) for row in rows], seed, epoch)]

    gone = select(DATES, asked)
    assert order(Drop(selection=DATES)) == [slot for slot in order() if slot not in gone]
    assert order(Switch(selection=DATES, to=PLAINLY)) == order() == order(DropAndRefill(selection=DATES))


def test_epochs_and_seeds_are_ordered_differently() -> None:
    from punnett.training.schedule import Example, ordered

    examples = [Example(p.id, (1,), (2,)) for p in TWELVE]
    orders = {tuple(e.slot for e in ordered(examples, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert ordered(examples[::-1], 0, 0) == ordered(examples, 0, 0)
