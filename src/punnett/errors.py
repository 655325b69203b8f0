"""The errors that punnett raises on purpose; each says what was asked, what was found and what to do.

PunnettError
├── SpecError    the study (or another request) cannot mean anything; raised before any compute
├── StoreError   an entry of the store is missing, damaged or not to be written
└── RunError     a model, a trainer or a judge did not do what the request asks
"""

from difflib import get_close_matches


class PunnettError(Exception):
    """Anything that punnett refuses on purpose; the command line prints it without a traceback."""


class SpecError(PunnettError):
    """A request that cannot mean anything, found before any compute."""


class StoreError(PunnettError):
    """An entry of the store that is missing, damaged, or not to be written."""


class RunError(PunnettError):
    """A station that could not make what it was asked to make."""


def nearest(word: str, known: list[str]) -> str:
    """A sentence for the end of an error: the nearest valid name, or the valid names."""
    matches = get_close_matches(word, known, n=1, cutoff=0.6)
    if matches:
        return f'Did you mean "{matches[0]}"?'
    shown = ", ".join(sorted(known)[:12])
    return f"Valid names: {shown}." if shown else "None is defined."
