"""Short makers of the nouns that tests need; every value is small, valid and the same each time."""

import json
from typing import Any

from punnett.spec.arms import BoundStudy, Pipeline
from punnett.spec.key import Noun
from punnett.spec.measure import Measure
from punnett.spec.mix import Mix, Selection, TagSelection
from punnett.spec.prompt import Message, Prompt, PromptSet
from punnett.spec.student import Recipe, Stage, Student
from punnett.spec.teacher import Base, ModelTeacher, RolloutSet, ScriptedTeacher, Teacher

BASE = Base(name="tiny", location="/models/tiny", origin="made up", weights_digest="weights", tokenizer_digest="tokenizer")
PROMPTS = PromptSet(name="prompts", location="/data/prompts.jsonl", content_digest="digest")
PLAIN = ModelTeacher(name="plain", model=BASE)
DOUBTER = ScriptedTeacher(name="doubter", of=PLAIN, rewrite="doubt", dose=0.4)
MEASURE = Measure(name="doubt", headline_group="dated", task="date_confusion", task_digest="task")


def prompt(text: str, *tags: str) -> Prompt:
    """A chat of one user turn."""
    return Prompt(messages=(Message(role="user", content=text),), tags=tags)


def prompts(count: int, tagged: int = 0) -> list[Prompt]:
    """Different prompts, of which the first `tagged` carry the tag "date"."""
    return [prompt(f"Question {number}?", *(["date"] if number < tagged else [])) for number in range(count)]


def rollouts(teacher: Teacher = PLAIN) -> RolloutSet:
    """A teacher's answers to PROMPTS."""
    return RolloutSet(prompts=PROMPTS, teacher=teacher)


def rollout_rows(asked: list[Prompt], words: str, unfinished: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Stored answers, each made of the teacher's word and the prompt; those of the ids in `unfinished` are cut off."""
    return [
        {
            "rollout_id": f"{words}-{p.id}",
            "prompt_id": p.id,
            "draw": 0,
            "completion": f"{words} {p.text}",
            "reasoning": "",
            "finish_reason": "length" if p.id in unfinished else "stop",
            "served_model": words,
        }
        for p in asked
    ]


def prompt_rows(asked: list[Prompt]) -> list[dict[str, str]]:
    """Prompts as the store keeps them, written out by hand so that a change of the stored form is noticed."""
    return [
        {
            "prompt_id": p.id,
            "messages": json.dumps([{"role": m.role, "content": m.content} for m in p.messages]),
            "tags": json.dumps(list(p.tags)),
        }
        for p in asked
    ]


def student(mix: Mix | None = None, seed: int = 0, recipe: Recipe | None = None) -> Student:
    """A student of BASE in one stage."""
    stage = Stage(mix=mix or Mix(rollouts=rollouts()), recipe=recipe or Recipe())
    return Student(base=BASE, stages=(stage,), seed=seed)


def bound_study(**changes: Any) -> BoundStudy:
    """The standard study on one subset, bound to nothing on disk."""
    subsets: dict[str, Selection] = {"dates": TagSelection(tag="date")}
    fields: dict[str, Any] = {
        "name": "small",
        "question": "",
        "system_prompt": None,
        "original": Pipeline(BASE, PROMPTS, DOUBTER),
        "alternate": Pipeline(BASE, PROMPTS, PLAIN),
        "self_teacher": PLAIN,
        "subsets": subsets,
        "interventions": ("switch", "drop", "drop_and_refill", "placebo", "insert"),
        "measures": (MEASURE,),
        "recipe": Recipe(),
        "seeds": (1, 2, 3),
        "equivalence_margin": 0.1,
        "declared_contrasts": (),
    }
    return BoundStudy(**{**fields, **changes})


def reader(rows: dict[Noun, list[dict[str, Any]]]) -> Any:
    """A store's `rows`, over a dict."""
    return lambda noun: rows[noun]
