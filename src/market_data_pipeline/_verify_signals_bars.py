"""What stored bars give, block by block, beside the signals that the table holds for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import polars as pl

from market_data_core.contracts.store import Store
from market_data_core.signals import Signal
from market_data_core.tables import BARS, Select
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.ranges import affected, covered_by
from market_data_pipeline.signals.reading import Reader
from market_data_pipeline.verification import Scope

BLOCK_BARS = 100_000
"""Bars that are worked on at once."""

Key = tuple[str, str]
"""Symbol and name of signals."""
_Spans = dict[str, tuple[int, int]]
_Row = tuple[str, str, str, int, int]
"""Provider, symbol, interval, starts of the first and the last bar (UTC ns)."""


@dataclass(frozen=True, slots=True)
class Block:
    """Bars of one provider and interval, evaluated.

    Attributes:
        provider: as stored.
        interval: canonical spelling.
        interval_ns: its length.
        selection: the bars.
        told: signals of the table in order of time, in any state.
        holds: what holds, each with its cooldown in ns, in order of time.
        last: UTC ns of the newest signal before the block; whoever compares keeps it up to date.
        names: of the signals that could be found.
    """

    provider: str
    interval: str
    interval_ns: int
    selection: Selection
    told: Mapping[Key, Sequence[Signal]]
    holds: Mapping[Key, Sequence[tuple[Signal, int]]]
    last: dict[Key, int]
    names: set[str]

    def has_bar(self, symbol: str, end: int) -> bool:
        """Whether there is a bar of the symbol that ends then, UTC ns."""
        here = self.selection.starts == end - self.interval_ns
        return symbol in {self.selection.symbols[c] for c in self.selection.codes[here].tolist()}


@dataclass(frozen=True, slots=True)
class _Left:
    """Where a block has ended in the middle of a series: the end of its last bar, and `last`."""

    series: tuple[str, str, str]
    end: int
    last: Mapping[Key, int]


class Blocks:
    """Reads and evaluates the bars of a scope.

    Args:
        store: holds bars and signals.
        evaluator: what is computed.
        scope: which bars: those that end in its time.
        lengths: interval -> length in ns, of those that something looks at; not empty.
    """

    def __init__(
        self, store: Store, evaluator: Evaluator, scope: Scope, lengths: Mapping[str, int]
    ) -> None:
        self._store, self._evaluator, self._scope = store, evaluator, scope
        self._lengths = lengths
        self._left: _Left | None = None

    async def read(self) -> AsyncIterator[Block]:
        """The blocks, those of one series in order of time."""
        start, end = self._scope.span
        ts = pl.col("ts").to_physical()
        ends = ts + pl.col("interval").replace_strict(self._lengths, return_dtype=pl.Int64)
        where = {**self._scope.where, "interval": list(self._lengths)}
        first = None if self._scope.start is None else start - max(self._lengths.values())
        what = Select(BARS, where, first, self._scope.end)
        async with aclosing(self._store.scan(what, BLOCK_BARS)) as frames:
            async for frame in frames:
                series = (
                    frame.filter(ends.is_between(start, end, closed="left"))
                    .group_by("provider", "symbol", "interval", maintain_order=True)
                    .agg(ts.min().alias("first"), ts.max().alias("last"))
                )
                for provider, interval, spans in _parts(list(series.iter_rows())):
                    block = await self._evaluated(provider, interval, spans)
                    yield block
                    symbol = next(reversed(spans))
                    covered = covered_by(block.selection)[symbol]
                    self._left = _Left((provider, symbol, interval), covered[1], block.last)

    async def _evaluated(self, provider: str, interval: str, spans: _Spans) -> Block:
        length = self._lengths[interval]
        needs = self._evaluator.needs(length)
        assert needs is not None  # noqa: S101  (only such intervals are read)
        gap_ns = self._evaluator.session_gap_ns
        reader = Reader(self._store, provider, length, gap_ns, needs.indices)
        panel = await reader.around(spans, before=needs.reach, behind=0)
        selection = affected(panel, spans, 1)
        found = await self._evaluator.evaluate(provider, selection)
        names, hold_off_ns = self._evaluator.names, self._evaluator.cooldown_ns
        wanted, earlier = covered_by(selection), _Spans()
        last: dict[Key, int] = {}
        for symbol, (begin, end) in wanted.items():
            if self._left and self._left.series == (provider, symbol, interval):
                wanted[symbol] = self._left.end + 1, end  # some may stand between two bars
                last |= {key: at for key, at in self._left.last.items() if key[0] == symbol}
            elif hold_off_ns:
                earlier[symbol] = begin - hold_off_ns, begin - 1
        for signal in await reader.signals(earlier, names):
            if signal.state == "active":
                last[signal.symbol, signal.name] = signal.ts
        told: dict[Key, list[Signal]] = {}
        for signal in await reader.signals(wanted, names):
            told.setdefault((signal.symbol, signal.name), []).append(signal)
        holds: dict[Key, list[tuple[Signal, int]]] = {}
        for signal, cooldown_ns in found.signals:
            holds.setdefault((signal.symbol, signal.name), []).append((signal, cooldown_ns))
        return Block(provider, interval, length, selection, told, holds, last, found.names)


def _parts(rows: Sequence[_Row]) -> Iterator[tuple[str, str, _Spans]]:
    """The series of a frame as blocks.

    The first and the last may go on in other frames. They stand alone: what is read of the others
    reaches as far as the longest of them.
    """
    inner: dict[tuple[str, str], _Spans] = {}
    for provider, symbol, interval, first, last in rows[1:-1]:
        inner.setdefault((provider, interval), {})[symbol] = first, last
    for provider, symbol, interval, first, last in rows[:1]:
        yield provider, interval, {symbol: (first, last)}
    for (provider, interval), spans in inner.items():
        yield provider, interval, spans
    for provider, symbol, interval, first, last in rows[1:][-1:]:
        yield provider, interval, {symbol: (first, last)}
