"""Items as text that anybody can read, and back as what they were.

Types are known because a module of ours, or the user's, names them with :func:`register_model`.
Nothing is imported or run because a file says so: a type that is not known comes back as plain
dictionaries, lists and numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from market_data_core.bars import BarBatch

Encoding = Literal["json", "msgpack", "bytes", "repr"]
"""How items stand in a record.

``json``: as they are. ``msgpack`` and ``bytes``: in base64, because JSON cannot hold them exactly
(NaN, times inside of dictionaries, arrays). ``repr``: for a person only; cannot be read back.
"""


@dataclass(frozen=True, slots=True)
class _Model:
    kind: Any
    encode: Callable[[Any], bytes] | None
    decode: Callable[[bytes], Any] | None


_models: dict[str, _Model] = {}


class UnreadableItems(ValueError):
    """A record's items cannot be made into what they were."""


def register_model(
    kind: type,
    *,
    encode: Callable[[Any], bytes] | None = None,
    decode: Callable[[bytes], Any] | None = None,
) -> None:
    """Let dead-letter files give back items of type `kind`.

    Args:
        kind: a msgspec Struct, dataclass, or anything else if the following are given.
        encode: an item's bytes.
        decode: the item of such bytes; must not run what they say.
    """
    _models[type_name(kind)] = _Model(kind, encode, decode)


def type_name(kind: type) -> str:
    """The qualified name under which a type stands in files."""
    return f"{kind.__module__}.{kind.__qualname__}"


def encode_items(items: Sequence[Any]) -> tuple[Encoding, bytes]:
    """The items, all of one type, as a JSON list."""
    model = _models.get(type_name(type(items[0])))
    if model is not None and model.encode is not None:
        return "bytes", _base64_list([model.encode(item) for item in items])
    try:
        packed = msgspec.msgpack.encode(list(items))
        text = msgspec.json.encode(list(items))
        back = msgspec.json.decode(text, type=_list_of(model))
        if msgspec.msgpack.encode(back) == packed:
            return "json", text
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass
    return _encode_packed(items, model)


def _encode_packed(items: Sequence[Any], model: _Model | None) -> tuple[Encoding, bytes]:
    """Items that JSON cannot hold exactly."""
    try:
        packed = [msgspec.msgpack.encode(item) for item in items]
        for item in packed:
            msgspec.msgpack.decode(item, type=Any if model is None else model.kind)
        return "msgpack", _base64_list(packed)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return "repr", msgspec.json.encode([repr(item) for item in items])


def decode_items(name: str, encoding: str, text: bytes, hint: type | None) -> list[Any]:
    """The items of :func:`encode_items`.

    Args:
        name: the type's qualified name as the record gives it.
        encoding: one of :data:`Encoding`.
        text: a JSON list.
        hint: a type that the reader expects, tried where the name is its own.

    Raises:
        UnreadableItems: the text does not fit the type, or was only meant for a person.
    """
    model = _models.get(name)
    if model is None and hint is not None and type_name(hint) == name:
        model = _Model(hint, None, None)
    try:
        if encoding == "json":
            items: list[Any] = msgspec.json.decode(text, type=_list_of(model))
            return items
        if encoding not in {"msgpack", "bytes"}:
            msg = f"items of type {name} were kept for reading only (encoding {encoding!r})"
            raise UnreadableItems(msg)
        parts = [base64.b64decode(p) for p in msgspec.json.decode(text, type=list[str])]
        if encoding == "msgpack":
            kind = Any if model is None else model.kind
            return [msgspec.msgpack.decode(part, type=kind) for part in parts]
        if model is None or model.decode is None:
            msg = f"type {name} is not known here; import the module that registers it"
            raise UnreadableItems(msg)
        return [model.decode(part) for part in parts]
    except UnreadableItems:
        raise
    except Exception as error:  # a model's own decoder may raise anything
        msg = f"items of type {name}: {error}"
        raise UnreadableItems(msg) from error


def _list_of(model: _Model | None) -> Any:
    return list[Any] if model is None else list[model.kind]  # type: ignore[name-defined]


def _base64_list(parts: Sequence[bytes]) -> bytes:
    return msgspec.json.encode([base64.b64encode(part).decode() for part in parts])


register_model(BarBatch, encode=lambda b: b.encode(0), decode=lambda b: BarBatch.decode(b)[0])
