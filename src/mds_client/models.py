"""What is written and read: one class for each table, checked when it is made.

All of them are immutable, take keywords only, have symbols in upper case and times in UTC, and
can be kept in and read back from a dead-letter file.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from math import isfinite
from typing import Any, Literal, NoReturn

import msgspec
from msgspec.structs import force_setattr

from market_data_core.bars import BarState
from market_data_core.errors import UsageError
from market_data_core.events import NAME_MAX, OFFICIAL_SUFFIX, SYMBOL_RULE, is_provider, is_symbol
from market_data_core.intervals import canonical_interval
from market_data_core.signals import SIGNAL_NAME_MAX, SignalState
from market_data_store.coordinator import register_model

OptionType = Literal["C", "P"]

_YEAR_MIN, _YEAR_MAX = 1900, 2200
_TEXT_MAX = 200
_COUNT_MAX = 2**63 - 1


class InvalidRecord(UsageError, ValueError):
    """A value cannot stand in its column; the message names class, column and value."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Checks that all tables share."""

    def _refuse(self, column: str, rule: str) -> NoReturn:
        shown = repr(getattr(self, column))
        shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
        msg = f"{type(self).__name__}: {column} is {shown}; {rule}"
        raise InvalidRecord(msg) from None

    def _check_feed(self) -> None:
        """`provider` and `symbol`, the latter put in upper case."""
        provider, symbol = self._text("provider"), self._text("symbol")
        if not is_provider(provider.removesuffix(OFFICIAL_SUFFIX)):
            self._refuse("provider", f"give 1 to {NAME_MAX} characters without '|'")
        upper = symbol.upper()
        if not is_symbol(symbol):
            self._refuse("symbol", SYMBOL_RULE)
        if upper != symbol:
            force_setattr(self, "symbol", upper)

    def _text(self, column: str, *, length_max: int | None = None) -> str:
        text = getattr(self, column)
        if not isinstance(text, str):
            self._refuse(column, "give a text")
        if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
            self._refuse(column, "a text in a database holds no NUL and no half characters")
        if length_max is not None and not 0 < len(text) <= length_max:
            self._refuse(column, f"give 1 to {length_max} characters")
        return text

    def _check_time(self, column: str) -> None:
        ts = getattr(self, column)
        if not isinstance(ts, datetime) or ts.utcoffset() is None:
            self._refuse(column, "give a time with its zone, such as datetime(…, tzinfo=UTC)")
        if ts.tzinfo is not UTC:
            try:
                ts = ts.astimezone(UTC)
            except OverflowError:
                self._refuse(column, "it lies outside of the calendar")
            force_setattr(self, column, ts)
        if not _YEAR_MIN <= ts.year < _YEAR_MAX:
            self._refuse(column, f"give a time in the years {_YEAR_MIN} to {_YEAR_MAX - 1}")

    def _check_day(self, column: str) -> None:
        day = getattr(self, column)
        if not isinstance(day, date) or isinstance(day, datetime):
            self._refuse(column, "give a day, such as date(2025, 12, 19)")
        if not _YEAR_MIN <= day.year < _YEAR_MAX:
            self._refuse(column, f"give a day in the years {_YEAR_MIN} to {_YEAR_MAX - 1}")

    def _check_number(
        self, column: str, *, low: float | None = None, high: float | None = None
    ) -> None:
        """A finite number within bounds, made a float."""
        value = getattr(self, column)
        if type(value) is not float:
            if isinstance(value, bool):
                self._refuse(column, "give a number")
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                self._refuse(column, "give a number")
            if isinstance(value, str):
                self._refuse(column, "give a number, not a text")
            force_setattr(self, column, number)
            value = number
        if not isfinite(value):
            self._refuse(column, "give a finite number")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
            self._refuse(column, f"give {bounds}")

    def _check_optional(self, *columns: str, low: float | None = None) -> None:
        for column in columns:
            if getattr(self, column) is not None:
                self._check_number(column, low=low)

    def _check_count(self, column: str) -> None:
        count = getattr(self, column)
        if count is None:
            return
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _COUNT_MAX:
            self._refuse(column, "give a whole number that is not negative, or None")

    def _check_choice(self, column: str, valid: tuple[str, ...]) -> None:
        if getattr(self, column) not in valid:
            self._refuse(column, f"give one of {', '.join(map(repr, valid))}")


def _now() -> datetime:
    return datetime.now(UTC)


class Bar(_Record, frozen=True, kw_only=True):
    """A row of ``bars_ohlcv``.

    Attributes:
        symbol: made upper case.
        open: price at the start of the window, price units; `high`, `low`, `close` likewise.
        volume: sum of sizes.
        ts: start of the window, UTC; now if it is not given.
        provider: the feed's name.
        interval: such as ``1m``; ``60s`` becomes that.
        vwap: volume-weighted average price, None where it is not known or the volume is zero.
        trade_count: None where it is not known.
        state: ``final``, ``revised`` or ``gap``.

    Raises:
        InvalidRecord: a price is negative or not finite, `high` is below `low`, a time has no
            zone, and so on.
    """

    symbol: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    ts: datetime = msgspec.field(default_factory=_now)
    provider: str = "unknown"
    interval: str = "1m"
    vwap: float | None = None
    trade_count: int | None = None
    state: BarState = "final"

    def __post_init__(self) -> None:
        self._check_feed()
        for column in ("open", "high", "low", "close", "volume"):
            self._check_number(column, low=0)
        if self.high < self.low:
            self._refuse("high", f"that is below low, {self.low!r}")
        self._check_optional("vwap", low=0)
        self._check_count("trade_count")
        self._check_time("ts")
        self._check_choice("state", ("final", "revised", "gap"))
        if self.interval != "1m":
            try:
                force_setattr(self, "interval", canonical_interval(self._text("interval")))
            except UsageError as error:
                self._refuse("interval", str(error))


class OptionSnap(_Record, frozen=True, kw_only=True):
    """A row of ``options_snap``: one contract at one moment.

    Attributes:
        symbol: of the underlying.
        expiry: the contract's last day.
        option_type: ``C`` for a call, ``P`` for a put.
        strike: price units; `bid`, `ask`, `last` and `spot` (of the underlying) likewise.
        ts: when it was so, UTC.
        iv: implied volatility as a fraction a year: 0.2 is 20 %.
        delta: by the vendor's model; `gamma`, `theta`, `vega` likewise.
        oi: open interest, contracts; `volume` likewise.

    Raises:
        InvalidRecord: a value cannot stand in its column.
    """

    symbol: str
    expiry: date
    option_type: OptionType
    strike: float
    ts: datetime = msgspec.field(default_factory=_now)
    provider: str = "unknown"
    bid: float | None = None
    ask: float | None = None
    last: float | None = None
    iv: float | None = None
    delta: float | None = None
    gamma: float | None = None
    theta: float | None = None
    vega: float | None = None
    oi: int | None = None
    volume: int | None = None
    spot: float | None = None

    def __post_init__(self) -> None:
        self._check_feed()
        self._check_day("expiry")
        self._check_choice("option_type", ("C", "P"))
        self._check_number("strike", low=0)
        self._check_time("ts")
        self._check_optional("bid", "ask", "last", "iv", "spot", low=0)
        self._check_optional("delta", "gamma", "theta", "vega")
        self._check_count("oi")
        self._check_count("volume")


class FundamentalPoint(_Record, frozen=True, kw_only=True):
    """A row of ``fundamentals``: one number of one company.

    Attributes:
        asof: since when it was known, UTC.
        metric: such as ``revenue``.
        value: in units of `currency`, or bare.
        currency: such as ``USD``; "" for a ratio or a count.
        period: such as ``2025Q3``; "" for none.

    Raises:
        InvalidRecord: a value cannot stand in its column.
    """

    symbol: str
    metric: str
    value: float
    asof: datetime = msgspec.field(default_factory=_now)
    provider: str = "unknown"
    currency: str = ""
    period: str = ""

    def __post_init__(self) -> None:
        self._check_feed()
        self._text("metric", length_max=_TEXT_MAX)
        self._check_number("value")
        self._check_time("asof")
        self._text("currency")
        self._text("period")


class NewsItem(_Record, frozen=True, kw_only=True):
    """A row of ``news``.

    Attributes:
        id: the provider's own.
        published_at: UTC.
        symbol: what it is about; one row for each symbol.
        sentiment_score: -1 (bad for the price) to 1 (good), None where it is not known.

    Raises:
        InvalidRecord: a value cannot stand in its column.
    """

    id: str
    symbol: str
    title: str
    published_at: datetime = msgspec.field(default_factory=_now)
    provider: str = "unknown"
    url: str = ""
    summary: str = ""
    sentiment_score: float | None = None

    def __post_init__(self) -> None:
        self._check_feed()
        self._text("id", length_max=_TEXT_MAX)
        for column in ("title", "url", "summary"):
            self._text(column)
        self._check_time("published_at")
        if self.sentiment_score is not None:
            self._check_number("sentiment_score", low=-1, high=1)


class SignalRow(_Record, frozen=True, kw_only=True):
    """A row of ``signals``; identity is (provider, symbol, ts, name).

    Attributes:
        ts: end of the window that caused it, UTC.
        name: of the rule or model.
        value: what it says: 1.0 up, -1.0 down, 0.0 neither.
        score: how sure it is, None where that is not known.
        state: ``retracted`` when a restated bar took away its cause.
        metadata: anything JSON can hold.

    Raises:
        InvalidRecord: a value cannot stand in its column.
    """

    symbol: str
    name: str
    value: float
    ts: datetime = msgspec.field(default_factory=_now)
    provider: str = "unknown"
    score: float | None = None
    state: SignalState = "active"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_feed()
        self._text("name", length_max=SIGNAL_NAME_MAX)
        self._check_number("value")
        self._check_time("ts")
        self._check_optional("score")
        self._check_choice("state", ("active", "retracted"))
        if not isinstance(self.metadata, dict):
            self._refuse("metadata", "give a dictionary")


for _kind in (Bar, OptionSnap, FundamentalPoint, NewsItem, SignalRow):
    register_model(_kind)
