"""Prompts and a teacher in, rollouts out. A real teacher is an Inspect model; a scripted one rewrites another's rollouts."""

import asyncio
from collections.abc import Callable
from typing import Any

from punnett.answers import AnswerCache
from punnett.chat import with_system_prompt
from punnett.data.gather import prompt_from_row
from punnett.data.rewrites import REWRITES, rewrite_answer
from punnett.errors import RunError
from punnett.spec.key import Noun, derive_seed, digest_of
from punnett.spec.prompt import Prompt
from punnett.spec.teacher import Base, ModelTeacher, RolloutSet, ScriptedTeacher

ROLLOUT_COLUMNS = {
    "rollout_id": str,
    "prompt_id": str,
    "draw": int,
    "completion": str,
    "reasoning": str,
    "finish_reason": str,
    "served_model": str,
}

# Prompts asked at once: enough to keep every worker's batch full, few enough that a kill loses little.
CHUNK = 512
FINISH = {"stop": "stop", "max_tokens": "length", "model_length": "length"}

ReadRows = Callable[[Noun], list[dict[str, Any]]]


def sample(request: RolloutSet, read: ReadRows, cache: AnswerCache, on_tokens: Callable[[int], None]) -> list[dict[str, Any]]:
    """The rollouts of a set, sorted by prompt id and draw. Raises RunError if the teacher's model fails."""
    prompts = sorted(map(prompt_from_row, read(request.prompts)), key=lambda p: p.id)
    if isinstance(request.teacher, ScriptedTeacher):
        return _rewrite(request, request.teacher, prompts, read)
    return asyncio.run(_ask_all(request, request.teacher, prompts, cache, on_tokens))


def _rewrite(request: RolloutSet, teacher: ScriptedTeacher, prompts: list[Prompt], read: ReadRows) -> list[dict[str, Any]]:
    source = request.source
    assert source is not None
    by_id = {p.id: p for p in prompts}
    rows = []
    for row in read(source):
        prompt = by_id[row["prompt_id"]]
        text = rewrite_answer(REWRITES[teacher.rewrite], prompt, row["completion"], teacher.dose, teacher.seed)
        rows.append({**row, "completion": text, "rollout_id": _rollout_id(prompt.id, row["draw"], text)})
    return rows


async def _ask_all(
    request: RolloutSet, teacher: ModelTeacher, prompts: list[Prompt], cache: AnswerCache, on_tokens: Callable[[int], None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    questions = [(prompt, draw) for prompt in prompts for draw in range(request.draws)]
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        calls = [_call(request, teacher, prompt, draw) for prompt, draw in chunk]
        known = [cache.get(call) for call in calls]
        model = _open_model(teacher, n_at_once=known.count(None)) if None in known else None
        outcomes = await asyncio.gather(
            *(_ask(model, request, teacher, p, c, a, cache, on_tokens) for (p, _), c, a in zip(chunk, calls, known, strict=True)),
            return_exceptions=True,  # so that every answer that was paid for is kept before the first failure is told
        )
        answers: list[dict[str, Any]] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            answers.append(outcome)
        rows += [
            {"rollout_id": _rollout_id(prompt.id, draw, answer["completion"]), "prompt_id": prompt.id, "draw": draw, **answer}
            for (prompt, draw), answer in zip(chunk, answers, strict=True)
        ]
    return rows


def _open_model(teacher: ModelTeacher, n_at_once: int) -> Any:
    from inspect_ai.model import GenerateConfig, get_model

    if isinstance(teacher.model, Base):
        # without an explicit number Inspect lets only a few requests through at first, and a batch would never fill
        together = GenerateConfig(max_connections=n_at_once)
        base = teacher.model
        return get_model(f"punnett/{base.name}", location=base.location, config=together, memoize=False)
    return get_model(teacher.model)


def _call(request: RolloutSet, teacher: ModelTeacher, prompt: Prompt, draw: int) -> dict[str, Any]:
    """What was asked, in full: two calls with the same value would get the same answer."""
    model = teacher.model if isinstance(teacher.model, str) else [teacher.model.weights_digest, teacher.model.tokenizer_digest]
    messages = with_system_prompt(prompt.messages, request.system_prompt)
    return {
        "model": model,
        "messages": [[m.role, m.content] for m in messages],
        "sampling": teacher.sampling.model_dump(mode="json"),
        "seed": derive_seed(request.seed, prompt.id, draw),
        "draw": draw,
    }


async def _ask(
    model: Any,
    request: RolloutSet,
    teacher: ModelTeacher,
    prompt: Prompt,
    call: dict[str, Any],
    known: dict[str, Any] | None,
    cache: AnswerCache,
    on_tokens: Callable[[int], None],
) -> dict[str, Any]:
    if known is not None:
        return known
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig

    kinds: dict[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    messages = [kinds[m.role](content=m.content) for m in with_system_prompt(prompt.messages, request.system_prompt)]
    sampling = teacher.sampling
    config = GenerateConfig(
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature > 0 else None,
        max_tokens=sampling.max_tokens,
        seed=call["seed"] % 2**31,  # providers take 32 bits at most
    )
    try:
        output = await model.generate(messages, config=config)
    except Exception as error:
        raise RunError(f"teacher {teacher.name or teacher.model} did not answer prompt {prompt.id}: {error}") from error
    if output.error or output.empty:
        raise RunError(f"teacher {teacher.name or teacher.model} gave no answer to prompt {prompt.id}: {output.error}")
    answer = as_answer(output)
    cache.put(call, answer)
    on_tokens(output.usage.output_tokens if output.usage else len(answer["completion"]) // 4)
    return answer


def as_answer(output: Any) -> dict[str, Any]:
    """Text, reasoning apart from it, why it ended, and which model the provider says that it served."""
    message = output.choices[0].message
    content = message.content if isinstance(message.content, list) else []
    reasoning = "\n".join(part.reasoning for part in content if part.type == "reasoning")
    return {
        "completion": _whole(message.text),
        "reasoning": _whole(reasoning),
        "finish_reason": FINISH.get(output.stop_reason, str(output.stop_reason)),
        "served_model": output.model,
    }


def _rollout_id(prompt_id: str, draw: int, completion: str) -> str:
    return digest_of([prompt_id, draw, completion])[:16]


def _whole(text: str) -> str:
    """The text with half characters (lone surrogates), which no file can hold, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
