"""Prompts and sets of them: a chat up to where the assistant speaks."""

from typing import Literal

from pydantic import Field

from punnett.spec.key import Noun, digest_of, label


class Message(Noun):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Noun):
    """A chat up to where the assistant speaks, with free tags; its id is the hash of its messages."""

    messages: tuple[Message, ...] = Field(min_length=1)
    tags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """16 hexadecimal digits; the same chat has the same id in every set and every study."""
        return digest_of([[message.role, message.content] for message in self.messages])[:16]

    @property
    def text(self) -> str:
        """The last user turn, for people and for rules."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), self.messages[-1].content)


class PromptSet(Noun):
    """Prompts of one file, a nested random part of them if `limit` is given.

    `content_digest` covers ids and tags in the file's order, so the file may move but not change.
    """

    name: str = label()
    location: str = label()
    content_digest: str
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0
