"""The building blocks of settings: base models and the values that have a notation of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from market_data_core._config_yaml import expand
from market_data_core.errors import ConfigError, UsageError
from market_data_core.events import OFFICIAL_SUFFIX
from market_data_core.intervals import format_interval, parse_interval
from market_data_core.redaction import redact

INTERVAL_MAX_NS = 7 * 86_400 * 10**9
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*(?:([KMGT])(I?))?B?", re.IGNORECASE)
_POWER = {"K": 1, "M": 2, "G": 3, "T": 4}
_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_SIGNAL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class SettingsModel(BaseModel):
    """Base of all settings: read-only, and a key that is not known is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


def parse_size(value: Any) -> Any:
    """Bytes of a size such as ``20GB`` (powers of 1000) or ``512MiB`` (powers of 1024).

    Raises:
        ValueError: a text that is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        msg = f"{value!r} is not a size; write bytes or a unit: 500MB, 20GB, 512MiB"
        raise ValueError(msg)
    number, prefix, binary = match.groups()
    unit = (1024 if binary else 1000) ** (_POWER[prefix.upper()] if prefix else 0)
    return round(float(number) * unit) if "." in number else int(number) * unit


def check_interval(text: str) -> str:
    """The canonical spelling of an interval of at most seven days.

    Raises:
        ValueError: not an interval.
    """
    try:
        length_ns = parse_interval(text)
    except UsageError as error:
        raise ValueError(str(error)) from error
    if length_ns > INTERVAL_MAX_NS:
        msg = f"interval {text!r} is longer than 7d"
        raise ValueError(msg)
    return format_interval(length_ns)


def check_provider_name(name: str) -> str:
    """`name` if events can bear it, or if it is empty.

    Raises:
        ValueError: it would make event ids or the names of vendors' own bars ambiguous.
    """
    if not name or (_PROVIDER.fullmatch(name) and not name.endswith(OFFICIAL_SUFFIX)):
        return name
    msg = (
        f"provider name {name!r} is not valid: 1 to 64 letters, digits, '_', '.', ':' or '-', "
        f"beginning with a letter or digit and not ending in {OFFICIAL_SUFFIX!r}"
    )
    raise ValueError(msg)


def check_signal_name(name: str) -> str:
    """`name` if the signals of a rule or model can bear it.

    Raises:
        ValueError: it is empty, too long, or has other characters.
    """
    if _SIGNAL.fullmatch(name):
        return name
    msg = (
        f"{name!r} is not valid: 1 to 64 letters, digits, '_', '.' or '-', beginning with a "
        "letter or '_'"
    )
    raise ValueError(msg)


def check_symbol(symbol: str) -> str:
    """`symbol` in upper case.

    Raises:
        ValueError: empty, longer than 64 characters, or with ``|`` or control characters.
    """
    upper = symbol.strip().upper()
    if not upper or len(upper) > 64 or "|" in upper or not upper.isprintable():
        msg = f"{symbol!r} is not a symbol: 1 to 64 printable characters without '|'"
        raise ValueError(msg)
    return upper


def check_distinct(items: Sequence[str]) -> Sequence[str]:
    """`items` if none is there twice.

    Raises:
        ValueError: one is.
    """
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        msg = f"given twice: {', '.join(twice)}"
        raise ValueError(msg)
    return items


def check_uri(uri: str) -> str:
    """`uri` if it has a scheme.

    Raises:
        ValueError: it has none.
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", uri):
        return uri
    # Without a scheme a password cannot be told from the rest.
    shown = "what is given" if "@" in uri else repr(redact(uri))
    msg = f"{shown} is not a URI such as sqlite:///.mdp/store.db or postgresql://host/db"
    raise ValueError(msg)


def from_env(template: str, description: str) -> Any:
    """A field whose default is `template`, filled in from the environment when it is needed."""

    def fill_in() -> str:
        try:
            return expand(template, os.environ)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    return Field(
        default_factory=fill_in,
        description=description,
        json_schema_extra={"shown_default": template},
    )


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
Interval = Annotated[str, AfterValidator(check_interval)]
Symbol = Annotated[str, AfterValidator(check_symbol)]
Uri = Annotated[str, AfterValidator(check_uri)]


class ProducerSettings(SettingsModel):
    """What every producer's settings begin with; each provider's file adds its own."""

    enabled: bool = Field(
        default=True,
        description="Whether the producer runs when none is named on the command line.",
    )
    name: Annotated[str, AfterValidator(check_provider_name)] = Field(
        default="", description="Provider name that its events bear. Empty: the producer's kind."
    )
    symbols: Annotated[tuple[Symbol, ...], AfterValidator(check_distinct)] = Field(
        default=(), description="Symbols to produce, in upper case."
    )
