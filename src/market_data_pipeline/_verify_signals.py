"""Stored signals against stored bars: features, rules and models, evaluated once more.

Signals are a function of the bars that are stored, and of the rules and models. So the bars are
evaluated as inference does it, and what holds is compared with the table. Nothing is written.
Signals that other versions of rules or models gave are counted apart.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from market_data_core.contracts.store import PartitionStatus, Store
from market_data_core.intervals import format_interval
from market_data_core.partitioning import partition_of
from market_data_core.signals import Signal
from market_data_core.tables import SIGNALS, Select
from market_data_pipeline._verify_signals_bars import Block, Blocks, Key
from market_data_pipeline.signals.checkpoint import decode_signals_checkpoint
from market_data_pipeline.signals.evaluator import Evaluator, told_version
from market_data_pipeline.verification import SHOWN_MAX, Scope
from market_data_pipeline.windows.assigner import NEVER

Problem = Literal["missing", "unexpected", "should be retracted", "differs"]
_LINEAGE = ("adapter", "version", "interval", "fallback_for")
_NOT_YET = "missing, but their bars are not evaluated yet"
_NO_BARS = "their bars are not stored"


@dataclass(frozen=True, slots=True)
class SignalDifference:
    """A signal in which the table disagrees with the bars.

    Attributes:
        provider: with `symbol`, `ts` (UTC ns) and `name` the signal's key.
        interval: of the bars.
        problem: ``unexpected`` has no bar, ``should be retracted`` does not hold at its bar.
        column: the first that differs; a feature as ``features.NAME``.
        stored: its value in the table.
        computed: its value by the bars.
    """

    provider: str
    symbol: str
    interval: str
    ts: int
    name: str
    problem: Problem
    column: str = ""
    stored: object = None
    computed: object = None


@dataclass(slots=True)
class SignalReport:
    """What a verification found.

    Attributes:
        bars: that were evaluated: those that rules or models look at.
        agree: active signals that are what the bars give.
        retracted: signals that no longer hold; that they do not is compared, their values are not.
        apart: reason -> active signals that cannot be compared, or that may rightly be missing.
        unanswered: adapter -> bars for which it gave no answer, so that nothing was compared.
        differences: signals in which the table disagrees with the bars.
        shown: the first of them.
        moved: something was committed meanwhile, so that differences may be none.
        seconds: how long it took.
    """

    bars: int = 0
    agree: int = 0
    retracted: int = 0
    apart: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    differences: int = 0
    shown: list[SignalDifference] = field(default_factory=list)
    moved: bool = False
    seconds: float = 0.0


class Reached:
    """How far the workers of inference have come on the live topic of bars.

    Args:
        rows: of their group and that topic.
        partitions: of the topic.
    """

    def __init__(self, rows: Iterable[PartitionStatus], partitions: int) -> None:
        self._partitions = partitions
        self._newest: dict[tuple[str, str], dict[int, int]] = {}
        for row in rows:
            checkpoint = decode_signals_checkpoint(row.checkpoint) if row.checkpoint else None
            for series in checkpoint.series if checkpoint else ():
                newest = self._newest.setdefault((series.provider, series.interval), {})
                newest[row.key.partition] = series.reached

    def includes(self, provider: str, symbol: str, interval: str, start: int) -> bool:
        """Whether the bar that begins at `start` (UTC ns) was read, if the live topic tells it."""
        newest = self._newest.get((provider, interval))
        here = partition_of(symbol, self._partitions)
        return newest is None or start <= newest.get(here, NEVER)


async def verify_signals(
    store: Store,
    evaluator: Evaluator,
    scope: Scope,
    intervals_ns: Collection[int],
    reached: Reached,
    strict: bool = False,
) -> SignalReport:
    """Compare the signals in `scope` with what the stored bars give.

    Args:
        store: holds bars and signals.
        evaluator: what is computed.
        scope: what to verify; its times are those of signals, the ends of bars.
        intervals_ns: lengths of the bars that rules and models may look at.
        reached: a bar that inference has not come to owes no signal.
        strict: compare signals that other versions gave as well.
    """
    began = time.perf_counter()
    before = await _sequences(store)
    looked_at = [length for length in intervals_ns if evaluator.needs(length)]
    lengths = {format_interval(length): length for length in looked_at}
    comparison = _Comparison(evaluator, lengths, reached, strict)
    report = comparison.report
    where = Select(SIGNALS, scope.where, scope.start, scope.end)
    async with aclosing(store.scan(where)) as frames:
        async for frame in frames:
            comparison.count(frame)
    if lengths:
        async for block in Blocks(store, evaluator, scope, lengths).read():
            comparison.compare(block)
    comparison.close()
    report.moved = await _sequences(store) != before
    report.seconds = time.perf_counter() - began
    return report


async def _sequences(store: Store) -> list[tuple[object, int]]:
    return [(row.key, row.sequence) for row in await store.status()]


class _Comparison:
    """What is counted and found, first of the whole table, then of each block of bars."""

    def __init__(
        self, evaluator: Evaluator, lengths: Mapping[str, int], reached: Reached, strict: bool
    ) -> None:
        self.report = SignalReport()
        self._guards, self._reached, self._strict = evaluator.guards, reached, strict
        self._versions = {guard.name: told_version(guard) for guard in self._guards}
        self._adapters = {name: guard.name for guard in self._guards for name in guard.names}
        self._looked_at = {
            (guard.name, interval)
            for guard in self._guards
            for interval in lengths
            if guard.columns(interval)
        }
        self._others: dict[tuple[str, str, str], tuple[int, str]] = {}
        self._left = 0

    def count(self, frame: pl.DataFrame) -> None:
        """Count what is not compared, and note until when other versions were at work."""
        lineage = [
            pl.col("metadata").str.json_path_match(f"$.{name}").alias(name) for name in _LINEAGE
        ]
        keys = ("provider", "name", "state", *_LINEAGE)
        groups = frame.with_columns(*lineage).group_by(keys)
        counted = groups.agg(pl.len(), pl.col("ts").to_physical().max())
        for row in counted.iter_rows(named=True):
            version, adapter = row["version"], row["adapter"]
            if row["state"] == "retracted":
                self.report.retracted += row["len"]
            elif why := self._why_apart(row["name"], row):
                self.report.apart[why] += row["len"]
            else:
                self._left += row["len"]
            if not self._strict and self._versions.get(adapter, version) != version:
                key = (row["provider"], row["interval"], adapter)
                self._others[key] = max(self._others.get(key, (NEVER, "")), (row["ts"], version))

    def _why_apart(self, name: str, meta: Mapping[str, Any]) -> str:
        """Why a signal cannot be compared; "" if it can."""
        adapter, version, interval, fallback_for = (meta.get(key) for key in _LINEAGE)
        if not adapter or not interval:
            return "they were not given by inference"
        if fallback_for:
            return f"they were given by the fallback of {fallback_for}"
        if adapter not in self._versions:
            return f"{adapter} is not enabled"
        if version != self._versions[adapter] and not self._strict:
            return f"they were given by {adapter} {version}, which is {self._versions[adapter]} now"
        if self._adapters.get(name) != adapter or (adapter, interval) not in self._looked_at:
            return f"{adapter} has no {name} for bars of {interval} now"
        return ""

    def compare(self, block: Block) -> None:
        """Compare what holds at the bars of a block with what was told of them."""
        self.report.bars += len(block.selection)
        for guard in self._guards:
            if guard.columns(block.interval) and not block.names.issuperset(guard.names):
                self.report.unanswered[guard.name] += len(block.selection)
        for key in sorted(block.told.keys() | block.holds.keys()):
            if key[1] in block.names:
                self._series(block, key)
            else:
                told = block.told[key]
                self._left -= sum(s.state == "active" and not self._apart(s) for s in told)

    def _series(self, block: Block, key: Key) -> None:
        """Compare the signals of one symbol and name, in order of time."""
        adapter = self._adapters[key[1]]
        others = self._others.get((block.provider, block.interval, adapter), (NEVER, ""))
        told = {signal.ts: signal for signal in block.told.get(key, ())}
        holds = {signal.ts: (signal, cooldown) for signal, cooldown in block.holds.get(key, ())}
        for ts in sorted(told.keys() | holds.keys()):
            stored, (computed, cooldown_ns) = told.get(ts), holds.get(ts, (None, 0))
            active = stored if stored and stored.state == "active" else None
            free = ts - block.last.get(key, ts - cooldown_ns) >= cooldown_ns
            if active and self._apart(active):
                block.last[key] = ts  # whoever gave it, it has held others off
            elif active:
                self._left -= 1
                if computed and free:
                    self._same(block, active, computed)
                    block.last[key] = ts
                else:
                    problem: Problem = "should be retracted"
                    self._differs(block, active, problem, "state", "active", None)
            elif computed and free and ts <= others[0]:
                why = f"missing, but {adapter} {others[1]} was at work then or later"
                self.report.apart[why] += 1
            elif computed and free:
                block.last[key] = ts
                self._missing(block, computed, stored)

    def _apart(self, signal: Signal) -> bool:
        return bool(self._why_apart(signal.name, signal.metadata))

    def _same(self, block: Block, stored: Signal, computed: Signal) -> None:
        difference = next(_unequal(stored, computed), None)
        if difference is None:
            self.report.agree += 1
        else:
            self._differs(block, stored, "differs", *difference)

    def _missing(self, block: Block, computed: Signal, stored: Signal | None) -> None:
        start = computed.ts - block.interval_ns
        if stored or self._reached.includes(block.provider, computed.symbol, block.interval, start):
            state = stored.state if stored else None
            self._differs(block, computed, "missing", "state", state, "active")
        else:
            self.report.apart[_NOT_YET] += 1

    def _differs(
        self,
        block: Block,
        signal: Signal,
        problem: Problem,
        column: str,
        stored: object,
        computed: object,
    ) -> None:
        self.report.differences += 1
        if len(self.report.shown) >= SHOWN_MAX:
            return
        if computed is None and not block.has_bar(signal.symbol, signal.ts):
            problem = "unexpected"
        key = (block.provider, signal.symbol, block.interval, signal.ts, signal.name)
        self.report.shown.append(SignalDifference(*key, problem, column, stored, computed))

    def close(self) -> None:
        """Count signals that no bar has led to."""
        if self._left:
            self.report.apart[_NO_BARS] += self._left


def _unequal(stored: Signal, computed: Signal) -> Iterator[tuple[str, object, object]]:
    """Column, stored and computed value of what differs in any bit.

    The sign of a zero aside, which databases do not keep: equal numbers are the same float.
    """
    for name in ("value", "score"):
        a, b = getattr(stored, name), getattr(computed, name)
        if a != b:
            yield name, a, b
    was, now = stored.metadata.get("features"), computed.metadata["features"]
    was = was if isinstance(was, dict) else {}
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield f"features.{name}", was.get(name), now.get(name)
    for name in ("adapter", "version", "bar"):
        a, b = stored.metadata.get(name), computed.metadata.get(name)
        if a != b:
            yield name, a, b
