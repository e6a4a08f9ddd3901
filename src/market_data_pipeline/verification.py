"""Stored bars against log and archive: the same numbers by another road.

Nothing of the window engine is used. Raw events are read back in slices of time, those that the
log has forgotten from the archive, cleared of what was dead-lettered, and grouped by a batch query;
decimals are taken from the text of the floats; sums are 128-bit integers, or Python's where those
do not suffice. What the engine stored must be the same to the last bit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_data_core.bars import VALUE_COLUMNS
from market_data_core.contracts.store import Store
from market_data_core.events import OFFICIAL_SUFFIX, SRC_TS_MAX, SRC_TS_MIN, Kind
from market_data_core.intervals import format_interval, parse_interval
from market_data_core.tables import BARS, Select
from market_data_pipeline._verify_batch import BAR_SCHEMA, BatchQuery, official_bars
from market_data_pipeline._verify_raw import CountedLog
from market_data_pipeline._verify_sources import Doubt

SLICE_EVENTS = 400_000
"""Events that are worked on at once, as far as the stored bars tell."""
SHOWN_MAX = 20

Problem = Literal["missing in store", "no events", "differs"]


@dataclass(frozen=True, slots=True)
class Scope:
    """What is verified; None means everything.

    Attributes:
        provider: as stored.
        symbols: upper case; empty for all.
        start: UTC ns.
        end: UTC ns, exclusive.
    """

    provider: str | None = None
    symbols: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None

    @property
    def where(self) -> dict[str, Sequence[str]]:
        """Provider and symbols, as the store is asked for them."""
        provider = {} if self.provider is None else {"provider": [self.provider]}
        return provider | ({"symbol": self.symbols} if self.symbols else {})

    @property
    def span(self) -> tuple[int, int]:
        """From and to with the bounds of event times in place of None."""
        start = SRC_TS_MIN if self.start is None else self.start
        return start, SRC_TS_MAX if self.end is None else self.end


@dataclass(frozen=True, slots=True)
class Difference:
    """A window in which the store disagrees with the events.

    Attributes:
        provider: as stored; with `symbol`, `interval` and `ts` (UTC ns) the bar's key.
        problem: what is wrong.
        column: the first value that differs, "" if a whole bar is missing.
        stored: its value in the store.
        computed: its value by the events.
    """

    provider: str
    symbol: str
    interval: str
    ts: int
    problem: Problem
    column: str = ""
    stored: float | None = None
    computed: float | None = None


@dataclass(slots=True)
class Report:
    """What a verification found.

    Attributes:
        windows: bars compared.
        from_log: events read from the log, copies included.
        from_archive: events read from the archive, which the log has forgotten.
        differences: windows in which the store disagrees with the events.
        shown: the first of them.
        unverifiable: reason -> windows for which neither log nor archive tells any more.
        open: windows that some lane or feed has not finished.
        moved: bars were committed meanwhile, so that differences may be none.
        seconds: how long it took.
    """

    windows: int = 0
    from_log: int = 0
    from_archive: int = 0
    differences: int = 0
    shown: list[Difference] = field(default_factory=list)
    unverifiable: Counter[str] = field(default_factory=Counter)
    open: int = 0
    moved: bool = False
    seconds: float = 0.0


async def verify(store: Store, log: CountedLog, scope: Scope, intervals_ns: list[int]) -> Report:
    """Compare every finished bar in `scope` with what its events give.

    Args:
        store: holds the bars.
        log: gives the events; its checkpoints are taken anew.
        scope: what to verify.
        intervals_ns: window lengths to expect of a provider whose owner does not tell them and
            which has no bar at all.
    """
    began = time.perf_counter()
    await log.load()
    report = Report()
    bars = await store.select(Select(BARS, scope.where, scope.start, scope.end))
    stored = bars.select(
        "provider", "symbol", "interval", pl.col("ts").cast(pl.Int64), *VALUE_COLUMNS, "state"
    )
    for provider in sorted(_providers(log, stored, scope)):
        mine = stored.filter(pl.col("provider") == provider).drop("provider")
        run = _Run(log, scope, provider, report)
        await run.compare(mine, intervals_ns)
    report.from_log, report.from_archive = log.from_log, log.from_archive
    report.moved = await log.moved()
    report.seconds = time.perf_counter() - began
    return report


def _providers(log: CountedLog, stored: pl.DataFrame, scope: Scope) -> set[str]:
    """Providers as stored, those included of which the store should hold bars but does not."""
    if scope.provider is not None:
        return {scope.provider}
    named = log.providers("tick") | {f"{p}{OFFICIAL_SUFFIX}" for p in log.providers("bar")}
    return named | set(stored["provider"].unique())


class _Run:
    """The verification of one provider."""

    def __init__(self, log: CountedLog, scope: Scope, provider: str, report: Report) -> None:
        self._log, self._scope, self._report = log, scope, report
        self._provider = provider
        self._feed = provider.removesuffix(OFFICIAL_SUFFIX)
        self._kind: Kind = "tick" if provider == self._feed else "bar"
        self._doubts: list[Doubt] = []
        self._refused: set[tuple[str, str, int]] | None = None

    async def compare(self, stored: pl.DataFrame, intervals_ns: list[int]) -> None:
        self._doubts = await self._log.doubts(self._feed, self._kind)
        computed = await (
            self._official(stored) if self._kind == "bar" else self._windows(stored, intervals_ns)
        )
        for interval, bars in computed.items():
            await self._interval(interval, stored.filter(pl.col("interval") == interval), bars)

    async def _official(self, stored: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """A vendor's own bars by interval."""
        start, end = self._scope.span
        events = await self._log.read(self._feed, "bar", start, end, self._scope.symbols)
        names = {*stored["interval"].unique(), *events["interval"].unique()}
        return {n: official_bars(events.filter(pl.col("interval") == n)) for n in sorted(names)}

    async def _windows(
        self, stored: pl.DataFrame, intervals_ns: list[int]
    ) -> dict[str, pl.DataFrame]:
        """Bars of ticks by interval."""
        found = {parse_interval(name) for name in stored["interval"].unique()}
        sources = self._log.sources(self._feed, "tick")
        told = {length for source in sources for length in source.intervals_ns}
        lengths = sorted(found | told) or intervals_ns
        owed_from = {
            length: {i: source.owes_from(length) for i, source in enumerate(sources)}
            for length in lengths
        }
        query = BatchQuery(lengths, owed_from)
        for start, end in pairwise(_cuts(stored, self._scope)):
            query.add(
                await self._log.read(self._feed, "tick", start, end, self._scope.symbols),
                start,
                end,
            )
        return {format_interval(length): query.bars(length) for length in lengths}

    async def _interval(self, interval: str, stored: pl.DataFrame, bars: pl.DataFrame) -> None:
        """Compare the bars of one interval."""
        length = parse_interval(interval)
        start, end = self._scope.span
        inside = (pl.col("ts") >= start) & (pl.col("ts") + length <= end)
        symbols = pl.Series("symbol", self._log.symbols, pl.String)
        computed = bars.filter(inside).with_columns(
            symbols.gather(bars.filter(inside)["code"]).alias("symbol"), there=pl.lit(value=True)
        )
        both = stored.filter(inside).join(
            computed, on=["symbol", "ts"], how="full", coalesce=True, suffix="_raw"
        )
        if self._kind == "tick":
            unfinished = pl.col("closed").fill_null(SRC_TS_MAX) < pl.col("ts") + length
            self._report.open += len(both.filter(unfinished))
            both = both.filter(~unfinished)
        # an owner that does not compute this interval owes no bar of it
        both = both.filter(pl.col("state").is_not_null() | pl.col("expected"))
        wrong = _unequal(both)
        self._report.windows += len(both)
        for row in both.filter(wrong).sort("ts", "symbol").iter_rows(named=True):
            await self._judge(interval, row)

    async def _judge(self, interval: str, row: dict[str, object]) -> None:
        """Tell a difference from what cannot be decided any more."""
        symbol, ts = str(row["symbol"]), int(str(row["ts"]))
        in_store, in_log = row["state"] is not None, row["there"] is not None
        if row["state"] == "gap":
            self._undecided("the bar is marked as incomplete")
            return
        stored = row["trade_count"] if in_store else 0
        computed = row["trade_count_raw"] if in_log else 0
        less = _number(stored, 1) > _number(computed, 1)
        for doubt in self._doubts:
            if (less or doubt.more) and doubt.concerns(symbol, ts):
                self._undecided(doubt.why)
                return
        if not in_store and await self._was_refused(symbol, interval, ts):
            self._undecided("the bar is a dead letter: the database refused it")
            return
        self._report.differences += 1
        if len(self._report.shown) >= SHOWN_MAX:
            return
        key = (self._provider, symbol, interval, ts)
        if not (in_store and in_log):
            problem: Problem = "no events" if in_store else "missing in store"
            self._report.shown.append(Difference(*key, problem))
            return
        for column in VALUE_COLUMNS:
            a, b = row[column], row[f"{column}_raw"]
            if a != b:
                values = tuple(None if x is None else float(str(x)) for x in (a, b))
                self._report.shown.append(Difference(*key, "differs", column, *values))
                return

    def _undecided(self, why: str) -> None:
        self._report.windows -= 1
        self._report.unverifiable[why] += 1

    async def _was_refused(self, symbol: str, interval: str, ts: int) -> bool:
        if self._refused is None:
            self._refused = await self._log.unwritable(self._provider, *self._scope.span)
        return (symbol, interval, ts) in self._refused


def _number(value: object, unknown: int) -> int:
    """A count; a vendor's own bar has none and stands for one event."""
    return value if isinstance(value, int) else unknown


def _cuts(stored: pl.DataFrame, scope: Scope) -> list[int]:
    """Bounds of slices of about :data:`SLICE_EVENTS` events, by the stored bars' trade counts."""
    start, end = scope.span
    if not len(stored):
        return [start, end]
    shortest = min(stored["interval"].unique(), key=parse_interval)
    density = (
        stored.filter(pl.col("interval") == shortest)
        .group_by("ts")
        .agg(pl.col("trade_count").sum())
        .sort("ts")
        .with_columns(pl.col("trade_count").cum_sum() // SLICE_EVENTS)
    )
    ts, number = density["ts"].to_numpy(), density["trade_count"].to_numpy()
    inner = ts[1:][np.diff(number) > 0].tolist()
    return [start, *(at for at in inner if start < at < end), end]


def _unequal(both: pl.DataFrame) -> NDArray[np.bool_]:
    """Which rows, shape (n,), lack one side or differ in any bit of a value."""
    wrong: NDArray[np.bool_] = (both["state"].is_null() | both["there"].is_null()).to_numpy().copy()
    for name in VALUE_COLUMNS:
        wrong |= _bits(both[name]) != _bits(both[f"{name}_raw"])
    return wrong


def _bits(values: pl.Series) -> NDArray[np.int64]:
    """Values as comparable integers; null is one of its own."""
    if values.dtype == pl.Float64:
        return values.fill_null(float("nan")).to_numpy().view(np.int64)
    return values.fill_null(-1).to_numpy()


__all__ = ["BAR_SCHEMA", "CountedLog", "Difference", "Report", "Scope", "verify"]
