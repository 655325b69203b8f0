"""Chat in, token ids out; the same ids whether a teacher answers, a student trains or a student is asked.

The template's own text is tokenised with its control tokens; what people and models wrote is tokenised
apart, as plain text, so `<|im_end|>` inside an answer stays nine characters and never ends a turn.
Prompt and completion are tokenised apart and joined as ids, so that no merge crosses the border.
"""

from dataclasses import dataclass
from typing import Any

from punnett.errors import SpecError
from punnett.spec.prompt import Message

# Stands in for a message while the template is rendered: plain letters, so that no template strips or escapes it.
STAND_IN = "qzpunnettmessage{}zq"


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer's chat template as functions from messages to ids."""

    tokenizer: Any

    def prompt_ids(self, messages: tuple[Message, ...], system_prompt: str | None = None, prefill: str = "") -> list[int]:
        """Ids up to where the assistant speaks, then those of `prefill`. Raises SpecError if the template refuses the chat."""
        return self.prompt_ids_and_opening(messages, system_prompt, prefill)[0]

    def prompt_ids_and_opening(self, messages: tuple[Message, ...], system_prompt: str | None = None, prefill: str = "") -> tuple[list[int], int]:
        """As `prompt_ids`, and how many of the ids come before the last message's words.

        That opening (system prompt, worked examples) is what the items of a task have in common.
        """
        turns = with_system_prompt(messages, system_prompt)
        pieces = self._pieces(turns, generation=True)
        opening = self._join(pieces[:-1], turns[:-1])
        return opening + self._join(["", pieces[-1]], turns[-1:]) + self.text_ids(prefill), len(opening)

    def completion_ids(self, completion: str, finished: bool) -> list[int]:
        """Ids of an answer, ended by the end-of-turn token only where the teacher itself had finished."""
        ids = self.text_ids(completion)
        return [*ids, self.end_of_turn_id] if finished else ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of text that people or models wrote: never a control token."""
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @property
    def end_of_turn_id(self) -> int:
        """The first token that the template writes after an assistant's words; learning to stop is learning this one."""
        ids = self._control_ids(self._pieces(PROBE_WITH_ANSWER, generation=False)[-1])
        if not ids or ids[0] not in self.stop_ids_of_tokenizer:
            raise SpecError(
                "the chat template does not end an assistant's turn with a special token "
                f"(it writes {self.tokenizer.decode(ids[:4])!r}); a student could never learn to stop"
            )
        return ids[0]

    @property
    def stop_ids_of_tokenizer(self) -> set[int]:
        """Every id that the tokenizer calls special."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return set(self.tokenizer.all_special_ids) | added

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which decoding stops: end of turn and end of text."""
        ids = {self.end_of_turn_id}
        if self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        return tuple(sorted(ids))

    def check(self) -> None:
        """Refuse a template that cannot be trained on: none at all, a dropped message, a turn that never ends, two starts.

        Raises SpecError.
        """
        ids = self.prompt_ids(PROBE, "Probe.")
        bos = self.tokenizer.bos_token_id
        # in ChatML the start-of-turn token doubles as start-of-text, so only two in a row are an accident
        if bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
            raise SpecError("the chat template writes the start-of-text token twice in a row")
        if not self.completion_ids("Probe.", finished=True):
            raise SpecError("the tokenizer makes no tokens of a plain answer")

    def _pieces(self, turns: tuple[Message, ...], generation: bool) -> list[str]:
        """The template's text around the messages: one piece more than there are messages."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise SpecError(f"the tokenizer of {self.tokenizer.name_or_path} has no chat template; choose an instruction-tuned base")
        stand_ins = [STAND_IN.format(i) for i in range(len(turns))]
        chat = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, stand_ins, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation)
        except Exception as error:  # templates raise jinja2 errors of their own
            roles = ", ".join(turn.role for turn in turns)
            raise SpecError(f"the chat template refuses a chat of the roles {roles}: {error}") from error
        pieces = []
        for mark in stand_ins:
            before, found, text = text.partition(mark)
            if not found or mark in text:
                raise SpecError("the chat template leaves out, repeats or reorders a message; punnett cannot train on it")
            pieces.append(before)
        return [*pieces, text]

    def _join(self, pieces: list[str], turns: tuple[Message, ...]) -> list[int]:
        ids = self._control_ids(pieces[0])
        for turn, piece in zip(turns, pieces[1:], strict=True):
            ids += self.text_ids(turn.content) + self._control_ids(piece)
        return ids

    def _control_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


PROBE = (Message(role="user", content="Probe?"),)
PROBE_WITH_ANSWER = (*PROBE, Message(role="assistant", content="Probe."))


def with_system_prompt(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    """Put a system turn first, unless the chat brings its own."""
    if system_prompt is None or messages[0].role == "system":
        return messages
    return (Message(role="system", content=system_prompt), *messages)
