"""Noun in, content key and seeds out. Knows nothing of files.

A key names what a request *means*: labels, the order in which fields were written and
fields left at their default do not change it; everything that changes numbers does.
"""

import hashlib
import json
import math
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

KEY_BYTES = 16


class Noun(BaseModel):
    """A frozen request made of plain values; `revision` is raised when what it makes changes meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    revision: ClassVar[int] = 1


def label(default: Any = "", **more: Any) -> Any:
    """A field that is shown to people and is no part of the key."""
    return Field(default=default, json_schema_extra={"label": True}, **more)


def is_label(field: FieldInfo) -> bool:
    """Whether a field is left out of the key."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("label"))


def canonical(value: Any) -> Any:
    """The JSON value that is hashed for a noun, or for a plain value inside one.

    Raises TypeError for anything but nouns, lists, tuples, strings, numbers, booleans and None,
    and for numbers that are not finite: such a request could not be stored or compared.
    """
    if isinstance(value, Noun):
        fields = {
            name: canonical(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if not is_label(field) and getattr(value, name) != field.get_default(call_default_factory=True)
        }
        return {"noun": type(value).__name__, "revision": type(value).revision, "fields": fields}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"a request cannot hold {value!r}: only finite numbers can be compared")
        return value + 0.0  # so that -0.0, which equals 0.0, has its key
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"a request cannot hold {type(value).__name__} {value!r}: only plain values can be stored")


def content_key(noun: Noun) -> str:
    """32 hexadecimal digits that name the noun's content."""
    return digest_of(canonical(noun))


def digest_of(value: Any) -> str:
    """The digest of a JSON value: the same for equal values in any order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # surrogatepass: text from models may hold lone surrogates, and it must still have a key
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).hexdigest()


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from stable ids, never from positions: dropping one item re-seeds no other."""
    text = json.dumps(parts, ensure_ascii=False)
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big") >> 1
