"""Secrets are taken out of whatever is shown, logged or stored beside results."""

from __future__ import annotations

import re

MASK = "***"

# The greedy tail covers a password that itself holds "@" or "/"; hiding too much is the safe side.
_URI = re.compile(r"""(?<=://)([^\s:/@"']*):[^\s"'<>]*@""")
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
_WORD = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|credentials?)"
# A bare number after "token=" is a fencing token, which an operator has to see.
_PAIR = re.compile(
    rf"""\b(?<!://)([\w-]*{_WORD}["']?\s*[=:]\s*["']?)(?!(?<=token=)\d+\b)[^\s"'&,;]+""",
    re.IGNORECASE,
)
_SECRET_KEY = re.compile(rf"(?:^|[_.-])(?:{_WORD}|key[_.-]pem)$", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` without the passwords of URIs, ``key=value`` secrets and authorization headers."""
    text = _URI.sub(rf"\1:{MASK}@", text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _PAIR.sub(rf"\1{MASK}", text)


def redact_value(key: str, value: object) -> object:
    """`value` of the setting or log field `key`, secrets masked at any depth.

    Texts under a key that names a secret are masked whole; numbers stay (fencing tokens).
    """
    if isinstance(value, str):
        return MASK if value and _SECRET_KEY.search(key) else redact(value)
    if isinstance(value, dict):
        return {name: redact_value(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(key, item) for item in value]
    return value
