"""One provider's bars of one interval, as they come from the log: rings, and what was told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import Tables
from market_data_core.intervals import parse_interval
from market_data_core.signals import Signal
from market_data_pipeline.features.history import History
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.ranges import covered_by
from market_data_pipeline.signals.reading import Reader
from market_data_pipeline.signals.rows import Needs
from market_data_pipeline.signals.told import Told

_FOREVER = 2**62


@dataclass(slots=True)
class Outcome:
    """What bars led to.

    Attributes:
        changes: signals to write.
        bars: how many bars were evaluated.
        old: symbol -> starts of the first and last bar that has to be worked out from the store.
    """

    changes: list[Signal] = field(default_factory=list)
    bars: int = 0
    old: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add_old(self, symbol: str, start: int) -> None:
        """A bar of `symbol` that begins at `start`, UTC ns, has to be worked out so."""
        first, last = self.old.get(symbol, (start, start))
        self.old[symbol] = min(first, start), max(last, start)


class BarStream:
    """The state of one provider and interval.

    Args:
        store: what is known of symbols when they are first seen.
        evaluator: what is computed.
        needs: what it needs of these bars.
        provider: the feed's name.
        interval: canonical spelling.
    """

    def __init__(
        self, store: Tables, evaluator: Evaluator, needs: Needs, provider: str, interval: str
    ) -> None:
        self.provider, self.interval_ns = provider, parse_interval(interval)
        self._evaluator = evaluator
        gap_ns = evaluator.session_gap_ns
        self._reader = Reader(store, provider, self.interval_ns, gap_ns)
        self._history = History(self.interval_ns, needs.depths, gap_ns)
        self._told = Told()
        self._versions: dict[str, int] = {}

    @classmethod
    def of(
        cls, store: Tables, evaluator: Evaluator, provider: str, interval: str
    ) -> BarStream | None:
        """A new one; None if nothing looks at bars of that interval."""
        needs = evaluator.needs(parse_interval(interval))
        return cls(store, evaluator, needs, provider, interval) if needs else None

    def forget(self, symbols: Iterable[str]) -> None:
        """Drop what is known of symbols; when they come again it is read from the store."""
        symbols = list(symbols)
        self._history.forget(symbols)
        self._told.forget(symbols)
        for symbol in symbols:
            self._versions.pop(symbol, None)

    async def _look_up(self, ends: Mapping[str, int]) -> None:
        """Read what is stored of symbols that are not known: bars before `ends`, and signals."""
        unknown = self._history.unknown(ends)
        if not unknown:
            return
        panel = await self._reader.before({s: ends[s] for s in unknown}, self._history.bars_max)
        hold_off_ns = self._evaluator.cooldown_ns
        first = panel.first_starts()
        spans = {s: (first.get(s, ends[s]) - hold_off_ns, _FOREVER) for s in unknown}
        told = await self._reader.signals(spans, self._evaluator.names)
        self._history.load(unknown, panel)
        self._told.remember(told)

    async def take(
        self, batches: Sequence[tuple[BarBatch, int]], known_until: Callable[[str], int]
    ) -> Outcome:
        """Evaluate bars and what depends on them.

        Args:
            batches: with their versions, in the order of the log.
            known_until: symbol -> start of the newest bar that was read before, UTC ns: what is
                stored of a symbol up to there belongs to the past of its next bar, also when that
                is a late one.
        """
        outcome = Outcome()
        fresh: list[BarBatch] = []
        for batch, version in batches:
            current, stale = self._sorted_out(batch, version)
            fresh += [current] if len(current) else []
            for row in stale.tolist():
                outcome.add_old(batch.symbols[batch.codes[row]], int(batch.ts[row]))
        if not fresh:
            return outcome
        batch = BarBatch.concat(fresh)
        starts = batch.first_starts()
        await self._look_up({s: max(start, known_until(s) + 1) for s, start in starts.items()})
        for put in self._history.put(batch):
            found = await self._evaluator.evaluate(self.provider, put.selection)
            covered = covered_by(put.selection)
            outcome.changes += self._told.revise(found.signals, covered, found.names)
            outcome.bars += len(put.selection)
            for symbol, start in put.old:
                outcome.add_old(symbol, start)
        return outcome

    def _sorted_out(self, batch: BarBatch, version: int) -> tuple[BarBatch, NDArray[np.intp]]:
        """The bars that are the latest version, and the rows of those that may not be.

        An old message may come a second time; and a recording may have changed a bar of a live
        feed before the feed's own worker did, and have told of it later. The store knows.
        """
        known = self._versions
        stale = [i for i, s in enumerate(batch.symbols) if known.get(s, version) > version]
        known.update((s, version) for i, s in enumerate(batch.symbols) if i not in stale)
        if not stale:
            return batch, np.zeros(0, np.intp)
        old = np.isin(batch.codes, stale)
        return batch.take(~old), np.flatnonzero(old)
