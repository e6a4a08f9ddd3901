"""What pydantic found, said in the words of the file."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from types import UnionType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from market_data_core._config_yaml import Path, Problem
from market_data_core._suggest import did_you_mean
from market_data_core.redaction import redact, redact_value

_QUOTED = re.compile(r"'([^']*)'")


def problems_of(
    error: ValidationError, model: type[BaseModel], prefix: Path = ()
) -> Iterable[Problem]:
    """One problem for each of pydantic's findings.

    Args:
        error: what validating raised.
        model: the model that was validated.
        prefix: where the model's settings stand in the file.
    """
    for found in error.errors(include_url=False):
        path = tuple(found["loc"])
        yield Problem((*prefix, *path), _text(found, path, model))


def _text(found: ErrorDetails, path: Path, model: type[BaseModel]) -> str:
    kind, value = found["type"], found["input"]
    if kind == "extra_forbidden":
        around = model_at(model, path[:-1])
        fields = around.model_fields if around else {}
        names = [field.alias or name for name, field in fields.items()]
        return f"unknown key; {did_you_mean(str(path[-1]), names)}"
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(found["ctx"]["error"])
    shown = shorten(value, str(path[-1]) if path else "")
    if kind == "literal_error":
        valid = _QUOTED.findall(str(found["ctx"]["expected"])) or [str(found["ctx"]["expected"])]
        return f"{shown} is not valid; {did_you_mean(str(value), valid)}"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"must be a group of settings (key: value), got {shown}"
    message = found["msg"].removeprefix("Input ")
    hint = "; put it in quotes" if kind == "string_type" and not _is_nested(value) else ""
    return f"{message[:1].lower()}{message[1:]}, got {shown}{hint}"


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list | tuple)


def shorten(value: object, key: str = "") -> str:
    """`value` as a message may show it: without secrets, at most 80 characters."""
    text = redact(repr(redact_value(key, value)))
    return text if len(text) <= 80 else f"{text[:77]}…"


def model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that the settings at `path` are validated with; None where there is none."""
    at: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            continue  # a list's items are described by the annotation of its key
        field = at.model_fields.get(part) if at else None
        at = inner_model(field.annotation) if field else None
    return at


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The settings model that an annotation such as ``tuple[Model, ...]`` leads to."""
    if isinstance(annotation, type) and not typing.get_origin(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    if isinstance(annotation, UnionType) or typing.get_origin(annotation):
        for argument in typing.get_args(annotation):
            if found := inner_model(argument):
                return found
    return None
