"""A mix in, the table of training rows out. Knows selections and interventions; knows nothing of tokens."""

import json
from collections.abc import Callable
from typing import Any

from punnett.data.gather import prompt_from_row
from punnett.data.select import keyed_order, select
from punnett.errors import SpecError
from punnett.spec.key import Noun, derive_seed
from punnett.spec.mix import Drop, DropAndRefill, Mix, Switch
from punnett.spec.prompt import Prompt
from punnett.spec.teacher import RolloutSet

MIX_COLUMNS = {
    "slot": str,
    "prompt_id": str,
    "rollout_id": str,
    "teacher": str,
    "intervention": str,
    "messages": str,
    "tags": str,
    "completion": str,
    "finish_reason": str,
}

ReadRows = Callable[[Noun], list[dict[str, Any]]]


def blend(mix: Mix, read: ReadRows) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Training rows in the prompts' order, and facts about what was left out.

    A row's `slot` keys its place in training: the prompt's own id, also after a switch; after a refill, the id of
    the prompt that left. Raises SpecError if nothing is left to train on.
    """
    prompts = {p.id: p for p in map(prompt_from_row, read(mix.rollouts.prompts))}
    unfinished = {row["prompt_id"] for rollouts in _all_rollouts(mix) for row in read(rollouts) if not _is_whole(row)}
    kept = [p for p in prompts.values() if p.id not in unfinished]
    if not kept:
        raise SpecError(f"all {len(prompts)} prompts have an unfinished or empty answer; raise the teacher's max_tokens")
    rows = _rows_of(mix.rollouts, kept, read, "")
    for intervention in mix.interventions:
        chosen = select(intervention.selection, kept)
        match intervention:
            case Switch(to=other):
                replacements = _rows_of(other, [p for p in kept if p.id in chosen], read, "switched")
                rows = _replace(rows, {r["slot"]: r for r in replacements})
            case Drop():
                rows = [row for row in rows if row["prompt_id"] not in chosen]
            case DropAndRefill(seed=seed):
                rows = _refill(rows, chosen, [p for p in kept if p.id not in chosen], seed)
    if not rows:
        raise SpecError("the interventions leave no prompt to train on")
    return rows, {"n_prompts": len(prompts), "n_left_out_unfinished": len(prompts) - len(kept)}


def _is_whole(answer: dict[str, Any]) -> bool:
    """Whether a teacher ended its answer by itself, and said something."""
    return answer["finish_reason"] == "stop" and bool(answer["completion"].strip())


def _all_rollouts(mix: Mix) -> list[RolloutSet]:
    switched = [i.to for i in mix.interventions if isinstance(i, Switch)]
    return [mix.rollouts, *switched, *mix.paired_with]


def _rows_of(rollouts: RolloutSet, prompts: list[Prompt], read: ReadRows, intervention: str) -> list[dict[str, Any]]:
    answers: dict[str, list[dict[str, Any]]] = {}
    for row in read(rollouts):
        answers.setdefault(row["prompt_id"], []).append(row)
    return [_row(p, answer, rollouts, intervention) for p in prompts for answer in sorted(answers[p.id], key=lambda a: a["draw"])]


def _row(prompt: Prompt, answer: dict[str, Any], rollouts: RolloutSet, intervention: str) -> dict[str, Any]:
    draw = answer["draw"]
    return {
        "slot": prompt.id if draw == 0 else f"{prompt.id}:{draw}",
        "prompt_id": prompt.id,
        "rollout_id": answer["rollout_id"],
        "teacher": rollouts.teacher.name,
        "intervention": intervention,
        "messages": json.dumps([{"role": m.role, "content": m.content} for m in prompt.messages], ensure_ascii=False),
        "tags": json.dumps(list(prompt.tags), ensure_ascii=False),
        "completion": answer["completion"],
        "finish_reason": answer["finish_reason"],
    }


def _replace(rows: list[dict[str, Any]], replacements: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [replacements.get(row["slot"], row) for row in rows]


def _refill(rows: list[dict[str, Any]], gone: frozenset[str], stayed: list[Prompt], seed: int) -> list[dict[str, Any]]:
    """Each freed slot repeats a prompt that stayed, every one once before any twice."""
    if not stayed:
        raise SpecError("drop and refill has nothing to refill with: the selection holds every prompt")
    first_row = {row["prompt_id"]: row for row in reversed(rows)}
    freed = sorted((row["slot"] for row in rows if row["prompt_id"] in gone), key=lambda s: (derive_seed(seed, "slot", s), s))
    donors = keyed_order([p for p in stayed if p.id in first_row], seed, "refill")
    filling = {slot: {**first_row[donors[i % len(donors)]], "slot": slot, "intervention": "refilled"} for i, slot in enumerate(freed)}
    return [filling.get(row["slot"], row) for row in rows]
