"""What the store knows: bars to compute features from, and signals that were given."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.contracts.feature import index_age_ns
from market_data_core.contracts.store import Tables
from market_data_core.intervals import format_interval
from market_data_core.signals import Signal
from market_data_core.tables import BARS, SIGNALS, Select
from market_data_pipeline.features.levels import NO_LEVELS, Levels
from market_data_pipeline.features.panel import Panel

if TYPE_CHECKING:
    import polars as pl


_HOLES_MAX = 31
"""Where bars stand far apart, what lies between them is not read, but for the shortest holes."""
_SPREAD, _GROUPS_MAX = 256, 32
"""Signals are read at once for symbols that are wanted from within so many bars on; where that is
in too many parts, from within so many times more."""


class Reader:
    """Reads one provider's bars of one interval, and the signals given for them.

    Args:
        store: what is read.
        provider: the feed's name.
        interval_ns: the bars' length.
        session_gap_ns: a hole at least this long begins a new session; 0: never.
        indices: symbols that others are compared with.
    """

    def __init__(
        self,
        store: Tables,
        provider: str,
        interval_ns: int,
        session_gap_ns: int,
        indices: Sequence[str] = (),
    ) -> None:
        self._store, self._provider, self._interval_ns = store, provider, interval_ns
        self._session_gap_ns, self._indices = session_gap_ns, indices

    async def before(self, ends: Mapping[str, int], bars: int) -> Panel:
        """The newest `bars` bars of each symbol that begin before its time (UTC ns)."""
        import polars as pl

        frames = []
        for group in _together(ends, bars * self._interval_ns):
            last, first = max(group.values()), min(group.values())
            most = bars + (last - first) // self._interval_ns
            frame = await self._bars(list(group), end=last, last=most)
            if first < last:
                border = pl.DataFrame({"symbol": list(group), "end": list(group.values())})
                frame = frame.join(border, on="symbol", maintain_order="left")
                frame = frame.filter(pl.col("ts").to_physical() < pl.col("end")).drop("end")
            frames.append(frame)
        found = pl.concat(frames)
        return await self._panel(found.sort("symbol", "ts") if len(frames) > 1 else found)

    async def around(self, spans: Mapping[str, tuple[int, int]], before: int, behind: int) -> Panel:
        """Bars of each symbol that begin in its span, [from, to] in UTC ns, and some around them.

        Args:
            spans: by symbol.
            before: how many bars before the span.
            behind: at least so many bars behind it, if there are.
        """
        import polars as pl

        symbols = list(spans)
        first = min(begin for begin, _ in spans.values())
        last = max(end for _, end in spans.values())
        earlier = await self._bars(symbols, end=first, last=before)
        during = await self._bars(symbols, start=first, end=last + 1)
        later = await self._next(symbols, last + 1, behind)
        return await self._panel(pl.concat([earlier, during, later]).sort("symbol", "ts"))

    async def _next(self, symbols: Sequence[str], start: int, bars: int) -> pl.DataFrame:
        """At least the next `bars` bars of each symbol, or all if there are fewer."""
        import polars as pl

        newest = await self._bars(symbols, start=start, last=1)
        missing = dict.fromkeys(newest["symbol"].to_list(), bars)
        ends = dict(newest.select("symbol", pl.col("ts").to_physical()).iter_rows())
        found, wide = newest.clear(), bars * self._interval_ns
        while missing:
            some = await self._bars(list(missing), start=start, end=start + wide)
            found = found.vstack(some)
            counts = dict(some["symbol"].value_counts().iter_rows())
            missing = {
                symbol: number - counts.get(symbol, 0)
                for symbol, number in missing.items()
                if counts.get(symbol, 0) < number and ends[symbol] >= start + wide
            }
            start, wide = start + wide, 4 * wide
        return found

    async def signals(
        self, spans: Mapping[str, tuple[int, int]], names: Collection[str]
    ) -> list[Signal]:
        """Signals of these names for bars of this interval, in order of time.

        Args:
            spans: symbol -> from and to, both included: ends of bars, UTC ns.
            names: of rules and models.
        """
        import polars as pl

        if not spans or not names:
            return []
        interval = format_interval(self._interval_ns)
        meant = pl.col("ts").to_physical().is_between("first", "last")
        meant &= pl.col("metadata").str.json_path_match("$.interval") == interval
        found: list[Signal] = []
        begins = {symbol: first for symbol, (first, _) in spans.items()}
        spread_ns = _SPREAD * self._interval_ns
        while len(groups := list(_together(begins, spread_ns))) > _GROUPS_MAX:
            spread_ns *= _SPREAD
        for group in groups:
            firsts, lasts = list(group.values()), [spans[symbol][1] for symbol in group]
            where = {"provider": [self._provider], "symbol": list(group), "name": list(names)}
            what = Select(SIGNALS, where, min(firsts), max(lasts) + 1)
            border = pl.DataFrame({"symbol": list(group), "first": firsts, "last": lasts})
            frame = await self._store.select(what)
            frame = frame.join(border, on="symbol", maintain_order="left").filter(meant)
            found += signals_of(frame)
        return found

    async def _bars(
        self,
        symbols: Sequence[str],
        start: int | None = None,
        end: int | None = None,
        last: int | None = None,
    ) -> pl.DataFrame:
        where = {
            "provider": [self._provider],
            "symbol": symbols,
            "interval": [format_interval(self._interval_ns)],
        }
        return await self._store.select(Select(BARS, where, start, end, last=last))

    async def levels(self, ts: NDArray[np.int64]) -> Levels:
        """Closes of the indices, as of bars that begin at `ts`, UTC ns."""
        return await stored_levels(
            self._store, self._provider, self._interval_ns, self._indices, ts
        )

    async def _panel(self, frame: pl.DataFrame) -> Panel:
        levels = await self.levels(frame["ts"].to_physical().to_numpy())
        return Panel(self._interval_ns, frame, self._session_gap_ns, levels)


async def stored_levels(
    store: Tables, provider: str, interval_ns: int, indices: Sequence[str], ts: NDArray[np.int64]
) -> Levels:
    """Closes of symbols that others are compared with, as of bars that begin at `ts`, UTC ns."""
    import polars as pl

    if not indices:
        return NO_LEVELS
    age_ns = index_age_ns(interval_ns)
    where = {"provider": [provider], "symbol": indices, "interval": [format_interval(interval_ns)]}
    stretches = list(_stretches(ts, age_ns))
    frames = [await store.select(Select(BARS, where, *stretch)) for stretch in stretches]
    frame = pl.concat(frames)
    return Levels.of_bars(interval_ns, stretches[0][0], stretches[-1][1] - 1, indices, frame)


def _stretches(ts: NDArray[np.int64], age_ns: int) -> Iterator[tuple[int, int]]:
    """From and to, not included, of what tells of bars that begin at `ts`; long holes are left."""
    starts = np.unique(ts) if len(ts) else np.zeros(1, np.int64)
    holes = np.diff(starts)
    cuts = np.argsort(holes)[-_HOLES_MAX:]
    for part in np.split(starts, np.sort(cuts[holes[cuts] > age_ns]) + 1):
        yield int(part[0]) - age_ns, int(part[-1]) + 1


async def stored_spans(
    store: Tables, what: Select
) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    """Provider and interval -> symbol -> starts of its first and last bar, UTC ns."""
    import polars as pl

    found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    ts = pl.col("ts").to_physical()
    async with aclosing(store.scan(what)) as frames:
        async for frame in frames:
            by = frame.group_by("provider", "interval", "symbol")
            spans = by.agg(ts.min().alias("first"), ts.max().alias("last"))
            for provider, interval, symbol, first, last in spans.iter_rows():
                known = found.setdefault((provider, interval), {})
                low, high = known.get(symbol, (first, last))
                known[symbol] = min(low, first), max(high, last)
    return found


def _together(ends: Mapping[str, int], spread_ns: int) -> Iterator[dict[str, int]]:
    """Symbols whose times lie within `spread_ns` of each other."""
    group: dict[str, int] = {}
    for symbol, end in sorted(ends.items(), key=itemgetter(1)):
        if group and end - next(iter(group.values())) > spread_ns:
            yield group
            group = {}
        group[symbol] = end
    yield group


def signals_of(frame: pl.DataFrame) -> Iterator[Signal]:
    """The rows of a frame of the table of signals, ordered by time."""
    for row, ts in zip(
        frame.iter_rows(named=True), frame["ts"].to_physical().to_list(), strict=True
    ):
        yield Signal(
            provider=row["provider"],
            symbol=row["symbol"],
            ts=ts,
            name=row["name"],
            value=row["value"],
            score=row["score"],
            state=row["state"],
            metadata=msgspec.json.decode(row["metadata"]),
        )
