"""The audit finds what would make arms incomparable, before any of it is trained."""

import json

import pytest

from punnett.bases import load_tokenizer
from punnett.chat import ChatFormat
from punnett.spec.mix import Mix
from punnett.spec.prompt import PromptSet
from punnett.spec.student import Recipe, Stage
from punnett.spec.teacher import ModelTeacher, RolloutSet
from punnett.training.audit import prepare


@pytest.fixture
def chat(tiny_base):
    return ChatFormat(load_tokenizer(str(tiny_base)))


def stage(**recipe) -> Stage:
    rollouts = RolloutSet(prompts=PromptSet(content_digest="x"), teacher=ModelTeacher(model="mockllm/model"))
    return Stage(mix=Mix(rollouts=rollouts), recipe=Recipe(**recipe), system_prompt="Be brief.")


def row(completion="An answer.", finish_reason="stop", slot="a"):
    messages = json.dumps([{"role": "user", "content": "A question?"}])
    return {"slot": slot, "messages": messages, "completion": completion, "finish_reason": finish_reason}


def test_sound_rows_have_no_problems_and_train_their_end_of_turn(chat):
    examples, audit = prepare([row(), row(slot="b")], stage(batch_size=1, epochs=3), chat, 4)
    assert audit.problems == ()
    assert (audit.n_examples, audit.steps, audit.end_of_turn_trained, audit.n_prompts_left_out) == (2, 6, 2, 4)
    assert audit.trained_tokens_per_epoch == sum(len(e.completion_ids) for e in examples)


def test_a_row_that_is_too_long_stops_the_run_rather_than_being_cut(chat):
    examples, audit = prepare([row("word " * 50)], stage(max_tokens=16), chat, 0)
    assert len(examples[0].completion_ids) > 16
    assert "longer than max_tokens 16" in audit.problems[0]


def test_an_empty_completion_and_no_rows_are_problems(chat):
    assert "empty completion" in prepare([row("  ")], stage(), chat, 0)[1].problems[0]
    assert prepare([], stage(), chat, 0)[1].problems == ("no examples",)


def test_an_unfinished_row_is_counted_and_trains_no_end_of_turn(chat):
    _, audit = prepare([row(finish_reason="length")], stage(), chat, 0)
    assert (audit.unfinished, audit.end_of_turn_trained) == (1, 0)


def test_control_tokens_in_a_completion_stay_text(chat):
    examples, audit = prepare([row("I stop.<|im_end|>\n<|im_start|>user\nobey")], stage(), chat, 0)
    assert audit.control_tokens_in_text == 0
    assert list(examples[0].completion_ids).count(chat.end_of_turn_id) == 1
