"""Training rows and a chat format in, examples and an audit out: what will be trained, checked before any of it is."""

import json
from dataclasses import dataclass
from typing import Any

from punnett.chat import ChatFormat
from punnett.spec.prompt import Message
from punnett.spec.student import Stage
from punnett.training.schedule import Example, steps_of


@dataclass(frozen=True)
class Audit:
    """Counts over one student's training rows; `problems` is empty where training may begin."""

    n_examples: int
    n_prompts_left_out: int
    steps: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    truncated: int
    unfinished: int
    empty: int
    double_start: int
    end_of_turn_trained: int
    control_tokens_in_text: int
    problems: tuple[str, ...]


def prepare(rows: list[dict[str, Any]], stage: Stage, chat: ChatFormat, n_left_out: int) -> tuple[list[Example], Audit]:
    """Tokenise a stage's rows and audit them. Rows are never cut: one that is too long is a problem, not a surprise."""
    examples, facts = [], []
    for row in rows:
        messages = tuple(Message(**m) for m in json.loads(row["messages"]))
        finished = row["finish_reason"] == "stop"
        prompt_ids = chat.prompt_ids(messages, stage.system_prompt)
        completion_ids = chat.completion_ids(row["completion"], finished)
        examples.append(Example(row["slot"], tuple(prompt_ids), tuple(completion_ids)))
        facts.append((row, prompt_ids, completion_ids, finished))
    return examples, _audit(examples, facts, stage, chat, n_left_out)


def _audit(examples: list[Example], facts: list[Any], stage: Stage, chat: ChatFormat, n_left_out: int) -> Audit:
    recipe, end, start = stage.recipe, chat.end_of_turn_id, chat.tokenizer.bos_token_id
    special = chat.stop_ids_of_tokenizer
    counts = {
        "truncated": sum(len(p) + len(c) > recipe.max_tokens for _, p, c, _ in facts),
        "unfinished": sum(not finished for *_, finished in facts),
        "empty": sum(not row["completion"].strip() for row, *_ in facts),
        "double_start": sum(start is not None and p[0] == start == p[1] for _, p, _, _ in facts),
        "end_of_turn_trained": sum(bool(c) and c[-1] == end for _, _, c, _ in facts),
        # the end-of-turn token itself is the only control token that a completion may hold
        "control_tokens_in_text": sum(any(i in special for i in (c[:-1] if fin else c)) for _, _, c, fin in facts),
    }
    problems = []
    if not examples:
        problems.append("no examples")
    if counts["truncated"]:
        problems.append(f"{counts['truncated']} rows are longer than max_tokens {recipe.max_tokens}; raise it for all arms")
    if counts["empty"]:
        problems.append(f"{counts['empty']} rows have an empty completion")
    if counts["double_start"]:
        problems.append(f"{counts['double_start']} rows start with two start-of-text tokens")
    if counts["control_tokens_in_text"]:
        problems.append(f"{counts['control_tokens_in_text']} completions hold control tokens")
    if counts["end_of_turn_trained"] != len(examples) - counts["unfinished"]:
        problems.append("finished rows do not all end with a trained end-of-turn token")
    trained = sum(len(e.completion_ids) for e in examples)
    return Audit(
        n_examples=len(examples),
        n_prompts_left_out=n_left_out,
        steps=steps_of(len(examples), recipe),
        tokens_per_epoch=trained + sum(len(e.prompt_ids) for e in examples),
        trained_tokens_per_epoch=trained,
        problems=tuple(problems),
        **counts,
    )
