"""Which prompts, what is done to them, and the table of training rows that comes out.

Selections and interventions are values; what they do to rows lies in `punnett.data`.
"""

from typing import Annotated, Literal

from pydantic import Field

from punnett.spec.key import Noun
from punnett.spec.teacher import RolloutSet


class TagSelection(Noun):
    """The prompts that carry a tag."""

    select: Literal["tag"] = "tag"
    tag: str


class FractionSelection(Noun):
    """A random share of the prompts, nested: 5 % lies within 10 % of the same seed."""

    select: Literal["fraction"] = "fraction"
    fraction: float = Field(ge=0.0, le=1.0)
    seed: int = 0


class IdSelection(Noun):
    """The prompts named by id."""

    select: Literal["ids"] = "ids"
    ids: tuple[str, ...] = Field(min_length=1)


class ComplementSelection(Noun):
    """All the prompts that another selection leaves."""

    select: Literal["complement"] = "complement"
    of: "Selection"


class PlaceboSelection(Noun):
    """As many prompts as another selection holds, drawn at random from those that it leaves."""

    select: Literal["placebo"] = "placebo"
    of: "Selection"
    seed: int = 0


Selection = Annotated[
    TagSelection | FractionSelection | IdSelection | ComplementSelection | PlaceboSelection,
    Field(discriminator="select"),
]


class Switch(Noun):
    """The selected prompts keep their place; their rollouts come from another teacher."""

    do: Literal["switch"] = "switch"
    selection: Selection
    to: RolloutSet


class Drop(Noun):
    """The selected prompts leave; the others keep their order and the run gets shorter."""

    do: Literal["drop"] = "drop"
    selection: Selection


class DropAndRefill(Noun):
    """The selected prompts leave; each freed place repeats a prompt that stayed, so that the steps are the same."""

    do: Literal["drop_and_refill"] = "drop_and_refill"
    selection: Selection
    seed: int = 0


Intervention = Annotated[Switch | Drop | DropAndRefill, Field(discriminator="do")]


class Mix(Noun):
    """One teacher's rollouts, then interventions in order.

    A prompt whose answer is unfinished or empty in any of `paired_with` is left out, in every arm alike:
    otherwise a wordy teacher would train on other prompts than a terse one.
    """

    rollouts: RolloutSet
    interventions: tuple[Intervention, ...] = ()
    paired_with: tuple[RolloutSet, ...] = ()


for noun in (ComplementSelection, PlaceboSelection, Switch, Drop, DropAndRefill, Mix):
    noun.model_rebuild()
