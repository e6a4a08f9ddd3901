"""The feature matrix of stored bars, computed by the code that live inference runs.

Bars are read in the order of their key, a bounded number at a time, each piece with the bars
before it that features look at; so memory does not grow with what is exported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_data_core.config import BAR_COLUMNS
from market_data_core.contracts.feature import Feature
from market_data_core.contracts.store import Tables
from market_data_core.events import OFFICIAL_SUFFIX
from market_data_core.intervals import format_interval
from market_data_core.tables import BARS, Select
from market_data_pipeline.features.levels import Levels
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.labels import Label
from market_data_pipeline.signals.reading import stored_levels
from market_data_pipeline.signals.rows import Needs, SelectedRows
from market_data_store.frames import closing

ROWS_MAX = 100_000
"""Bars that are read at once."""
BEFORE_MAX = 400_000
"""Bars before them that are held with them, for as many symbols as these suffice, at least one."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """What to compute, and for which bars.

    Attributes:
        interval_ns: the bars' length.
        features: by column name, in the order of the columns.
        labels: in the order of the columns.
        session_gap_ns: a hole at least this long begins a new session; 0: never.
        provider: the feed's name; None for all feeds, without vendors' own bars.
        symbols: upper case; empty for all.
        start: least start of a bar, UTC ns; None for no bound.
        end: what starts stay below, UTC ns; None for no bound. No label looks beyond it.
    """

    interval_ns: int
    features: Mapping[str, Feature]
    labels: Sequence[Label] = ()
    session_gap_ns: int = 0
    provider: str | None = None
    symbols: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None

    @property
    def needs(self) -> Needs:
        """What of the bars is looked at."""
        return Needs.of(self.features, dict.fromkeys(self.features, 0), self.interval_ns)


async def matrix_frames(store: Tables, what: Matrix) -> AsyncGenerator[pl.DataFrame]:
    """The matrix, one row for each bar, ordered by provider, symbol and time.

    Columns are ``provider``, ``symbol``, ``interval``, ``ts`` (start of the bar), ``end``, the
    bar's values under the names by which rules know them, the features, and the labels. What is
    not known is null. Bars before `what.start` are read for the features, and not given.

    At most :data:`ROWS_MAX` bars are computed at once. Held with them are the bars before them that
    features look at, at most :data:`BEFORE_MAX` or one symbol's, and the bars of one symbol whose
    labels are not known yet, at most the longest label's.

    Args:
        store: where the bars are. Those from `what.start` on are read as of one moment.
        what: what is computed.
    """
    where = {"interval": [format_interval(what.interval_ns)]}
    if what.symbols:
        where["symbol"] = list(what.symbols)
    if what.provider is not None:
        where["provider"] = [what.provider]
    work = _Work(store, what)
    async with closing(store.scan(Select(BARS, where, what.start, what.end), ROWS_MAX)) as frames:
        async for frame in frames:
            for part in _parts(frame, work.symbols_max):
                if what.provider is None and part["provider"][0].endswith(OFFICIAL_SUFFIX):
                    continue
                for found in await work.take(part):
                    yield found
    for found in await work.end():
        yield found


class _Work:
    """Bars go in, rows of the matrix come out as soon as nothing can change them.

    Args:
        store: where the bars before the first ones are.
        what: what is computed.
    """

    def __init__(self, store: Tables, what: Matrix) -> None:
        self._store, self._what, self._needs = store, what, what.needs
        self._held: pl.DataFrame | None = None  # of one symbol, `given` where its rows are out
        self.symbols_max = max(1, BEFORE_MAX // self._needs.reach)

    async def take(self, part: pl.DataFrame) -> list[pl.DataFrame]:
        """What is settled, once these bars of one provider are known too."""
        part = part.with_columns(given=pl.lit(False))
        found, held = list[pl.DataFrame](), self._held
        if held is not None and held["provider"][0] != part["provider"][0]:
            found, held = await self.end(), None
        pieces = [part] if held is None else [held, part]
        known = None if held is None else held["symbol"][0]
        new = [name for name in part["symbol"].unique(maintain_order=True) if name != known]
        if self._what.start is not None and new:
            pieces.append(await self._before(part["provider"][0], new))
        bars = pl.concat(pieces).sort("symbol", "ts")
        return found + await self._rows_of(bars, ended=False)

    async def end(self) -> list[pl.DataFrame]:
        """The rest of a provider's rows."""
        held, self._held = self._held, None
        return [] if held is None else await self._rows_of(held, ended=True)

    async def _rows_of(self, bars: pl.DataFrame, *, ended: bool) -> list[pl.DataFrame]:
        what = self._what
        ts = bars["ts"].to_physical().to_numpy()
        levels = await stored_levels(
            self._store, bars["provider"][0], what.interval_ns, self._needs.indices, ts
        )
        return await asyncio.to_thread(self._compute, bars, levels, ended=ended)

    async def _before(self, provider: str, symbols: list[str]) -> pl.DataFrame:
        """The bars before the first ones that features look at."""
        interval = format_interval(self._what.interval_ns)
        where = {"provider": [provider], "symbol": symbols, "interval": [interval]}
        earlier = Select(BARS, where, end=self._what.start, last=self._needs.reach)
        frame = await self._store.select(earlier)
        return frame.with_columns(given=pl.lit(True))

    def _compute(self, bars: pl.DataFrame, levels: Levels, *, ended: bool) -> list[pl.DataFrame]:
        """Rows that are settled; the last symbol's others are held, unless it has `ended`."""
        what = self._what
        panel = Panel(what.interval_ns, bars, what.session_gap_ns, levels)
        due = ~bars["given"].to_numpy()
        settled = len(bars)
        if not ended:
            begin = int(np.searchsorted(panel.codes, panel.codes[-1]))
            of_last = [label.settled(panel.ts[begin:]) for label in what.labels]
            settled = begin + min(of_last, default=settled - begin)
            kept = max(begin, settled - self._needs.reach)
            given = pl.Series("given", ~due | (np.arange(len(bars)) < settled))
            self._held = bars.with_columns(given)[kept:]
        rows = np.flatnonzero(due[:settled])
        return [self._rows(bars, panel, rows)] if len(rows) else []

    def _rows(self, bars: pl.DataFrame, panel: Panel, rows: NDArray[np.intp]) -> pl.DataFrame:
        chosen = bars[rows].rename({"vwap": "bar_vwap"})
        end = pl.col("ts") + pl.duration(nanoseconds=self._what.interval_ns)
        key = chosen.select("provider", "symbol", "interval", "ts", end.alias("end"), *BAR_COLUMNS)
        selected = SelectedRows(chosen["provider"][0], panel.select(rows), self._needs)
        columns = {name: selected.value(name) for name in self._what.features}
        columns |= {label.name: label.of(panel)[rows] for label in self._what.labels}
        return key.with_columns(
            pl.Series(name, values).fill_nan(None) for name, values in columns.items()
        )


def _parts(frame: pl.DataFrame, symbols_max: int) -> Iterator[pl.DataFrame]:
    """The bars of one provider each, of so many symbols at most."""
    for of_provider in frame.partition_by("provider", maintain_order=True):
        symbol = of_provider["symbol"].rle_id().to_numpy()
        borders = np.searchsorted(symbol, np.arange(0, symbol[-1] + 1, symbols_max))
        for begin, end in zip(borders, [*borders[1:], len(symbol)], strict=True):
            yield of_provider[int(begin) : int(end)]
