"""Key in, one entry told out: its request, its lineage as a tree, its manifest and first rows."""

import json
from typing import Any

from punnett.spec.graph import needs
from punnett.spec.key import Noun, content_key
from punnett.spec.measure import Evaluation
from punnett.spec.mix import Mix
from punnett.spec.prompt import PromptSet
from punnett.spec.student import Student
from punnett.spec.teacher import RolloutSet
from punnett.store import MANIFEST, REQUEST, ROWS, Store, read_rows

NOUNS: dict[str, type[Noun]] = {n.__name__: n for n in (PromptSet, RolloutSet, Mix, Student, Evaluation)}
FIRST_ROWS = 5


def describe(key: str, store: Store) -> dict[str, Any]:
    """All that is known of one entry. Raises StoreError for an unknown, ambiguous or damaged key."""
    folder = store.find(key)
    request = json.loads((folder / REQUEST).read_text())
    noun = restore(request)
    rows = read_rows(folder / ROWS) if (folder / ROWS).exists() else []
    return {
        "key": folder.name,
        "noun": request["noun"],
        "folder": str(folder),
        "request": {k: v for k, v in request.items() if k != "noun"},
        "lineage": lineage(noun, store),
        "manifest": json.loads((folder / MANIFEST).read_text()),
        "n_rows": len(rows),
        "rows": rows[:FIRST_ROWS],
    }


def restore(request: dict[str, Any]) -> Noun:
    """The noun that a stored request was."""
    fields = {k: v for k, v in request.items() if k != "noun"}
    return NOUNS[request["noun"]].model_validate_json(json.dumps(fields))


def lineage(noun: Noun, store: Store) -> dict[str, Any]:
    """A noun and, below it, what it was made from."""
    return {"label": title(noun), "done": store.has(noun), "needs": [lineage(need, store) for need in _direct(noun)]}


def title(noun: Noun) -> str:
    """A noun in one line: its kind, its key's first digits and what tells it apart."""
    key = content_key(noun)[:12]
    match noun:
        case PromptSet():
            return f"prompts {key}  {noun.name}"
        case RolloutSet():
            return f"rollouts {key}  by {noun.teacher.name}"
        case Mix():
            done = ", ".join(i.do for i in noun.interventions) or "as they are"
            return f"mix {key}  rollouts by {noun.rollouts.teacher.name}, {done}"
        case Student():
            return f"student {key}  seed {noun.seed}, base {noun.base.name}"
        case Evaluation():
            return f"evaluation {key}  {noun.measure.name}"
        case _:
            return f"{type(noun).__name__.lower()} {key}"


def _direct(noun: Noun) -> list[Noun]:
    """Direct needs, each once; what is only there to keep arms paired is left out."""
    found = needs(noun.model_copy(update={"paired_with": ()}) if isinstance(noun, Mix) else noun)
    below = {content_key(n) for need in found for n in needs(need)}
    return list({content_key(n): n for n in found if content_key(n) not in below}.values())
