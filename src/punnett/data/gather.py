"""Prompt file in, prompts out: reads JSONL, JSON, CSV and Parquet in the columns that the hub's data sets use."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from punnett.errors import SpecError
from punnett.spec.key import derive_seed, digest_of
from punnett.spec.prompt import Message, Prompt, PromptSet

PROMPT_COLUMNS = {"prompt_id": str, "messages": str, "tags": str}


def read_prompts(path: Path) -> list[Prompt]:
    """Every prompt of a file, in its order.

    A row has `messages` (a list of role and content), or `prompt`, or `instruction` with an optional `input`;
    and optionally `tags` (a list, or words parted by commas). Raises SpecError with the row's number.
    """
    if not path.is_file():
        raise SpecError(f"the prompt file {path} is not there")
    prompts: list[Prompt] = []
    first_row: dict[str, int] = {}
    for number, row in enumerate(_rows_or_refusal(path), start=1):
        prompt = _prompt(row, f"{path.name}, row {number}")
        if prompt.id in first_row:
            raise SpecError(
                f"{path.name}: rows {first_row[prompt.id]} and {number} are the same chat, so both have the id {prompt.id}; "
                "remove one of them (a prompt's id is the hash of its content)"
            )
        first_row[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise SpecError(f"the prompt file {path} holds no prompts")
    return prompts


def content_digest(prompts: list[Prompt]) -> str:
    """What the file holds, wherever it lies: ids and tags in order."""
    return digest_of([[prompt.id, list(prompt.tags)] for prompt in prompts])


def gather(request: PromptSet) -> list[Prompt]:
    """The prompts of a set. Raises SpecError if the file has changed since the set was named."""
    prompts = read_prompts(Path(request.location))
    if content_digest(prompts) != request.content_digest:
        raise SpecError(f"the prompt file {request.location} has changed since the study was read; read it again")
    return take(prompts, request.limit, request.seed)


def take(prompts: list[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """A nested random part in the file's order: the 50 that `limit: 50` takes are among the 100 of `limit: 100`."""
    if limit is None or limit >= len(prompts):
        return prompts
    chosen = sorted(prompts, key=lambda p: (derive_seed(seed, "limit", p.id), p.id))[:limit]
    ids = {prompt.id for prompt in chosen}
    return [prompt for prompt in prompts if prompt.id in ids]


def prompt_row(prompt: Prompt) -> dict[str, str]:
    """A prompt as the store keeps it."""
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return {
        "prompt_id": prompt.id,
        "messages": json.dumps(messages, ensure_ascii=False),
        "tags": json.dumps(list(prompt.tags), ensure_ascii=False),
    }


def prompt_from_row(row: dict[str, Any]) -> Prompt:
    """The prompt that `prompt_row` kept."""
    messages = tuple(Message(**message) for message in json.loads(row["messages"]))
    return Prompt(messages=messages, tags=tuple(json.loads(row["tags"])))


def _rows_or_refusal(path: Path) -> Iterator[dict[str, Any]]:
    """The file's rows; whatever the libraries say of a broken file is told as one SpecError."""
    try:
        yield from _rows(path)
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"{path.name} cannot be read: {error}") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse(line, f"{path.name}, line {number}")
    elif kind == ".json":
        rows = _parse(path.read_text(encoding="utf-8-sig"), path.name)
        if not isinstance(rows, list):
            raise SpecError(f"{path.name} holds {type(rows).__name__}, not a list of rows")
        yield from rows
    elif kind == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    elif kind == ".parquet":
        import polars

        yield from polars.read_parquet(path).to_dicts()
    else:
        raise SpecError(f"{path.name}: punnett reads .jsonl, .json, .csv and .parquet, not {kind or 'a file without ending'}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SpecError(f"{where} is not JSON: {error}") from error


def _prompt(row: Any, where: str) -> Prompt:
    if not isinstance(row, dict):
        raise SpecError(f"{where} holds {type(row).__name__}, not an object with messages")
    tags = row.get("tags") or ()
    if isinstance(tags, str):
        tags = [tag.strip() for tag in tags.split(",") if tag.strip()]
    messages = row.get("messages") or _single_turn(row)
    if isinstance(messages, str):
        is_json = bool(row.get("messages")) and messages.lstrip().startswith("[")
        messages = _parse(messages, where) if is_json else [{"role": "user", "content": messages}]
    if not messages:
        raise SpecError(f"{where} has none of the columns messages, prompt, instruction; it has {', '.join(map(str, row))}")
    try:
        prompt = Prompt(messages=tuple(Message(**message) for message in messages), tags=tuple(tags))
    except (ValidationError, TypeError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise SpecError(f"{where}: messages must be a list of role (system, user or assistant) and content: {first}") from error
    if not all(_is_text(message.content) for message in prompt.messages):
        raise SpecError(f"{where} holds half a character (a lone surrogate), which no file can keep")
    if prompt.messages[-1].role == "assistant":
        raise SpecError(f"{where} ends with an assistant's turn; a prompt ends where the assistant speaks")
    return prompt


def _single_turn(row: dict[str, Any]) -> list[dict[str, str]] | str | None:
    if row.get("prompt"):
        return row["prompt"]
    if row.get("instruction"):
        text = str(row["instruction"])
        return [{"role": "user", "content": f"{text}\n\n{row['input']}" if row.get("input") else text}]
    return None


def _is_text(text: str) -> bool:
    """Whether the text is whole characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
