"""The signal event, version 1: what a rule or model says of a symbol at the end of a window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec

from market_data_core.errors import RejectedError
from market_data_core.events import (
    OFFICIAL_SUFFIX,
    PROVIDER_RULE,
    SYMBOL_RULE,
    format_ts,
    is_provider,
    is_symbol,
    parse_ts,
)

SignalState = Literal["active", "retracted"]
"""``retracted``: a restated bar took its cause away."""
SignalKey = tuple[str, str, int, str]
"""Provider, symbol, time in UTC ns, name."""

SIGNAL_VERSION = 1
SIGNAL_NAME_MAX = 200
"""Most characters of a signal's name."""
_NAME_RULE = f"a signal's name has 1 to {SIGNAL_NAME_MAX} characters"

_encoder = msgspec.json.Encoder()
_BUNDLE = b"\0signals1"
"""No event begins so."""
shown_ts = lru_cache(4_096)(format_ts)
"""A time as text; the signals of one window all have the same."""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """One signal; a row of the table of signals.

    Attributes:
        provider: the feed's name.
        symbol: upper case.
        ts: end of the window that caused it, UTC nanoseconds; PostgreSQL keeps whole microseconds.
        name: of the rule or model.
        value: what it says, finite: 1.0 up, -1.0 down, 0.0 neither.
        score: how sure it is, finite; None where that is not known.
        state: ``active``, or ``retracted`` when a restated bar took its cause away.
        metadata: anything JSON can hold. PostgreSQL gives numbers in it back as decimals: -0.0 as
            0.0, and what is written with an exponent as a whole number, if it is one.
    """

    provider: str
    symbol: str
    ts: int
    name: str
    value: float
    score: float | None = None
    state: SignalState = "active"
    metadata: dict[str, Any] = {}

    @property
    def key(self) -> SignalKey:
        """What identifies it: (provider, symbol, ts, name)."""
        return self.provider, self.symbol, self.ts, self.name

    def encode(self) -> bytes:
        """The event as compact JSON; it has a ``state`` only if it is retracted."""
        fields = {
            "ver": SIGNAL_VERSION,
            "provider": self.provider,
            "symbol": self.symbol,
            "ts": shown_ts(self.ts),
            "name": self.name,
            "value": self.value,
            "score": self.score,
            "meta": self.metadata,
        }
        if self.state != "active":
            fields["state"] = self.state
        return _encoder.encode(fields)

    @classmethod
    def decode(cls, payload: bytes) -> Signal:
        """The signal of :meth:`encode`'s bytes, or of anybody's JSON of that shape.

        Raises:
            RejectedError: ``malformed``, ``bad_version``, ``bad_type`` or ``bad_timestamp``.
        """
        try:
            found = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            msg = f"signal event: {str(error)[:200]}"
            raise RejectedError(reason="malformed", message=msg) from error
        version = found.get("ver") if isinstance(found, dict) else None
        if isinstance(version, int) and version != SIGNAL_VERSION:
            msg = (
                f"signal event: version {version} is not one this release reads "
                f"(it reads {SIGNAL_VERSION})"
            )
            raise RejectedError(reason="bad_version", message=msg)
        try:
            wire = msgspec.convert(found, _Wire)
        except msgspec.ValidationError as error:
            raise _bad_type(str(error)) from error
        return wire.checked()


def bundled(signals: Sequence[Signal]) -> bytes:
    """Events that are handed over together, to be published one by one."""
    return _BUNDLE + msgspec.msgpack.encode([(s.provider, s.ts, s.encode()) for s in signals])


def unbundled(payload: bytes) -> list[tuple[str, int, bytes]] | None:
    """Provider, time (UTC ns) and bytes of each event of a bundle; None if it is none."""
    if not payload.startswith(_BUNDLE):
        return None
    return _bundles.decode(memoryview(payload)[len(_BUNDLE) :])


_bundles = msgspec.msgpack.Decoder(list[tuple[str, int, bytes]])


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    ver: int
    provider: str
    symbol: str
    ts: str
    name: str
    value: float
    score: float | None = None
    meta: dict[str, Any] = {}
    state: SignalState = "active"

    def checked(self) -> Signal:
        if not is_provider(self.provider.removesuffix(OFFICIAL_SUFFIX)):
            raise _bad_type(PROVIDER_RULE)
        if not is_symbol(self.symbol):
            raise _bad_type(SYMBOL_RULE)
        if not 0 < len(self.name) <= SIGNAL_NAME_MAX:
            raise _bad_type(_NAME_RULE)
        return Signal(
            provider=self.provider,
            symbol=self.symbol.upper(),
            ts=parse_ts(self.ts),
            name=self.name,
            value=self.value,
            score=self.score,
            state=self.state,
            metadata=self.meta,
        )


def _bad_type(message: str) -> RejectedError:
    return RejectedError(reason="bad_type", message=f"signal event: {message}")
