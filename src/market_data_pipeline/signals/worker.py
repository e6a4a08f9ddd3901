"""The worker of inference: reads closed bars from the log, and commits the signals they give.

Any number of workers share the partitions of the topic of bars, by the same ``ownership.py`` as
micro-batchers. Signals and position are one transaction. What has been read is not remembered over
a restart: rings and earlier signals come from the store, which holds the latest version of both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import structlog

from market_data_core.bars import BarBatch
from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Claim, Commits, Store
from market_data_core.errors import (
    FencedError,
    LogHoleError,
    LogLostError,
    TransientError,
)
from market_data_core.intervals import parse_interval
from market_data_core.records import Place, TopicInfo
from market_data_core.tables import BARS, Select
from market_data_pipeline.ownership import Ownership
from market_data_pipeline.patience import patient
from market_data_pipeline.signals.checkpoint import NEVER, Key, decode_signals_checkpoint
from market_data_pipeline.signals.editions import Editions, EditionsOf
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.index import (
    Closed,
    IndexFollower,
    IndexWaits,
    changed_spans,
    compared_spans,
)
from market_data_pipeline.signals.observe import SignalsObserver
from market_data_pipeline.signals.part import Part, Parts
from market_data_pipeline.signals.ranges import Spans, blocks, revise_range
from market_data_pipeline.signals.reading import stored_spans
from market_data_pipeline.signals.records import Polled
from market_data_pipeline.signals.recovery import beginning
from market_data_pipeline.signals.settings import Signalled, SignalsSettings
from market_data_pipeline.signals.stream import BarStream, Since, Streams
from market_data_pipeline.windows.writer import GroupWriter

T = TypeVar("T")
log = structlog.get_logger("inference")

_TICK_S = 0.02
_WAIT_S = 0.25
_HELD_S = 0.05
_PLACES_S = 5.0
"""So long at most stays unsaved how far the changes of indices were followed."""


class SignalWorker:
    """One worker on the topic of bars.

    Args:
        bus: where bars come from and signals go.
        store: where positions and signals are.
        commits: where groups are given.
        info: the topic of bars.
        settings: how the worker behaves.
        editions: what is computed.
        clock: wall-clock time.
        closed: how far the symbols that others are compared with have come.
        renewed: looked at a few times a second: what is computed from now on, None if it is as
            before.

    Attributes:
        done: what was done so far.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        commits: Commits,
        info: TopicInfo,
        settings: SignalsSettings,
        editions: Editions,
        clock: Clock,
        closed: Closed,
        renewed: Callable[[], Awaitable[Evaluator | None]] | None = None,
    ) -> None:
        self._bus, self._store, self._commits, self._info = bus, store, commits, info
        self._settings, self._editions, self._clock = settings, editions, clock
        self._renewed = renewed
        self._observer = SignalsObserver(info.name, settings.group, settings.member)
        self._writer = GroupWriter(bus, store, commits, self._observer, None, info.partitions)
        self._owned = Parts(info.partitions)
        self._streams = Streams()
        self._follower = IndexFollower(bus, info, editions, self._observer)
        self._waits = IndexWaits(editions, closed, self._observer)
        self._held: Polled | None = None
        self._commit_at = self._places_at = 0.0
        self._ownership = Ownership(
            bus, store, info, settings.group, settings.member, settings.lease_ns, clock, patient
        )
        self.done = Signalled()

    async def run(self, stop: asyncio.Event, drain_s: float = 0.0) -> Signalled:
        """Work until `stop` is set.

        Args:
            stop: asks to end; what was evaluated is committed.
            drain_s: for how long to go on after that while there is something to read.
        """
        busy, deadline = True, float("inf")
        try:
            async with self._commits:
                while True:
                    if stop.is_set():
                        deadline = min(deadline, time.monotonic() + drain_s)
                        if not busy or time.monotonic() >= deadline:
                            break
                    try:
                        await self._rebalance()
                        busy = await self._follow(stop.is_set()) | await self._read()
                    except LogHoleError as hole:
                        if part := self._owned.get(hole.partition):
                            await self._make_up(hole.partition, part, "log_hole")
                        continue
                    except LogLostError as error:
                        await self._begin_anew(error)
                        continue
                    if time.monotonic() >= self._commit_at or self._owned.changed:
                        await self._commit()
                await self._commit()
                await self._writer.tidy()
        finally:
            await self._ownership.leave()
            self._editions.close()
        return self.done

    # ---- ownership -------------------------------------------------------------------------

    async def _rebalance(self) -> None:
        if self._ownership.due:
            self._observer.alive(self._clock.now_ns())
            if self._renewed and (evaluator := await self._renewed()):
                self._renew(evaluator)
                await self._follower.begin({})
        change = await self._ownership.change({n: p.claim for n, p in self._owned.items()})
        if change.surplus:
            await self._commit()
        for number in change.surplus:
            part = self._drop(number)
            if part:  # it may have been lost to another worker meanwhile
                await self._ownership.release(part.claim)
        for claim in change.claims:
            await self._adopt(claim)

    def _renew(self, evaluator: Evaluator) -> None:
        """Evaluate bars that nobody has evaluated yet by other rules or models."""
        self._editions.switch(evaluator)
        self._streams.clear()  # they keep what others look at; the store has it all
        for part in self._owned.values():
            part.checkpoint = self._editions.joined(part.checkpoint, part.reached)
            part.dirty = True
        editions = [e for part in self._owned.values() for e in part.checkpoint.editions]
        self._editions.keep({edition.version for edition in editions})

    def _drop(self, number: int) -> Part | None:
        """Let go of a partition: its symbols will be somebody else's."""
        part = self._owned.pop(number, None)
        if self._held:
            self._held.drop(number)
        self._streams.forget(self._owned.symbols(number))
        return part

    async def _adopt(self, claim: Claim) -> None:
        number = claim.key.partition
        self._streams.forget(self._owned.symbols(number))  # others have had it meanwhile
        known = decode_signals_checkpoint(claim.checkpoint) if claim.checkpoint else None
        found = await patient(lambda: beginning(self._bus, self._info, number, known))
        left = await patient(lambda: self._store.outbox(claim.key.group, claim.key.topic, number))
        await self._writer.publish(left)
        reached = {(s.provider, s.interval): s.reached for s in found.checkpoint.series}
        checkpoint = self._editions.joined(found.checkpoint, reached)
        part = Part(claim, checkpoint, checkpoint.position, checkpoint.checksum, reached)
        self._owned[number] = part
        await self._follower.begin(checkpoint.index)
        self._streams.distrust(reached)
        if found.cause:
            await self._make_up(number, part, found.cause)
        log.debug("partition owned", topic=self._info.name, partition=number, token=claim.token)

    async def _make_up(self, number: int, part: Part, cause: str) -> None:
        """Work out from the store what the log does not hold any more."""
        log.warning(
            "the log of bars has lost records; what they held is read from the store",
            topic=self._info.name,
            partition=number,
            cause=cause.replace("_", " "),
        )
        self._observer.error("log_lost")
        part.dirty = True
        if not part.reached:  # nobody has begun here
            return
        since = min(part.reached.values()) - self._settings.horizon_ns
        lost = await self._at_work(lambda: stored_spans(self._store, Select(BARS, start=since)))
        for key, spans in lost.items():
            mine = {s: span for s, span in spans.items() if self._owned.home(s) == number}
            if mine:
                part.reached[key] = max(end for _, end in mine.values())
            await self._revise(*key, mine)
        self._streams.distrust(part.reached)
        await self._compare_all(since)
        self._streams.forget(self._owned.symbols(number))
        await self._commit()  # before anybody reads from the store what was told

    async def _begin_anew(self, error: LogLostError) -> None:
        """The log is not what it was: take the partitions again, as a new owner would.

        Raises:
            LogLostError: the topic is gone.
        """
        log.warning("the log has changed", topic=self._info.name, error=str(error))
        await self._commit()
        for number in list(self._owned):
            part = self._drop(number)
            assert part is not None  # noqa: S101
            await self._ownership.release(part.claim)
        info = await patient(lambda: self._bus.find_topic(self._info.name))
        if info is None or info.partitions != self._info.partitions:
            raise error
        self._info = self._follower.info = info

    # ---- reading ---------------------------------------------------------------------------

    async def _read(self) -> bool:
        positions = {number: part.position for number, part in self._owned.items()}
        if not positions:
            self._observer.consumed({}, self._clock.now_ns())
            await asyncio.sleep(_TICK_S)
            return False
        polled = self._held or await self._poll(positions)
        self._observer.consumed(polled.records, self._clock.now_ns())
        self._held = None if await self._take(polled) else polled
        if self._held:
            await asyncio.sleep(_HELD_S)
        return bool(polled.records)

    async def _poll(self, positions: Mapping[int, int]) -> Polled:
        wait_s = _TICK_S if self._owned.changed else min(_WAIT_S, self._settings.lease_ns / 6e9)
        most, name = self._settings.poll_bytes, self._info.name
        found = await patient(lambda: self._bus.poll(name, positions, most, wait_s))
        return Polled(found, name, self._observer)

    async def _take(self, polled: Polled) -> bool:
        """Evaluate what was read; the positions move on only when all that it changes is known.

        Returns:
            False if it has to wait for the bars of an index; nothing was done.
        """
        batches = polled.batches()
        ends = {key: max(int(batch.ts.max()) for batch, _ in b) for key, b in batches.items()}
        if not await patient(lambda: self._waits.over(ends)):
            return False
        streams = {key: self._stream(key) for key in batches}
        before = {number: self._owned[number].reached for number in polled.records}
        for number, reached in before.items():
            self._owned[number].reached = polled.reached(number, reached)
        for key, some in batches.items():
            known = {number: reached.get(key, NEVER) for number, reached in before.items()}
            if stream := streams[key]:
                await self._evaluate(key, stream, some, known)
        for number, records in polled.records.items():
            if part := self._owned.get(number):  # it may have been lost meanwhile
                part.position = records[-1].offset + 1
                part.checksum, part.dirty = records[-1].checksum, True
        return True

    async def _evaluate(
        self,
        key: Key,
        stream: BarStream,
        batches: list[tuple[BarBatch, int]],
        known: Mapping[int, int],
    ) -> None:
        """Evaluate bars of a kind; `known` has each partition's newest that was read before."""
        outcome = await self._at_work(
            lambda: stream.take(batches, lambda s: known[self._owned.home(s)])
        )
        self.done.bars += outcome.bars
        self._owned.add(outcome.changes)
        if outcome.old:
            await self._revise(*key, outcome.old)
            stream.forget(outcome.old)
        for span in outcome.moved.values():
            await self._compare_again(key, span)

    async def _follow(self, at_once: bool) -> bool:
        """Evaluate again what was compared with bars of an index that have changed since."""
        news = await self._follower.news(at_once)
        ends = [end for part in self._owned.values() for end in part.reached.values()]
        if news.lost and ends:
            await self._compare_all(min(ends) - self._settings.horizon_ns)
        for key, bars in news.bars.items():
            newest, stream = self._owned.newest(key), self._streams.get(key)
            for span in changed_spans(bars, newest, stream, parse_interval(key[1])):
                await self._compare_again(key, span)
        self._follower.settle(news)
        if self._owned.changed:  # what is read next may look up what was told
            await self._commit()
        return bool(news.places)

    async def _compare_all(self, since: int) -> None:
        """Evaluate again whatever was compared with bars of an index that begin at `since` on."""
        for key in {key for part in self._owned.values() for key in part.reached}:
            if self._editions.indices(parse_interval(key[1])):
                await self._compare_again(key, (since, self._owned.newest(key)))

    async def _compare_again(self, key: Key, span: tuple[int, int]) -> None:
        """Work out from the store what was compared with an index's bars of a span."""
        indices = self._editions.indices(parse_interval(key[1]))
        found = await self._at_work(lambda: compared_spans(self._store, key, indices, span))
        mine = {s: span for s, span in found.items() if self._owned.home(s) in self._owned}
        await self._revise(*key, mine)
        if stream := self._streams.get(key):
            stream.forget(mine)
            stream.distrust(span[1])

    def _stream(self, key: Key) -> BarStream | None:
        """The state of bars of a kind; None if nothing looks at them."""
        if key not in self._streams:
            owned = self._owned
            since = Since(lambda: owned.renewed(key), lambda symbol: owned.renewed_of(symbol, key))
            made = BarStream.of(self._store, self._editions.current, *key, since)
            if made:
                made.distrust(self._owned.newest(key))
            self._streams[key] = made
        return self._streams[key]

    async def _revise(self, provider: str, interval: str, spans: Spans) -> None:
        """Work bars out from the store, and what depends on them."""
        key, length_ns = (provider, interval), parse_interval(interval)
        whose = EditionsOf(
            self._editions, key, self._owned.editions, lambda s: self._owned.reached(s, key)
        )
        for block in blocks(spans, length_ns):
            await self._commit()  # the store has to know what was told so far
            revised = await self._at_work(
                lambda b=block: revise_range(self._store, whose, provider, length_ns, b)  # type: ignore[misc]
            )
            self.done.bars += revised.bars
            self._owned.add(revised.changes)
        if whose.passed:
            self._observer.error("edition")

    async def _at_work(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives; what is owned stays so while it computes."""
        return await patient(lambda: self._ownership.at_work(call))

    # ---- writing ---------------------------------------------------------------------------

    async def _commit(self) -> None:
        """Write signals and positions of all partitions that have moved, and publish."""
        self._commit_at = time.monotonic() + self._settings.commit_interval_ns / 1e9
        topic, followed = self._settings.topic, self._follower.places
        if time.monotonic() >= self._places_at:
            self._places_at = time.monotonic() + _PLACES_S
            for part in self._owned.values():
                part.dirty |= part.checkpoint.index != followed
        work = [(p, p.group(topic, followed)) for p in self._owned.values() if p.dirty]
        while work:
            try:
                result = await self._writer.commit([group for _, group in work])
                break
            except FencedError as error:
                work = [w for w in work if w[1].claim.key.partition != error.partition]
                self._drop(error.partition)
                log.warning("partition was taken over", partition=error.partition)
                self._observer.error("fenced")
        else:
            return
        for part, group in work:
            part.claim = replace(part.claim, sequence=part.claim.sequence + 1)
            part.checkpoint, part.changes, part.dirty = group.checkpoint, [], False
            self._observer.given(group.signals)
        self.done.add([s for _, group in work for s in group.signals], result.signals)
        await self._writer.publish(result.outbox)
        places = {p.claim.key.partition: Place(p.position, p.position) for p, _ in work}
        s = self._settings
        with suppress(TransientError):  # for the bus's own tools; the next commit tells it too
            await self._bus.acknowledge(self._info.name, s.group, s.member, places)
