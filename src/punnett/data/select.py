"""A selection and prompts in, prompt ids out."""

from punnett.errors import SpecError, nearest
from punnett.spec.key import derive_seed
from punnett.spec.mix import (
    ComplementSelection,
    FractionSelection,
    IdSelection,
    PlaceboSelection,
    Selection,
    TagSelection,
)
from punnett.spec.prompt import Prompt


def select(selection: Selection, prompts: list[Prompt]) -> frozenset[str]:
    """The ids that a selection holds among these prompts. Raises SpecError if it selects none, or names unknown ones."""
    chosen = _choose(selection, prompts)
    if not chosen:
        raise SpecError(f"{in_words(selection)} selects none of the {len(prompts)} prompts. {_advice(selection, prompts)}")
    return chosen


def in_words(selection: Selection) -> str:
    """A selection as people say it."""
    match selection:
        case TagSelection(tag=tag):
            return f'tag "{tag}"'
        case FractionSelection(fraction=fraction, seed=seed):
            return f"a random {fraction:.0%} (seed {seed})"
        case IdSelection(ids=ids):
            return f"{len(ids)} prompts by id"
        case ComplementSelection(of=other):
            return f"all but {in_words(other)}"
        case PlaceboSelection(of=other, seed=seed):
            return f"as many random prompts outside {in_words(other)} (seed {seed})"


def keyed_order(prompts: list[Prompt], seed: int, purpose: str) -> list[str]:
    """Ids in a random order that each prompt's own id decides: removing one leaves the others in order."""
    return sorted((p.id for p in prompts), key=lambda i: (derive_seed(seed, purpose, i), i))


def _choose(selection: Selection, prompts: list[Prompt]) -> frozenset[str]:
    everyone = frozenset(p.id for p in prompts)
    match selection:
        case TagSelection(tag=tag):
            return frozenset(p.id for p in prompts if tag in p.tags)
        case FractionSelection(fraction=fraction, seed=seed):
            return frozenset(keyed_order(prompts, seed, "fraction")[: round(fraction * len(prompts))])
        case IdSelection(ids=ids):
            return frozenset(ids) & everyone
        case ComplementSelection(of=other):
            return everyone - _choose(other, prompts)
        case PlaceboSelection(of=other, seed=seed):
            chosen = _choose(other, prompts)
            rest = [p for p in prompts if p.id not in chosen]
            if len(rest) < len(chosen):
                raise SpecError(
                    f"a placebo for {in_words(other)} needs {len(chosen)} other prompts, but only {len(rest)} are left; "
                    "choose a smaller subset or switch placebos off"
                )
            return frozenset(keyed_order(rest, seed, "placebo")[: len(chosen)])


def _advice(selection: Selection, prompts: list[Prompt]) -> str:
    if isinstance(selection, TagSelection):
        return nearest(selection.tag, sorted({tag for p in prompts for tag in p.tags}))
    return "Choose a larger part."
