"""Signals of a stretch of what is stored: for recordings, comparisons and old changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from market_data_core.contracts.store import Tables
from market_data_core.signals import Signal
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.reading import Reader
from market_data_pipeline.signals.told import Told

_FURTHER = 4
_BARS_OF_A_SYMBOL, _BARS_AT_ONCE = 100_000, 400_000
"""Bars of one symbol, and of all, that are read at once; those around them not counted."""
_NOTHING = 2**62, -(2**62)
Spans = Mapping[str, tuple[int, int]]
"""Symbol -> starts of the first and the last of its bars that are new or changed, UTC ns."""


@dataclass(slots=True)
class Revised:
    """What became of a stretch.

    Attributes:
        changes: signals to write: new ones, others than those stored, and retractions.
        bars: how many bars were looked at.
        unanswered: names of signals whose rules or model did not answer for some of them.
    """

    changes: list[Signal]
    bars: int = 0
    unanswered: frozenset[str] = frozenset()


def blocks(spans: Spans, interval_ns: int) -> Iterator[dict[str, tuple[int, int]]]:
    """The spans in parts that fit into memory, one after the other in time for each symbol.

    What is found for one part has to be written before the next one is worked out.
    """
    length_ns = _BARS_OF_A_SYMBOL * interval_ns
    cells: dict[int, dict[str, tuple[int, int]]] = {}
    for symbol, (first, last) in sorted(spans.items()):
        for cell in range(first // length_ns, last // length_ns + 1):
            begin, end = cell * length_ns, (cell + 1) * length_ns - 1
            cells.setdefault(cell, {})[symbol] = max(first, begin), min(last, end)
    for _, cell_spans in sorted(cells.items()):
        block: dict[str, tuple[int, int]] = {}
        low, high = _NOTHING
        for symbol, (first, last) in cell_spans.items():
            wide = max(high, last) - min(low, first)
            if block and (wide // interval_ns + 1) * (len(block) + 1) > _BARS_AT_ONCE:
                yield block
                block, (low, high) = {}, _NOTHING
            block[symbol] = first, last
            low, high = min(low, first), max(high, last)
        yield block


def united(*some: Spans) -> dict[str, tuple[int, int]]:
    """Of each symbol the least and the greatest time that any of the spans has."""
    found: dict[str, tuple[int, int]] = {}
    for spans in some:
        for symbol, (first, last) in spans.items():
            low, high = found.get(symbol, (first, last))
            found[symbol] = min(low, first), max(high, last)
    return found


class Evaluators(Protocol):
    """Who evaluates which bars.

    Attributes:
        session_gap_ns: a hole at least this long begins a new session; 0: never.
    """

    session_gap_ns: int

    @property
    def cooldown_ns(self) -> int:
        """The longest cooldown of any rule or model."""
        ...

    def reach(self, interval_ns: int) -> int:
        """How many bars, at most, look at a bar, its own among them; 0 if nothing does."""
        ...

    def indices(self, interval_ns: int) -> tuple[str, ...]:
        """The symbols that others are compared with."""
        ...

    def parts(self, selection: Selection) -> Iterable[tuple[Evaluator, Selection]]:
        """The bars by who evaluates them, the earliest first."""
        ...


async def revise_range(
    store: Tables, evaluators: Evaluators, provider: str, interval_ns: int, spans: Spans
) -> Revised:
    """Evaluate bars and all that depend on them, and compare with the signals stored.

    Args:
        store: what is read.
        evaluators: what is computed.
        provider: the feed's name.
        interval_ns: the bars' length.
        spans: the bars.
    """
    reach = evaluators.reach(interval_ns)
    revised, unanswered = Revised([]), set[str]()
    indices = evaluators.indices(interval_ns)
    reader = Reader(store, provider, interval_ns, evaluators.session_gap_ns, indices)
    told, held_off = Told(), _HeldOff(evaluators.cooldown_ns)
    left, wide = dict(spans) if reach else {}, reach
    follows: dict[str, int] = {}
    while left:
        panel = await reader.around(left, before=reach, behind=reach)
        selection = affected(panel, left, reach)
        ends: dict[str, int] = {}
        for evaluator, part in evaluators.parts(selection):
            found = await evaluator.evaluate(provider, part)
            covered = covered_by(part)
            known = {s: (first - held_off.ns, last) for s, (first, last) in covered.items()}
            begins = {symbol: first for symbol, (first, _) in covered.items()}
            told.learn(await reader.signals(known, found.names), since=begins)
            revised.changes += told.revise(found.signals, covered, found.names)
            held_off.learn(told)
            ends |= {symbol: last for symbol, (_, last) in covered.items()}
            unanswered |= found.unanswered
        revised.bars += len(selection)
        follows |= {symbol: ends[symbol] for symbol in held_off.differently(ends)}
        wide = min(wide * _FURTHER, _BARS_AT_ONCE // max(1, len(follows)))
        end = min(follows.values(), default=0) + wide * interval_ns
        left = {symbol: (begin, end) for symbol, begin in follows.items() if begin <= end}
        follows = {symbol: begin for symbol, begin in follows.items() if begin > end}
    # one that was answered for a part only may hold off others differently behind that
    revised.changes = [one for one in revised.changes if one.name not in unanswered]
    revised.unanswered = frozenset(unanswered)
    return revised


class _HeldOff:
    """Where signals are held off by others than before, once some have changed.

    Args:
        ns: the longest cooldown.
    """

    def __init__(self, ns: int) -> None:
        self.ns = ns
        self._since: dict[tuple[str, str], int] = {}

    def learn(self, told: Told) -> None:
        """What was changed last."""
        for key, (now, was) in told.ends.items():
            if now != was:
                self._since[key] = max(ts for ts in (now, was) if ts is not None)
            elif now is not None:
                self._since.pop(key, None)

    def differently(self, ends: Mapping[str, int]) -> set[str]:
        """The symbols of which what follows the given times may be."""
        return {s for (s, _), ts in self._since.items() if s in ends and ts + self.ns > ends[s]}


def affected(panel: Panel, spans: Spans, reach: int) -> Selection:
    """The bars in the spans, and those behind them that look at them."""
    rows = []
    ends = np.flatnonzero(np.diff(panel.codes, append=-1)) + 1
    begins = np.concatenate([[0], ends])[:-1]
    for symbol, begin, end in zip(panel.symbols, begins.tolist(), ends.tolist(), strict=True):
        first, last = np.searchsorted(panel.ts[begin:end], spans[symbol])
        rows.append(np.arange(begin + first, min(begin + last + reach, end), dtype=np.intp))
    return panel.select(np.concatenate(rows) if rows else np.zeros(0, np.intp))


def covered_by(selection: Selection) -> dict[str, tuple[int, int]]:
    """Symbol -> least and greatest time (ends of bars, UTC ns) that were worked out."""
    covered: dict[str, tuple[int, int]] = {}
    starts = selection.starts
    order = np.lexsort((starts, selection.codes))
    codes, ends = selection.codes[order], starts[order] + selection.interval_ns
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    last = np.append(first[1:], len(codes)) - 1
    for code, begin, end in zip(
        codes[first].tolist(), ends[first].tolist(), ends[last[: len(first)]].tolist(), strict=True
    ):
        covered[selection.symbols[code]] = (begin, end)
    return covered
