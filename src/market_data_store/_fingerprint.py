"""A short name for a configuration, by which runs can be compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import PurePath

from pydantic import BaseModel

from market_data_core.errors import UsageError
from market_data_core.redaction import MASK, redact, redact_value

_CHARS = 16
_MASKED = re.compile(rf"""[&;,\s]*[\w-]*["']?\s*[=:]\s*["']?{re.escape(MASK)}""")


def compute_config_fingerprint(settings: BaseModel | Mapping[str, object]) -> str:
    """16 hexadecimal digits that are the same for equal settings, on every machine.

    They are the beginning of the SHA-256 of the settings as JSON, in UTF-8, without spaces, with
    keys in order and sets sorted. Secrets are left out first: whatever stands under a key that
    names one, and passwords and tokens inside of texts. So another password, or none, changes
    nothing.

    Args:
        settings: such as :class:`market_data_core.config.Settings`, or any mapping of texts,
            numbers, booleans, None, days, times, paths, and lists, sets and mappings of those.

    Raises:
        UsageError: something else is among them; the message says where.
    """
    plain = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    text = json.dumps(
        _without_secrets(plain, ""), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:_CHARS]


def _without_secrets(value: object, place: str) -> object:
    if isinstance(value, Mapping):
        return {
            str(key): _without_secrets(item, f"{place}.{key}")
            for key, item in value.items()
            if redact_value(str(key), "x") != MASK
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((_without_secrets(item, place) for item in value), key=repr)
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, PurePath):
        return _text(str(value))
    msg = (
        f"settings{place} is a {type(value).__name__}, which has no one form as JSON; give a text, "
        "number, boolean, None, day, time, path, or a list, set or mapping of those"
    )
    raise UsageError(msg)


def _text(text: str) -> str:
    """`text` as it would be if it had never held a secret."""
    if "://" in text:
        # so that the first parameter of a URI may go as any other does
        text = redact(text.replace("?", "&", 1)).replace(f":{MASK}@", "@")
    return _MASKED.sub("", redact(text))
