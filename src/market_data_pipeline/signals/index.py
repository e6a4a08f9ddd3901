"""Symbols that others are compared with: their bars are waited for, their changes followed.

A bar is evaluated with what the store has of its index, once the windows up to it are closed there.
What the store has may change later, and is told on the topic of bars, in the index's partition.
Every worker reads that besides its own partitions; how far is part of each checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from market_data_core.bars import BarBatch
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.feature import index_age_ns
from market_data_core.contracts.store import Positions, Tables
from market_data_core.errors import LogHoleError, LogLostError
from market_data_core.events import OFFICIAL_SUFFIX
from market_data_core.intervals import parse_interval
from market_data_core.partitioning import partition_of
from market_data_core.records import TopicInfo
from market_data_core.tables import BARS, Select
from market_data_pipeline.generations import Generations
from market_data_pipeline.patience import patient
from market_data_pipeline.signals.checkpoint import Key
from market_data_pipeline.signals.editions import Editions
from market_data_pipeline.signals.observe import SignalsObserver
from market_data_pipeline.signals.ranges import Spans
from market_data_pipeline.signals.reading import stored_spans
from market_data_pipeline.signals.records import bars_of
from market_data_pipeline.signals.stream import BarStream
from market_data_pipeline.windows.checkpoint import decode_checkpoint

log = structlog.get_logger("inference")

_PATIENCE_S = 5.0
"""How long bars wait for those of their index; later ones of it change what was found."""
_LOOK_S = 1.0
_STALE_S = 2.0
_POLL_BYTES = 1 << 20

Closed = Callable[[str, str, int], Awaitable[int | None]]
"""Provider, symbol, start of a window (UTC ns) -> end of the last window of the symbol's partition
that is closed, UTC ns; None if nobody closes windows of that provider."""


class ClosedWindows:
    """Tells which windows are closed, by the checkpoints of the workers that close them.

    Args:
        store: where the checkpoints are.
        generations: of the live topic.
        group: consumer group of those workers.
        partitions: of the first generation, if there is none yet.
    """

    def __init__(
        self, store: Positions, generations: Generations, group: str, partitions: int
    ) -> None:
        self._store, self._generations = store, generations
        self._group, self._partitions = group, partitions
        self._look_at = 0.0

    async def __call__(self, provider: str, symbol: str, start: int) -> int | None:
        """Implements :data:`Closed`."""
        if time.monotonic() >= self._look_at:
            await self._generations.look(self._partitions)
            self._look_at = time.monotonic() + _STALE_S
        generation = self._generations.timeline.at(start)
        home = partition_of(symbol, generation.partitions)
        for row in await self._store.status(self._group, generation.topic):
            if row.key.partition == home and row.checkpoint:
                streams = decode_checkpoint(row.checkpoint).streams
                return next((s.closed for s in streams if s.provider == provider), None)
        return None


class IndexWaits:
    """Whether bars can be evaluated: their index has come as far, or has been waited for.

    Args:
        editions: what is computed.
        closed: how far an index has come.
        observer: counts what was not waited for any longer.
    """

    def __init__(self, editions: Editions, closed: Closed, observer: SignalsObserver) -> None:
        self._editions, self._closed, self._observer = editions, closed, observer
        self._ready: dict[Key, int] = {}
        self._since: dict[Key, float] = {}
        self._late: dict[Key, int] = {}

    async def over(self, reached: Mapping[Key, int]) -> bool:
        """Whether bars that begin up to the given times, UTC ns, need not wait."""
        return all([await self._over(key, start) for key, start in reached.items()])

    async def _over(self, key: Key, start: int) -> bool:
        provider, interval = key
        length_ns = parse_interval(interval)
        indices = self._editions.indices(length_ns)
        if not indices or provider.endswith(OFFICIAL_SUFFIX) or start < self._ready.get(key, start):
            return True
        for symbol in indices:
            until = await self._closed(provider, symbol, start)
            if until is not None and until < start + length_ns:
                return self._patience_ends(key, symbol, start, until)
        self._ready[key] = start + 1
        self._since.pop(key, None)
        self._late.pop(key, None)
        return True

    def _patience_ends(self, key: Key, symbol: str, start: int, until: int) -> bool:
        """Whether to go on without; once it is so, until the index has come as far as that was."""
        if self._late.get(key, until) > until:
            return True
        self._late.pop(key, None)
        waited_s = time.monotonic() - self._since.setdefault(key, time.monotonic())
        if waited_s >= _PATIENCE_S:
            self._late[key] = start
            self._since.pop(key)
            log.warning(
                "bars are evaluated before those of their index, which are not closed yet; what "
                "that changes is corrected when they come",
                index=symbol,
                provider=key[0],
                interval=key[1],
            )
            self._observer.error("index_late")
        return key in self._late


@dataclass(slots=True)
class News:
    """What was told of indices.

    Attributes:
        bars: provider and interval -> (symbol, start in UTC ns, close) of each bar.
        places: partition -> where to read on once all of that is dealt with.
        lost: something of it was removed before it was read.
    """

    bars: dict[Key, list[tuple[str, int, float]]] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    lost: bool = False


class IndexFollower:
    """Reads what is told of the bars of indices.

    Args:
        bus: holds the topic of bars.
        info: that topic.
        editions: what is computed.
        observer: counts records that cannot be read.

    Attributes:
        places: partition -> from where on nothing was read.
    """

    def __init__(
        self, bus: Bus, info: TopicInfo, editions: Editions, observer: SignalsObserver
    ) -> None:
        self._bus, self.info, self._editions, self._observer = bus, info, editions, observer
        self.places: dict[int, int] = {}
        self._lost = False
        self._look_at = 0.0

    async def begin(self, places: Mapping[int, int]) -> None:
        """Read from these places on, or from the end where there is none."""
        for symbol in self._editions.compared_with:
            number = partition_of(symbol, self.info.partitions)
            place = places.get(number)
            if place is None and number not in self.places:
                bounds = await patient(lambda n=number: self._bus.bounds(self.info.name, n))  # type: ignore[misc]
                self.places[number] = bounds.next
            elif place is not None:
                self.places[number] = min(place, self.places.get(number, place))

    async def news(self, at_once: bool) -> News:
        """What was told.

        Args:
            at_once: look now; else it is done from time to time.

        Raises:
            LogLostError: the log is not what it was; the next news say so too.
        """
        waits = time.monotonic() < self._look_at and not at_once and not self._lost
        if waits or not self.places:
            return News()
        news = News(lost=self._lost)
        try:
            found = await patient(
                lambda: self._bus.poll(self.info.name, self.places, _POLL_BYTES, 0.0)
            )
        except LogHoleError:
            self._lost = True
            raise
        except LogLostError:
            if moved := await patient(self._moved):
                return News(places=moved, lost=True)
            self._lost = True
            raise
        if not found:
            self._look_at = time.monotonic() + _LOOK_S
        for number, records in found.items():
            news.places[number] = records[-1].offset + 1
            for batch, _ in bars_of(records, self.info.name, self._observer):
                indices = self._editions.indices(parse_interval(batch.interval))
                _add(news.bars, batch, indices)
        return news

    async def _moved(self) -> dict[int, int]:
        """Partition -> where to read on, of those in which our place is not any more."""
        bounds = {n: await self._bus.bounds(self.info.name, n) for n in self.places}
        kept = {n: min(max(self.places[n], b.first), b.next) for n, b in bounds.items()}
        return {n: place for n, place in kept.items() if place != self.places[n]}

    def settle(self, news: News) -> None:
        """All that was told has been dealt with."""
        self.places |= {n: place for n, place in news.places.items() if n in self.places}
        self._lost = self._lost and not news.lost


def _add(
    bars: dict[Key, list[tuple[str, int, float]]], batch: BarBatch, symbols: Iterable[str]
) -> None:
    for symbol in {*symbols} & {*batch.symbols}:
        rows = np.flatnonzero(batch.codes == batch.symbols.index(symbol))
        told = zip(batch.ts[rows].tolist(), batch.close[rows].tolist(), strict=True)
        bars.setdefault((batch.provider, batch.interval), []).extend(
            (symbol, start, close) for start, close in told
        )


def changed_spans(
    bars: Iterable[tuple[str, int, float]],
    reached: int,
    stream: BarStream | None,
    interval_ns: int,
) -> Iterator[tuple[int, int]]:
    """Starts of the first and last bars of an index that others were not evaluated with as it is.

    Bars that stand far apart are in spans of their own.

    Args:
        bars: that were told: symbol, start and close.
        reached: start of the newest bar that was evaluated, UTC ns.
        stream: what knows which closes were used; None if nothing does.
        interval_ns: the bars' length.
    """
    starts = sorted(
        start
        for symbol, start, close in bars
        if start <= reached and not (stream and stream.has_used(symbol, start, close))
    )
    for i, start in enumerate(starts):
        if not i or start - starts[i - 1] > index_age_ns(interval_ns):
            first = start
        if i + 1 == len(starts) or starts[i + 1] - start > index_age_ns(interval_ns):
            yield first, start


async def compared_spans(
    store: Tables, key: Key, indices: Sequence[str], span: tuple[int, int]
) -> Spans:
    """The bars that are seen beside bars of indices in a span: up to the next ones of these.

    Args:
        store: where they are.
        key: provider and interval.
        indices: the symbols.
        span: starts of their first and last bar, UTC ns.

    Returns:
        Symbol -> starts of its first and last bar.
    """
    where = {"provider": [key[0]], "interval": [key[1]]}
    end = span[1] + index_age_ns(parse_interval(key[1]))
    of_indices = Select(BARS, {**where, "symbol": indices}, span[1] + 1, end)
    following = (await stored_spans(store, of_indices)).get(key, {})
    if following.keys() == set(indices):
        end = max(first for first, _ in following.values())
    found = await stored_spans(store, Select(BARS, where, span[0], end))
    return found.get(key, {})
