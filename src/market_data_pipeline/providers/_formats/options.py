"""What a user may say about files that do not speak for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from market_data_core.errors import UsageError
from market_data_core.intervals import canonical_interval

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
FormatName = Literal["auto", "binance", "ndjson", "csv", "parquet", "dbn"]


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """How to read recordings; every field has a default that suits self-describing files.

    Attributes:
        columns: for CSV and Parquet, which column holds what, e.g. ``{"price": "my_px"}``; an
            empty name means that no column does.
        time_unit: unit of numeric times; ``auto`` judges each value by its magnitude.
        symbol: the symbol of files that have no symbol column.
        interval: the interval of bars in files that have no interval column.
        max_line_bytes: longer lines are dead-lettered in pieces of this size.
        format: ``auto`` looks at the content.
        symbols: only events of these symbols are read; empty for all.
        chunk_events: about how many events are parsed at a time; changes no result.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    time_unit: TimeUnit = "auto"
    symbol: str | None = None
    interval: str | None = None
    max_line_bytes: int = 16 << 20
    format: FormatName = "auto"
    symbols: tuple[str, ...] = ()
    chunk_events: int = 1 << 14

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: a value is not one of those allowed.
        """
        _one_of("format", self.format, get_args(FormatName))
        _one_of("time_unit", self.time_unit, get_args(TimeUnit))
        if self.interval is not None:
            object.__setattr__(self, "interval", canonical_interval(self.interval))
        for name in ("max_line_bytes", "chunk_events"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}; it must be at least 1"
                raise UsageError(msg)

    def fingerprint(self) -> str:
        """A text that differs whenever the events read from the same bytes could differ."""
        values = (
            sorted(self.columns.items()),
            self.time_unit,
            self.symbol,
            self.interval,
            self.max_line_bytes,
            self.format,
            sorted({s.upper() for s in self.symbols}),
        )
        return repr(values)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        msg = f"{name} {value!r} is not known; use one of {', '.join(allowed)}"
        raise UsageError(msg)
