"""One provider's bars of one interval, as they come from the log: rings, and what was told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import Tables
from market_data_core.intervals import parse_interval
from market_data_core.signals import Signal
from market_data_pipeline.features.history import History
from market_data_pipeline.features.levels import Levels
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.signals.checkpoint import NEVER, Key
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.ranges import covered_by
from market_data_pipeline.signals.reading import Reader
from market_data_pipeline.signals.rows import Needs
from market_data_pipeline.signals.told import Told

_FOREVER = 2**62


@dataclass(frozen=True, slots=True)
class Since:
    """From when on the present rules and models are those that evaluate bars.

    Attributes:
        latest: for all symbols: bars that begin after this, UTC ns.
        of: for one symbol.
    """

    latest: Callable[[], int]
    of: Callable[[str], int]


@dataclass(slots=True)
class Outcome:
    """What bars led to.

    Attributes:
        changes: signals to write.
        bars: how many bars were evaluated.
        old: symbol -> starts of the first and last bar that has to be worked out from the store.
        moved: index -> starts of the first and last bar of it that has changed since others were
            evaluated with it.
    """

    changes: list[Signal] = field(default_factory=list)
    bars: int = 0
    old: dict[str, tuple[int, int]] = field(default_factory=dict)
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add_old(self, symbol: str, start: int) -> None:
        """A bar of `symbol` that begins at `start`, UTC ns, has to be worked out so."""
        first, last = self.old.get(symbol, (start, start))
        self.old[symbol] = min(first, start), max(last, start)


class Streams(dict[Key, "BarStream | None"]):
    """What a worker remembers, by provider and interval; None where nothing looks at the bars."""

    def forget(self, symbols: Collection[str]) -> None:
        """Drop what is known of symbols."""
        for stream in filter(None, self.values()):
            stream.forget(symbols)

    def distrust(self, reached: Mapping[Key, int]) -> None:
        """Bars up to these, UTC ns, were evaluated by others."""
        for key, stream in self.items():
            if stream:
                stream.distrust(reached.get(key, NEVER))


class BarStream:
    """The state of one provider and interval.

    Args:
        store: what is known of symbols when they are first seen.
        evaluator: what is computed.
        needs: what it needs of these bars.
        provider: the feed's name.
        interval: canonical spelling.
        since: from when on the evaluator is for the bars.
    """

    def __init__(
        self,
        store: Tables,
        evaluator: Evaluator,
        needs: Needs,
        provider: str,
        interval: str,
        since: Since,
    ) -> None:
        self.provider, self.interval_ns = provider, parse_interval(interval)
        self._evaluator = evaluator
        gap_ns = evaluator.session_gap_ns
        self._reader = Reader(store, provider, self.interval_ns, gap_ns, needs.indices)
        self._history = History(self.interval_ns, needs.depths, gap_ns)
        self._told, self._since = Told(), since
        self._versions: dict[str, int] = {}
        self._levels: Levels | None = None
        self._trusted = -_FOREVER

    @classmethod
    def of(
        cls,
        store: Tables,
        evaluator: Evaluator,
        provider: str,
        interval: str,
        since: Since,
    ) -> BarStream | None:
        """A new one; None if nothing looks at bars of that interval."""
        needs = evaluator.needs(parse_interval(interval))
        return cls(store, evaluator, needs, provider, interval, since) if needs else None

    def forget(self, symbols: Collection[str]) -> None:
        """Drop what is known of symbols; when they come again it is read from the store."""
        self._history.forget(symbols)
        self._told.forget(symbols)
        for symbol in symbols:
            self._versions.pop(symbol, None)

    def distrust(self, until: int) -> None:
        """Bars that begin up to then, UTC ns, were evaluated by others: with what is not known."""
        self._trusted = max(self._trusted, until + 1)
        if self._levels:
            self._levels = self._levels.since(self._trusted)

    def has_used(self, index: str, start: int, close: float) -> bool:
        """Whether all that was evaluated beside that bar of an index was, with that close."""
        return self._levels is not None and self._levels.has(index, start, close)

    def _use(self, levels: Levels, outcome: Outcome) -> None:
        """Remember what bars were evaluated with, and tell where others were with something else.

        Of a bar older than all that is remembered nobody knows what was used, and never will.
        """
        known = self._levels
        if known:
            outcome.moved = levels.differences(known)
        if known is None or levels.last >= known.last:
            self._trusted = max(self._trusted, levels.first)
            self._levels = levels.since(self._trusted)

    async def _look_up(self, ends: Mapping[str, int]) -> tuple[Panel, list[Signal]] | None:
        """What is stored of symbols: bars before `ends`, and signals; None for no symbols."""
        unknown = list(ends)
        if not unknown:
            return None
        panel = await self._reader.before({s: ends[s] for s in unknown}, self._history.bars_max)
        hold_off_ns = self._evaluator.cooldown_ns
        first = panel.first_starts()
        spans = {s: (first.get(s, ends[s]) - hold_off_ns, _FOREVER) for s in unknown}
        return panel, await self._reader.signals(spans, self._evaluator.names)

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
        spans = batch.spans()
        unknown = self._history.unknown(spans)
        stored = await self._look_up({s: max(spans[s][0], known_until(s) + 1) for s in unknown})
        batch = self._less_known(batch, {s: known_until(s) for s in unknown}, outcome)
        levels = await self._reader.levels(batch.ts)
        if stored:  # nothing is taken in before all is read: reading may fail, and is done again
            panel, told = stored
            self._history.load(unknown, panel)
            self._told.learn(told)
        for put in self._history.put(batch, levels) if len(batch) else ():
            selection = self._of_its_time(put.selection, outcome)
            found = await self._evaluator.evaluate(self.provider, selection)
            covered = covered_by(selection)
            outcome.changes += self._told.revise(found.signals, covered, found.names)
            outcome.bars += len(selection)
            for symbol, start in put.old:
                outcome.add_old(symbol, start)
        if len(batch):
            self._use(levels, outcome)
        return outcome

    def _less_known(self, batch: BarBatch, until: Mapping[str, int], outcome: Outcome) -> BarBatch:
        """Without bars that were just read from the store: the store knows their latest version."""
        if not until:
            return batch
        border = np.array([until.get(s, -_FOREVER) for s in batch.symbols])
        known = batch.ts <= border[batch.codes]
        for row in np.flatnonzero(known).tolist():
            outcome.add_old(batch.symbols[batch.codes[row]], int(batch.ts[row]))
        return batch.take(~known) if known.any() else batch

    def _of_its_time(self, selection: Selection, outcome: Outcome) -> Selection:
        """The bars that the evaluator is for; those of the time of an earlier one are old."""
        starts = selection.starts
        if not len(selection) or int(starts.min()) > self._since.latest():
            return selection
        after = np.array([self._since.of(symbol) for symbol in selection.symbols])
        its = starts > after[selection.codes]
        if its.all():
            return selection
        for row in np.flatnonzero(~its).tolist():
            outcome.add_old(selection.symbols[selection.codes[row]], int(starts[row]))
        return selection.take(np.flatnonzero(its))

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
