"""Answers belong to their requests: the same tokens and probabilities whoever is asked beside them, whatever breaks."""

import functools
import itertools
import threading
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from punnett.bases import load_model, load_tokenizer
from punnett.chat import ChatFormat
from punnett.errors import RunError
from punnett.serving import decode
from punnett.serving.decode import RunningBatch, Ticket
from punnett.serving.engine import Engine
from punnett.serving.requests import AnswerRequest, ScoreRequest, choose_token
from punnett.shared_base.share import SharedBase
from punnett.spec.prompt import Message
from shared_base.tiny_models import FAMILIES, STOP_ID, answers_of, drawn, plain_answer, plain_logits, some_adapter, spelled, tiny_model, wide_base

OPENING = drawn(100, 12)
PROMPTS = [drawn(n, length) for n, length in enumerate((1, 3, 9, 15, 16, 17, 31, 33, 64))]
OPENED = [OPENING + drawn(50 + n, length) for n, length in enumerate((2, 5, 20))]


@pytest.fixture(autouse=True)
def one_thread_as_a_worker_has():
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


@functools.cache
def students():
    """The bare base and three students of it, of ranks that differ."""
    return (None, *(some_adapter(wide_base(), n, rank) for n, rank in enumerate((4, 16, 4))))


@functools.cache
def alone(student: int, request):
    """The answer of one of `students` that is asked nothing else."""
    return answers_of(wide_base(), [(students()[student], request)])[0]


def opened(ids):
    return len(OPENING) if ids[: len(OPENING)] == OPENING else 0


PLACES = st.sampled_from([*PROMPTS, *OPENED])
ANSWERS = st.builds(
    lambda ids, **settings: AnswerRequest(ids, n_opening=opened(ids), **settings),
    PLACES,
    max_tokens=st.sampled_from([1, 3, 12, 20]),
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    seed=st.integers(0, 2),
    top_log_probabilities=st.sampled_from([0, 2]),
)
SCORES = st.builds(lambda ids, seed, n: ScoreRequest(ids, drawn(seed, n), opened(ids)), PLACES, st.integers(0, 1), st.integers(1, 5))
ASKED = st.tuples(st.integers(0, 3), st.one_of(ANSWERS, ANSWERS, SCORES))


@given(st.lists(st.tuples(ASKED, st.sampled_from([0, 0, 0, 1, 5])), min_size=2, max_size=40))
@effort(max_examples=10)
def test_tokens_and_probabilities_are_bitwise_the_same_whoever_is_in_the_batch_and_whoever_joins_it(asked):
    together = answers_of(wide_base(), [(students()[who], request) for (who, request), _ in asked], [when for _, when in asked])
    for ((who, request), _), answer in zip(asked, together, strict=True):
        assert answer == alone(who, request)


@pytest.mark.parametrize("family", [*FAMILIES, "as SmolLM2-135M"])
def test_answers_are_bitwise_the_same_alone_and_together_in_every_family(family):
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 1, "num_attention_heads": 9, "num_key_value_heads": 3}
    shared = SharedBase(tiny_model(family) if family in FAMILIES else tiny_model(**sizes))
    who = [None, some_adapter(shared, 1), some_adapter(shared, 2, 16)]
    request = functools.partial(AnswerRequest, max_tokens=12, top_log_probabilities=1)
    asked = [(who[n % 3], request(ids, temperature=float(n % 2), n_opening=opened(ids))) for n, ids in enumerate([*PROMPTS, *OPENED])]
    together = answers_of(shared, asked, [n % 4 for n in range(len(asked))])
    assert together == [answers_of(shared, [one])[0] for one in asked]


@pytest.fixture
def readings(monkeypatch):
    """The tokens of every pass through the base from here on."""
    passes, hidden_states = [], decode.hidden_states

    def watched(model, ids, *rest):
        passes.append(len(ids))
        return hidden_states(model, ids, *rest)

    monkeypatch.setattr(decode, "hidden_states", watched)
    return passes


def test_the_draws_of_a_prompt_share_one_reading(readings):
    request = functools.partial(AnswerRequest, PROMPTS[7], 3, temperature=1.0)
    answers = answers_of(wide_base(), [(students()[1], request(seed=seed)) for seed in range(10)])
    assert readings == [len(PROMPTS[7]), 10, 10]
    assert len({answer.ids for answer in answers}) > 5


def test_an_opening_is_read_once_for_all_that_open_alike_and_is_kept_for_later_ones(readings):
    asked = [(students()[1], AnswerRequest(ids, 1, n_opening=len(OPENING))) for ids in OPENED]
    answers_of(wide_base(), [*asked, asked[0]], [0, 0, 1, 1])
    rests = [len(ids) - len(OPENING) for ids in OPENED]
    assert readings == [len(OPENING), rests[0] + rests[1], rests[0] + rests[2]]


def test_students_do_not_share_an_opening_but_a_batch_forgets_old_ones_only_when_there_are_many(readings, monkeypatch):
    monkeypatch.setattr(decode, "OPENING_TOKENS", 2 * len(OPENING))
    asked = [(student, AnswerRequest(OPENED[0], 1, n_opening=len(OPENING))) for student in students()[:3]]
    again = [asked[2], asked[0]]
    answers = answers_of(wide_base(), [*asked, *again], [0, 1, 2, 3, 4])
    rest = len(OPENED[0]) - len(OPENING)
    assert readings == [len(OPENING), rest] * 3 + [rest] + [len(OPENING), rest]
    assert answers[3:] == [answers[2], answers[0]]


def test_an_opening_that_is_kept_stays_for_a_request_that_comes_with_new_ones(monkeypatch):
    monkeypatch.setattr(decode, "OPENING_TOKENS", len(OPENING))
    asked = [(student, AnswerRequest(OPENED[0], 3, n_opening=len(OPENING))) for student in (students()[1], students()[2], students()[1])]
    answers = answers_of(wide_base(), asked, [0, 1, 1])
    assert answers == [alone(who, request) for who, (_, request) in zip((1, 2, 1), asked, strict=True)]


def test_an_opening_changes_no_answer_beyond_rounding():
    asked = [(students()[1], AnswerRequest(ids, 12, top_log_probabilities=0, n_opening=n)) for ids in OPENED for n in (0, len(OPENING))]
    answers = answers_of(wide_base(), asked)
    for whole, gone_on in zip(answers[::2], answers[1::2], strict=True):
        assert whole.ids == gone_on.ids
        assert logs(gone_on) == pytest.approx(logs(whole), abs=1e-4)


def logs(answer):
    return [told.log_probability for told in answer.log_probabilities]


def test_scores_are_the_log_probabilities_of_an_ordinary_forward():
    asked = [(None, ScoreRequest(ids, drawn(7, n), opened(ids))) for ids in (*PROMPTS, *OPENED) for n in (1, 2, 9)]
    for (_, request), answer in zip(asked, answers_of(wide_base(), asked), strict=True):
        whole = plain_logits(wide_base().model, request.ids + request.continuation_ids).log_softmax(-1)
        expected = [whole[len(request.ids) + n - 1, token].item() for n, token in enumerate(request.continuation_ids)]
        assert logs(answer) == pytest.approx(expected, abs=1e-4)
        assert (answer.ids, answer.finish_reason) == (request.continuation_ids, "scored")


def test_continuations_of_one_token_cost_one_reading_of_their_prompt(readings):
    answers = answers_of(wide_base(), [(students()[1], ScoreRequest(PROMPTS[7], (token,))) for token in range(90)])
    assert readings == [len(PROMPTS[7])]
    assert sum(torch.tensor([logs(answer)[0] for answer in answers]).exp()) < 1


def test_a_given_continuation_scores_what_the_answer_of_the_same_tokens_told(readings):
    [answer] = answers_of(wide_base(), [(students()[2], AnswerRequest(PROMPTS[6], 8, top_log_probabilities=3))])
    [score] = answers_of(wide_base(), [(students()[2], ScoreRequest(PROMPTS[6], answer.ids))])
    assert logs(score) == pytest.approx(logs(answer), abs=1e-4)
    for told in answer.log_probabilities:
        assert told.likeliest[0] == (told.token, told.log_probability)
        assert [p for _, p in told.likeliest] == sorted((p for _, p in told.likeliest), reverse=True)


def test_answers_end_at_a_stop_string_at_a_stop_token_or_at_their_length():
    [free] = answers_of(wide_base(), [(None, AnswerRequest(PROMPTS[4], 12))])
    assert (free.finish_reason, len(free.ids)) == ("length", 12)
    stop = next(n for n in range(3, 12) if free.ids[n] not in free.ids[:n])
    [cut] = answers_of(wide_base(), [(None, AnswerRequest(PROMPTS[4], 12, stop_strings=("never", spelled([free.ids[stop]]))))])
    assert (cut.ids, cut.finish_reason) == (free.ids[: stop + 1], "stop")
    [stopped] = answers_of(wide_base(), [(None, AnswerRequest(PROMPTS[4], 12))], stop_ids=(free.ids[stop],))
    assert (stopped.ids, stopped.finish_reason) == (free.ids[:stop], "stop")


def test_nobody_pays_for_an_answer_that_is_no_longer_wanted(readings):
    batch, answers, wanted = RunningBatch(wide_base(), (STOP_ID,), spelled), {}, {0, 1}
    tickets = [
        Ticket(None, AnswerRequest(PROMPTS[n], 6), functools.partial(answers.__setitem__, n), functools.partial(wanted.__contains__, n))
        for n in (0, 1)
    ]
    batch.admit(tickets)
    batch.step()
    wanted.remove(1)
    batch.step()
    assert batch.tickets == tickets[:1]
    while batch.n_alive:
        batch.step()
    assert list(answers) == [0]
    assert answers[0] == alone(0, AnswerRequest(PROMPTS[0], 6))


def test_rows_that_have_ended_leave_a_large_batch(readings):
    asked = [(None, AnswerRequest(PROMPTS[2], 2 if n % 2 else 6, seed=n)) for n in range(40)]
    answers_of(wide_base(), asked)
    assert readings == [len(PROMPTS[2]), 40, 20, 20, 20, 20]


def test_a_draw_follows_its_probabilities_its_seed_and_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def draws(**settings) -> list[int]:
        request, generator = AnswerRequest((1,), 1, **settings), torch.Generator().manual_seed(1)
        return [choose_token(logits, request, generator) for _ in range(1000)]

    shares = torch.bincount(torch.tensor(draws(temperature=1.0))) / 1000
    torch.testing.assert_close(shares, logits.exp(), atol=0.05, rtol=0)
    assert draws(temperature=1.0) == draws(temperature=1.0)
    assert set(draws(temperature=1.0, top_p=0.7)) == {0, 1}
    assert set(draws(temperature=1.0, top_p=0.01)) == {0}
    assert set(draws(temperature=0.01)) == {0}


# The engine: one queue for all, and workers that outlive what breaks.

QUEUE = [(who, AnswerRequest(ids, 8, temperature=float(n % 2), seed=n)) for n, ids in enumerate(PROMPTS) for who in range(4)]


@pytest.fixture
def folders(tmp_path):
    """Where the students lie; None for the base."""
    for n, student in enumerate(students()[1:], start=1):
        student.save(tmp_path / str(n), "tiny")
    return [None, *(tmp_path / str(n) for n in (1, 2, 3))]


@pytest.fixture
def start():
    """Starts engines, and puts them away in the end."""
    engines = []

    def started(workers: int = 1) -> Engine:
        engines.append(Engine(wide_base(), SimpleNamespace(stop_ids=(STOP_ID,)), spelled, workers))
        return engines[-1]

    before = set(threading.enumerate())
    yield started
    for engine in engines:
        engine.close()
    assert set(threading.enumerate()) <= before, "an engine that is closed leaves no thread"


def assert_all_answered(engine, folders):
    futures = [engine.submit(folders[who], request) for who, request in QUEUE]
    for (who, request), future in zip(QUEUE, futures, strict=True):
        assert future.result(60) == alone(who, request)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_answers_everyone_as_each_is_answered_alone(start, folders, workers):
    assert_all_answered(start(workers), folders)


def test_an_engine_answers_in_the_order_of_the_requests(start, folders):
    requests = [request for _, request in QUEUE]
    assert start().answer(folders[1], requests) == [alone(1, request) for request in requests]


@pytest.fixture
def breaking(monkeypatch):
    """Has a method of running batches do its work and then raise what `error_of(batch)` gave before it, if anything."""

    def breaks(error_of, method="step"):
        work = getattr(RunningBatch, method)

        def worked(batch, *given):
            error = error_of(batch) if batch.n_alive or given else None
            work(batch, *given)
            if error:
                raise error

        monkeypatch.setattr(RunningBatch, method, worked)

    return breaks


def once(error):
    errors = iter([error])
    return lambda batch: next(errors, None)


@pytest.mark.parametrize("method", ["admit", "step"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError(), RuntimeError("can't allocate memory: 12 bytes")])
def test_without_memory_an_engine_asks_again_in_smaller_batches_and_answers_alike(start, folders, breaking, error, method):
    breaking(once(error), method)
    assert_all_answered(start(), folders)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_with_memory_for_one_row_at_a_time_still_answers_everyone(start, folders, breaking, workers):
    breaking(lambda batch: torch.OutOfMemoryError() if batch.n_alive > 1 else None)
    assert_all_answered(start(workers), folders)


def test_a_request_that_does_not_fit_even_alone_fails_and_no_other_does(start, folders, breaking):
    hungry = AnswerRequest(PROMPTS[5], 77)
    breaking(lambda batch: torch.OutOfMemoryError() if any(ticket.request is hungry for ticket in batch.tickets) else None)
    engine = start()
    futures = [engine.submit(folders[who], request) for who, request in QUEUE[:6]]
    refused = engine.submit(None, hungry)
    assert [future.result(60) for future in futures] == [alone(who, request) for who, request in QUEUE[:6]]
    with pytest.raises(torch.OutOfMemoryError):
        refused.result(60)


def test_another_error_is_told_to_those_in_hand_and_the_engine_goes_on(start, folders, breaking):
    breaking(once(ValueError("odd")))
    engine = start()
    future = engine.submit(None, QUEUE[0][1])
    with pytest.raises(ValueError, match="odd"):
        future.result(60)
    assert_all_answered(engine, folders)


def test_a_request_that_is_cancelled_is_not_answered_and_the_others_are(start, folders):
    engine = start()
    futures = [engine.submit(folders[who], AnswerRequest(PROMPTS[0], 60, seed=n)) for n, who in enumerate((0, 1) * 5)]
    cancelled = [future for future in futures[::2] if future.cancel()]
    assert {future.result(60) for future in futures[1::2]} == {alone(1, AnswerRequest(PROMPTS[0], 60))}
    for future in cancelled:
        with pytest.raises(CancelledError):
            future.result(60)


def test_a_closing_engine_answers_what_waits_and_takes_nothing_more(start, folders):
    engine = start(2)
    futures = [engine.submit(folders[who], request) for who, request in QUEUE]
    engine.close()
    assert [future.result(0) for future in futures] == [alone(who, request) for who, request in QUEUE]
    with pytest.raises(RunError, match="put away"):
        engine.submit(None, QUEUE[0][1])


def test_an_engine_that_is_dropped_ends_without_answering_what_waits(start, folders):
    engine = start()
    futures = [engine.submit(folders[1], AnswerRequest(PROMPTS[0], 150, seed=n, temperature=1.0)) for n in range(20)]
    engine.close(drop=True)
    assert not any(future.done() for future in futures)


@pytest.mark.parametrize("request_", [AnswerRequest((), 4), ScoreRequest((), (1,)), ScoreRequest((1,), ())])
def test_a_request_without_a_token_is_refused(start, request_):
    with pytest.raises(RunError, match="at least one token"):
        start().submit(None, request_)


def test_an_adapter_of_another_base_is_refused_before_anything_is_asked(start, tmp_path):
    some_adapter(SharedBase(tiny_model()), 1).save(tmp_path / "other", "tiny")
    with pytest.raises(RunError, match="does not fit the base"):
        start().submit(tmp_path / "other", QUEUE[0][1])


# The real small model.


@pytest.mark.model
def test_the_real_small_model_answers_as_generate_does_and_as_it_does_alone(small_base):
    tokenizer = load_tokenizer(small_base.location)
    chat = ChatFormat(tokenizer)
    questions = ("What is the capital of France?", "Name a color.")
    asked = [chat.prompt_ids_and_opening((Message(role="user", content=question),), "Answer in one short sentence.") for question in questions]
    model = load_model(small_base.location, "float32")
    expected = [tuple(itertools.takewhile(lambda i: i not in chat.stop_ids, plain_answer(model, ids, 10))) for ids, _ in asked]
    shared = SharedBase(model)
    ask = functools.partial(answers_of, shared, stop_ids=chat.stop_ids)
    requests = [(None, AnswerRequest(tuple(ids), 10, n_opening=n, top_log_probabilities=1)) for ids, n in asked]
    together = ask(requests)
    assert [answer.ids for answer in together] == expected
    assert "stop" in {answer.finish_reason for answer in together}
    assert together == [ask([one])[0] for one in requests]
