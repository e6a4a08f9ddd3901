"""Every setting with its type, default and meaning, for the generated reference page."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from market_data_core._config_problems import inner_model


class SettingDoc(NamedTuple):
    """One line of the reference.

    Attributes:
        key: dotted key; ``[]`` marks the items of a list.
        type: what may be written.
        default: as it would be written; ``required`` where there is none.
        description: meaning and unit.
    """

    key: str
    type: str
    default: str
    description: str


def describe(model: type[BaseModel], prefix: str = "") -> Iterator[SettingDoc]:
    """Every setting of `model` and of the models inside it, in the order of the file."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        inner = inner_model(field.annotation)
        is_list = typing.get_origin(field.annotation) is tuple
        if inner is None or is_list:
            yield SettingDoc(key, _type(field.annotation), _default(field), field.description or "")
        if inner is not None:
            yield from describe(inner, f"{key}[]." if is_list else f"{key}.")


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is dict:
        return "group"
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if arguments:
        return " | ".join(_type(argument) for argument in arguments if argument is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    return {str: "text", Path: "path"}.get(annotation, getattr(annotation, "__name__", "any"))


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "shown_default" in extra:
        return str(extra["shown_default"])
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(str(item) for item in default) + "]"
    return str(default) if default not in ("", None) else "none"
