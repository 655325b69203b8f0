"""Batched decoding: an answer belongs to its request, not to the batch that it was made in."""

import pytest
import torch

from punnett.bases import load_model, load_tokenizer
from punnett.chat import ChatFormat
from punnett.serving.decode import AnswerRequest, batches, decode
from punnett.spec.prompt import Message

pytestmark = pytest.mark.model
QUESTIONS = ("What is the capital of France?", "Name a color.", "What is 2 + 2? Answer with a number.", "What is the opposite of cold?")


@pytest.fixture(scope="module")
def spoken(small_base):
    model, tokenizer = load_model(small_base.location, "float32"), load_tokenizer(small_base.location)
    return model, tokenizer, ChatFormat(tokenizer)


def ask(spoken, questions, **settings):
    model, tokenizer, chat = spoken
    defaults = {"max_tokens": 12}
    requests = [
        AnswerRequest(tuple(chat.prompt_ids((Message(role="user", content=q),), "Answer in one short sentence.")), **{**defaults, **settings})
        for q in questions
    ]
    return decode(model, requests, chat.stop_ids, tokenizer.decode)


def test_greedy_answers_equal_those_of_generate(spoken):
    model, _, chat = spoken
    for question, answer in zip(QUESTIONS, ask(spoken, QUESTIONS), strict=True):
        ids = torch.tensor([chat.prompt_ids((Message(role="user", content=question),), "Answer in one short sentence.")])
        made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        expected = made[: made.index(chat.end_of_turn_id)] if chat.end_of_turn_id in made else made
        assert list(answer.ids) == expected


def test_an_answer_does_not_depend_on_who_is_asked_beside_it(spoken):
    together = ask(spoken, QUESTIONS, temperature=1.0, seed=5)
    alone = [ask(spoken, [q], temperature=1.0, seed=5)[0] for q in QUESTIONS]
    assert together == alone


def test_answers_come_in_the_order_of_the_requests(spoken):
    assert ask(spoken, QUESTIONS) == ask(spoken, tuple(reversed(QUESTIONS)))[::-1]


def test_other_seeds_draw_other_answers_and_equal_ones_the_same(spoken):
    first = ask(spoken, QUESTIONS[:1], temperature=1.0, seed=1)
    assert first == ask(spoken, QUESTIONS[:1], temperature=1.0, seed=1)
    assert len({ask(spoken, QUESTIONS[:1], temperature=1.0, seed=s)[0].ids for s in range(6)}) > 1


def test_the_end_of_an_answer_is_told_from_its_being_cut(spoken):
    [short], [long] = ask(spoken, QUESTIONS[:1], max_tokens=2), ask(spoken, QUESTIONS[:1], max_tokens=40)
    assert (short.finish_reason, len(short.ids)) == ("length", 2)
    assert long.finish_reason == "stop"


def test_a_stop_string_ends_the_answer(spoken):
    [answer] = ask(spoken, QUESTIONS[:1], stop_strings=("capital",))
    assert answer.finish_reason == "stop"
    assert "capital" in spoken[1].decode(list(answer.ids))


def test_batches_are_the_same_for_the_same_requests_in_any_order():
    requests = [AnswerRequest(tuple(range(n % 7 + 1)), max_tokens=500, seed=n) for n in range(200)]
    groups = [[requests[i] for i in group] for group in batches(requests)]
    backwards = requests[::-1]
    assert groups == [[backwards[i] for i in group] for group in batches(backwards)]
    assert sorted(i for group in batches(requests) for i in group) == list(range(200))
