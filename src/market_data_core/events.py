"""The stream event, version 1: one at a time for the wire, in columns for the work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.errors import RejectedError
from market_data_core.scaled import Scaled, concat_scaled

Kind = Literal["tick", "bar"]
Array = NDArray[Any]

EVENT_VERSION = 1
OFFICIAL_SUFFIX = ":official"
"""Added to the provider's name under which a vendor's own bars are stored."""

SRC_TS_MIN = -2_208_988_800 * 10**9  # 1900-01-01
SRC_TS_MAX = 7_258_118_400 * 10**9  # 2200-01-01
_NS = 10**9
# datetime.fromisoformat alone overlooks stray characters, and digits beyond microseconds
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d|\d{8})"
    r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?)?(Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_MINUTE = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d", re.ASCII)


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One trade, vendor aggregate or vendor bar, as it stands on the wire.

    ``src_ts`` and ``ingest_ts`` are ISO 8601 UTC texts with up to nine fractional digits.
    """

    ver: int
    provider: str
    symbol: str
    src_ts: str
    o: float
    h: float
    l: float  # noqa: E741  (the wire's name)
    c: float
    v: float
    kind: Kind = "tick"
    interval: str = "1s"
    ingest_ts: str | None = None
    seq: int = 0
    event_id: str | None = None


def format_ts(ts_ns: int) -> str:
    """ISO 8601 UTC text: six fractional digits, nine only where needed."""
    seconds, ns = divmod(ts_ns, _NS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{ns:09d}Z" if ns % 1000 else f"{text}.{ns // 1000:06d}Z"


def parse_ts(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 time; a time without offset is UTC.

    Raises:
        RejectedError: reason ``bad_timestamp``; not a time, or outside 1900 … 2200.
    """
    if (known := _plain_ts(text)) is not None:
        return known
    match = _TIME.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError(text)
        date, hour, minute, second, fraction, zone = match.groups("")
        clock = f"{hour or '00'}:{minute or '00'}:{second or '00'}"
        moment = datetime.fromisoformat(f"{date}T{clock}{zone or 'Z'}")
    except ValueError as error:
        msg = f"{text[:64]!r} is not an ISO 8601 time"
        raise RejectedError(reason="bad_timestamp", message=msg) from error
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    ts_ns = (delta.days * 86_400 + delta.seconds) * _NS + int(fraction.ljust(9, "0") or 0)
    return check_src_ts(ts_ns)


def _plain_ts(text: str) -> int | None:
    """The time if it has the one common spelling, such as 2025-10-24T14:02:01.5Z; else None."""
    second, fraction = text[17:19], text[20:-1]
    plain = text[16:17] == ":" and text[-1] == "Z" and second.isdigit() and text.isascii()
    if not plain or (len(text) > 20 and not (text[19] == "." and fraction.isdigit())):
        return None
    if (minute := _minute(text[:16])) is None or second > "59" or len(fraction) > 9:
        return None
    return minute + int(second) * _NS + int(fraction.ljust(9, "0") or 0)


@lru_cache(4_096)
def _minute(text: str) -> int | None:
    try:
        return parse_ts(f"{text}Z") if _MINUTE.fullmatch(text) else None
    except RejectedError:
        return None


def check_src_ts(ts_ns: int) -> int:
    """`ts_ns` if it lies within 1900 … 2200.

    Raises:
        RejectedError: reason ``bad_timestamp``.
    """
    if SRC_TS_MIN <= ts_ns < SRC_TS_MAX:
        return ts_ns
    msg = f"time {ts_ns} ns is outside the years 1900 to 2200"
    raise RejectedError(reason="bad_timestamp", message=msg)


NAME_MAX = 64
"""Most characters of a provider's name or a symbol, which stand in every row, label and message."""

PROVIDER_RULE = (
    f"a provider's name has 1 to {NAME_MAX} characters, no '|', and does not end in "
    f"'{OFFICIAL_SUFFIX}'"
)
SYMBOL_RULE = f"a symbol has 1 to {NAME_MAX} characters once it is in upper case"


def is_provider(name: str) -> bool:
    """Whether events may bear the name; others would be taken for something else."""
    return 0 < len(name) <= NAME_MAX and "|" not in name and not name.endswith(OFFICIAL_SUFFIX)


def is_symbol(name: str) -> bool:
    """Whether events may bear the name, which is made upper case: some letters become several."""
    return 0 < len(name) <= NAME_MAX and (name.isascii() or len(name.upper()) <= NAME_MAX)


def event_id(provider: str, symbol: str, src_ts: int, seq: int) -> str:
    """The event's identity, ``provider|symbol|src_ts|seq``."""
    return f"{provider}|{symbol}|{format_ts(src_ts)}|{seq}"


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of one provider, kind and interval in columns, in the order of their arrival.

    Every row is valid: finite non-negative prices and sizes, high the highest and low the lowest
    (:func:`invalid_rows` tells). Arrays are never written to after creation.

    Attributes:
        provider: the feed's name, as stored.
        kind: ``tick`` (trade or sub-window aggregate) or ``bar`` (a vendor's finished bar).
        interval: canonical spelling; for ticks only informative.
        symbols: upper-case symbols that `codes` point into; distinct.
        codes: shape (n,), dtype uint16 or uint32.
        src_ts: shape (n,), int64, UTC nanoseconds; for a bar the start of its window.
        seq: shape (n,), int64; orders events of equal symbol and src_ts.
        ingest_ts: shape (n,), int64, UTC nanoseconds at which we first saw the event.
        close: prices; the trade price for a trade.
        volume: sizes.
        ohl: open, high, low; None where they all equal `close` (trades).
    """

    provider: str
    kind: Kind
    interval: str
    symbols: tuple[str, ...]
    codes: Array
    src_ts: NDArray[np.int64]
    seq: NDArray[np.int64]
    ingest_ts: NDArray[np.int64]
    close: Scaled
    volume: Scaled
    ohl: tuple[Scaled, Scaled, Scaled] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def stream(self) -> tuple[str, Kind, str]:
        """What batches must share to be joined: provider, kind, and a bar's interval."""
        return self.provider, self.kind, self.interval if self.kind == "bar" else ""

    def take(self, index: Array | slice) -> EventBatch:
        """Rows at `index` (integers, a slice or a boolean mask)."""
        return replace(
            self,
            codes=self.codes[index],
            src_ts=self.src_ts[index],
            seq=self.seq[index],
            ingest_ts=self.ingest_ts[index],
            close=self.close.take(index),
            volume=self.volume.take(index),
            ohl=tuple(c.take(index) for c in self.ohl) if self.ohl else None,  # type: ignore[arg-type]
        )

    def prices(self) -> tuple[Scaled, Scaled, Scaled]:
        """Open, high and low columns (all of them `close` for trades)."""
        return self.ohl or (self.close, self.close, self.close)

    def events(self) -> Iterator[StreamEvent]:
        """The rows as wire events."""
        o, h, low, c, v = (
            col.to_floats().tolist() for col in (*self.prices(), self.close, self.volume)
        )
        for i, code in enumerate(self.codes.tolist()):
            symbol, src_ts, seq = self.symbols[code], int(self.src_ts[i]), int(self.seq[i])
            yield StreamEvent(
                ver=EVENT_VERSION,
                provider=self.provider,
                symbol=symbol,
                kind=self.kind,
                interval=self.interval,
                src_ts=format_ts(src_ts),
                ingest_ts=format_ts(int(self.ingest_ts[i])),
                o=o[i],
                h=h[i],
                l=low[i],
                c=c[i],
                v=v[i],
                seq=seq,
                event_id=event_id(self.provider, symbol, src_ts, seq),
            )


@dataclass(frozen=True, slots=True)
class Rejected:
    """A piece of input that can never become an event; it still travels through the log.

    Attributes:
        reason: short word of a bounded set (see docs/reference/dead-letters.md).
        detail: a sentence for a person.
        original: the bytes as they came.
        where: file and line, or topic and position.
    """

    reason: str
    detail: str
    original: bytes
    where: str = ""


def concat_batches(batches: Sequence[EventBatch]) -> EventBatch:
    """Batches of one stream as one, in the order given; symbol codes are re-mapped.

    Raises:
        ValueError: the batches differ in provider, kind or (bars) interval.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if any(b.stream != first.stream for b in batches):
        msg = "only batches of one provider, kind and interval can be joined"
        raise ValueError(msg)
    symbols, codes = first.symbols, [b.codes for b in batches]
    if any(b.symbols != symbols for b in batches):
        symbols, codes = _joined_codes(batches)
    ohl = None
    if any(b.ohl for b in batches):
        columns = zip(*(b.prices() for b in batches), strict=True)
        ohl = tuple(concat_scaled(column) for column in columns)
    return replace(
        first,
        symbols=symbols,
        codes=np.concatenate(codes).astype(code_dtype(len(symbols)), copy=False),
        src_ts=np.concatenate([b.src_ts for b in batches]),
        seq=np.concatenate([b.seq for b in batches]),
        ingest_ts=np.concatenate([b.ingest_ts for b in batches]),
        close=concat_scaled([b.close for b in batches]),
        volume=concat_scaled([b.volume for b in batches]),
        ohl=ohl,  # type: ignore[arg-type]
    )


def _joined_codes(batches: Sequence[EventBatch]) -> tuple[tuple[str, ...], list[Array]]:
    """All symbols of the batches, and each batch's codes into them."""
    index: dict[str, int] = {}
    codes = []
    for b in batches:
        mapping = [index.setdefault(s, len(index)) for s in b.symbols]
        codes.append(np.array(mapping, np.uint32)[b.codes] if mapping else b.codes)
    return tuple(index), codes


def code_dtype(symbols: int) -> type[np.unsignedinteger[Any]]:
    """Smallest dtype used for symbol codes: uint16 sorts by radix, uint32 holds any universe."""
    return np.uint16 if symbols <= 1 << 16 else np.uint32


def invalid_rows(
    o: NDArray[np.float64],
    h: NDArray[np.float64],
    low: NDArray[np.float64],
    c: NDArray[np.float64],
    v: NDArray[np.float64],
    src_ts: NDArray[np.int64],
) -> dict[str, NDArray[np.bool_]]:
    """Which rows break a rule: reason -> mask of shape (n,); reasons without a row are left out.

    A row appears under its first reason only.
    """
    finite = np.isfinite(o) & np.isfinite(h) & np.isfinite(low) & np.isfinite(c) & np.isfinite(v)
    checks = {
        "not_finite": ~finite,
        "negative": (o < 0) | (h < 0) | (low < 0) | (c < 0) | (v < 0),
        "high_below_low": (h < low) | (h < o) | (h < c) | (low > o) | (low > c),
        "bad_timestamp": (src_ts < SRC_TS_MIN) | (src_ts >= SRC_TS_MAX),
    }
    found: dict[str, NDArray[np.bool_]] = {}
    seen = np.zeros(len(c), bool)
    for reason, mask in checks.items():
        new = mask & ~seen
        if new.any():
            found[reason] = new
            seen |= new
    return found


REASONS = {
    "not_finite": "a price or size is NaN or infinite",
    "negative": "a price or size is negative",
    "high_below_low": "high is not the highest, or low not the lowest, of the prices",
    "bad_timestamp": "the time is missing, unreadable, or outside the years 1900 to 2200",
    "malformed": "the bytes are not a message of the expected format",
    "bad_version": "the event's version is not one that this release reads",
    "bad_type": "a field is missing, of the wrong type, or a name that is too long",
    "too_long": "the line is longer than the limit; its pieces are kept in order",
    "future": "the time lies further ahead of the clock than max_future_ms allows",
    "late": "the event came after its window's revise horizon",
    "id_conflict": "another event with the same identity but other values came first",
    "unwritable": "the bar that the event belongs to can never be stored",
}
"""Every reason for which something is dead-lettered, with its meaning."""


class Tick(msgspec.Struct, frozen=True, gc=False):
    """One trade as a live provider hands it over, before it is put in columns.

    Attributes:
        symbol: upper case.
        src_ts: the exchange's time, UTC nanoseconds.
        price: the float64 nearest to the vendor's decimal.
        size: likewise.
        seq: the vendor's trade id or sequence.
    """

    symbol: str
    src_ts: int
    price: float
    size: float
    seq: int


def make_batch(
    provider: str,
    symbols: Sequence[str],
    src_ts: Any,
    seq: Any,
    close: Any,
    volume: Any,
    *,
    ohl: tuple[Any, Any, Any] | None = None,
    ingest_ts: Any = None,
    kind: Kind = "tick",
    interval: str = "1s",
) -> EventBatch:
    """A batch from one value (or array element) per row; values must already be valid.

    Args:
        provider: the feed's name.
        symbols: shape (n,), the symbol of every row, as :func:`is_symbol` allows; made upper case.
        src_ts: shape (n,), UTC nanoseconds.
        seq: shape (n,), int64.
        close: shape (n,), float64, finite and >= 0.
        volume: shape (n,), float64, finite and >= 0.
        ohl: open, high, low of the same shape, or None for trades.
        ingest_ts: shape (n,), UTC nanoseconds; `src_ts` where not given.
        kind: ``tick`` or ``bar``.
        interval: canonical interval.
    """
    index: dict[str, int] = {}
    codes = [index.setdefault(s.upper(), len(index)) for s in symbols]
    ts = np.asarray(src_ts, np.int64)
    return EventBatch(
        provider=provider,
        kind=kind,
        interval=interval,
        symbols=tuple(index),
        codes=np.array(codes, code_dtype(len(index))),
        src_ts=ts,
        seq=np.asarray(seq, np.int64),
        ingest_ts=ts if ingest_ts is None else np.asarray(ingest_ts, np.int64),
        close=Scaled.from_floats(np.asarray(close, np.float64)),
        volume=Scaled.from_floats(np.asarray(volume, np.float64)),
        ohl=tuple(Scaled.from_floats(np.asarray(x, np.float64)) for x in ohl) if ohl else None,  # type: ignore[arg-type]
    )
