"""What a station tells while it works: which thing is being made, how many tokens went by. Stations speak, someone may listen."""

from typing import Protocol

from punnett.spec.key import Noun


class Watch(Protocol):
    """Listens to a station."""

    def begin(self, request: Noun, total_tokens: int) -> None:
        """Work on a request starts; `total_tokens` is an estimate, 0 where none can be made."""

    def advance(self, tokens: int) -> None:
        """So many tokens were trained on, or generated, since the last call."""

    def end(self, request: Noun) -> None:
        """The request is made."""


class Silence:
    """Listens to nothing."""

    def begin(self, request: Noun, total_tokens: int) -> None:
        """Nothing."""

    def advance(self, tokens: int) -> None:
        """Nothing."""

    def end(self, request: Noun) -> None:
        """Nothing."""
