"""A finished sample in, the facts that say whether its score can be trusted out."""

import re
from typing import Any

from inspect_ai.solver import TaskState

REFUSAL = re.compile(
    r"^\W*(?:I'm sorry|I am sorry|Sorry)?,?\W*(?:but )?I (?:can't|cannot|can not|am unable to|won't) (?:help|assist|answer|do|provide|comply)", re.I
)


def validity(state: TaskState, format_ok: bool) -> dict[str, Any]:
    """Whether the answer had the asked form, was cut off, or refused; a scorer puts this into its Score's metadata."""
    answer = state.output.completion
    return {
        "format_ok": format_ok,
        "truncated": state.output.stop_reason == "max_tokens",
        "refused": bool(REFUSAL.search(answer.replace("’", "'"))),
    }
