"""Signals of a stretch of what is stored: for recordings, comparisons and old changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from market_data_core.contracts.store import Tables
from market_data_core.signals import Signal
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.reading import Reader
from market_data_pipeline.signals.told import Told

_FURTHER = 4
Spans = Mapping[str, tuple[int, int]]
"""Symbol -> starts of the first and the last of its bars that are new or changed, UTC ns."""


@dataclass(frozen=True, slots=True)
class Revised:
    """What became of a stretch.

    Attributes:
        changes: signals to write: new ones, others than those stored, and retractions.
        bars: how many bars were looked at.
    """

    changes: list[Signal]
    bars: int


async def revise_range(
    store: Tables, evaluator: Evaluator, provider: str, interval_ns: int, spans: Spans
) -> Revised:
    """Evaluate bars and all that depend on them, and compare with the signals stored.

    Args:
        store: what is read.
        evaluator: what is computed.
        provider: the feed's name.
        interval_ns: the bars' length.
        spans: the bars.
    """
    needs = evaluator.needs(interval_ns)
    if needs is None or not spans:
        return Revised([], 0)
    reader = Reader(store, provider, interval_ns, evaluator.session_gap_ns)
    behind = needs.reach
    while True:
        panel = await reader.around(spans, before=needs.reach, behind=behind)
        selection = affected(panel, spans, behind)
        found = await evaluator.evaluate(provider, selection)
        covered = covered_by(selection)
        hold_off_ns = evaluator.cooldown_ns
        known = {symbol: (first - hold_off_ns, last) for symbol, (first, last) in covered.items()}
        told = Told(kept=None)
        told.remember(await reader.signals(known, found.names))
        changes = told.revise(found.signals, covered, found.names)
        if not hold_off_ns or not _goes_on(selection, panel, told.moved):
            return Revised(changes, len(selection))
        behind *= _FURTHER  # another signal holds off what follows, and so on until both agree


def _goes_on(selection: Selection, panel: Panel, symbols: set[str]) -> bool:
    """Whether bars are stored behind those selected of any of the symbols."""
    chosen, ends = covered_by(selection), panel.last_starts()
    return any(ends[s] + panel.interval_ns > chosen[s][1] for s in symbols)


def affected(panel: Panel, spans: Spans, reach: int) -> Selection:
    """The bars in the spans, and those behind them that look at them."""
    rows = []
    ends = np.flatnonzero(np.diff(panel.codes, append=-1)) + 1
    begins = np.concatenate([[0], ends[:-1]])
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
