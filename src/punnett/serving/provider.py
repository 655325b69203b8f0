"""Inspect's name for a finished student: `punnett/<key>`, or `punnett/<base>` for an untouched base.

Any Inspect task, and `inspect eval` itself, can ask a student by this name. Keys may be shortened to a prefix.
The store is found through the `store` model argument, $PUNNETT_STORE, or `.punnett/store` below the working folder.
"""

import asyncio
import json
import os
import uuid
from pathlib import Path
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from punnett.bases import find_base
from punnett.errors import RunError, SpecError
from punnett.serving.engine import Speaker
from punnett.serving.requests import Answer, AnswerRequest, ScoreRequest, TokenLogProbability
from punnett.spec.key import derive_seed
from punnett.spec.prompt import Message
from punnett.store import Store

DEFAULT_MAX_TOKENS = 512
HEXADECIMAL = set("0123456789abcdef")


def store_from_environment(given: str | None = None) -> Store:
    """The store that a model name refers to."""
    return Store(given or os.environ.get("PUNNETT_STORE") or Path(".punnett") / "store")


def open_speaker(name: str, store: Store, location: str | None, dtype: str) -> Speaker:
    """Who answers under a name. Raises StoreError for an unknown student, SpecError for an unknown base."""
    if location is not None:
        return Speaker(location, dtype)
    if len(name) >= 6 and set(name) <= HEXADECIMAL:
        folder = store.find(name)
        request = json.loads((folder / "request.json").read_text())
        if request.get("noun") != "Student":
            raise SpecError(f"punnett/{name} is a {request.get('noun')}, and only students and bases answer")
        base = request["base"]
        # the recorded place may be another machine's; the digests decide which base is the right one
        found = find_base(base["location"] if Path(base["location"]).exists() else base["name"])
        if (found.weights_digest, found.tokenizer_digest) != (base["weights_digest"], base["tokenizer_digest"]):
            raise SpecError(f"student {name} grew from other weights than those of {found.name} in {found.location}")
        return Speaker(found.location, dtype, folder / "adapter")
    return Speaker(find_base(name).location, dtype)


class StudentAPI(ModelAPI):
    """A student or base as an Inspect model. Greedy unless a temperature is given; one sampling seed per request."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's signature)
        store: str | None = None,
        location: str | None = None,
        dtype: str = "float32",
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if model_args:
            raise SpecError(f"punnett/{model_name} does not know the model arguments {', '.join(model_args)}")
        self._speaker = open_speaker(model_name, store_from_environment(store), location, dtype)
        self._instance = uuid.uuid4().hex
        self._ready = False

    def max_connections(self) -> int:
        """Many: requests wait in one queue for all students of a base, and the more there are, the fuller the batches."""
        return 4096

    def connection_key(self) -> str:
        """One for each instance: Inspect shares its limit on requests by this key, and one task's must not be the next one's."""
        return f"punnett/{self.model_name}/{self._instance}"

    def max_tokens(self) -> int:
        """How long an answer may get where the task does not say."""
        return DEFAULT_MAX_TOKENS

    async def generate(self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig) -> ModelOutput:
        """Answer one chat. An assistant's turn at the end is a prefill that the answer goes on from."""
        if tools:
            raise RunError("punnett's students do not call tools; choose a task without tools")
        messages = [Message(role=_role(m), content=m.text) for m in input]
        prefill = messages.pop().content if messages and messages[-1].role == "assistant" else ""
        ids, n_opening = self._speaker.chat_format.prompt_ids_and_opening(tuple(messages), prefill=prefill)
        request = AnswerRequest(
            ids=tuple(ids),
            n_opening=n_opening,
            max_tokens=config.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=config.temperature or 0.0,
            top_p=1.0 if config.top_p is None else config.top_p,
            seed=derive_seed(config.seed or 0, "decode", *ids),
            stop_strings=tuple(config.stop_seqs or ()),
            top_log_probabilities=(config.top_logprobs or 0) if config.logprobs else None,
        )
        [answer] = await self._ask([request])
        return self._output(answer, len(ids), request.stop_strings)

    async def log_probabilities(self, messages: list[Message], continuations: list[str]) -> list[list[float]]:
        """The natural log-probability of every token of each given continuation of the assistant's turn; nothing is generated.

        Raises RunError for a continuation without a token.
        """
        chat = self._speaker.chat_format
        ids, n_opening = chat.prompt_ids_and_opening(tuple(messages))
        answers = await self._ask([ScoreRequest(tuple(ids), tuple(chat.text_ids(text)), n_opening) for text in continuations])
        return [[told.log_probability for told in answer.log_probabilities] for answer in answers]

    async def _ask(self, requests: list[AnswerRequest] | list[ScoreRequest]) -> list[Answer]:
        if not self._ready:  # the first request loads the base, which must not hold up the event loop
            await asyncio.to_thread(self._speaker.wake)
            self._ready = True
        return list(await asyncio.gather(*(asyncio.wrap_future(self._speaker.submit(request)) for request in requests)))

    def _output(self, answer: Answer, n_input_tokens: int, stop_strings: tuple[str, ...]) -> ModelOutput:
        text = self._speaker.text_of(answer.ids)
        for stop in stop_strings:
            text = text.split(stop, 1)[0]
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="stop" if answer.finish_reason == "stop" else "max_tokens",
            logprobs=Logprobs(content=[self._told(t) for t in answer.log_probabilities]) if answer.log_probabilities else None,
        )
        # usage is set here, because Inspect would otherwise download a tokenizer to count with
        usage = ModelUsage(input_tokens=n_input_tokens, output_tokens=len(answer.ids), total_tokens=n_input_tokens + len(answer.ids))
        return ModelOutput(model=f"punnett/{self.model_name}", choices=[choice], usage=usage)

    def _told(self, told: TokenLogProbability) -> Logprob:
        likeliest = [TopLogprob(token=self._speaker.text_of([i]), logprob=p) for i, p in told.likeliest]
        return Logprob(token=self._speaker.text_of([told.token]), logprob=told.log_probability, top_logprobs=likeliest or None)


def _role(message: ChatMessage) -> Any:
    if message.role == "tool":
        raise RunError("punnett's students do not read tool results; choose a task without tools")
    return message.role
