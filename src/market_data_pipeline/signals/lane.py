"""Signals of a recording, worked out from the store once all of its bars are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import replace

import msgspec

from market_data_core.bars import MAGIC, BarBatch
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Claim, Commits, Store
from market_data_core.errors import ModelError
from market_data_core.intervals import parse_interval
from market_data_core.records import Record, TopicInfo
from market_data_core.signals import Signal
from market_data_pipeline.patience import patient
from market_data_pipeline.signals.checkpoint import (
    Edition,
    SignalsCheckpoint,
    SignalsGroup,
    decode_signals_checkpoint,
)
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.index import compared_spans
from market_data_pipeline.signals.observe import SignalsObserver
from market_data_pipeline.signals.ranges import blocks, revise_range, united
from market_data_pipeline.signals.settings import Signalled
from market_data_pipeline.windows.writer import GroupWriter

_POLL_BYTES = 4 << 20
_Spans = dict[tuple[str, str], dict[str, tuple[int, int]]]
"""Provider and interval -> symbol -> starts of the first and last bar, UTC ns."""


class LaneSignals:
    """Evaluates the bars of one recording, and whatever stored bars depend on them.

    What is stored decides: bars that the recording shares with others are seen as they are now,
    and an interrupted run is done again from the beginning, with the same result. Signals have one
    author: where live inference evaluates a feed, it is told of the recording's bars, and they are
    left to it.

    Args:
        bus: where the recording's bars are told, and its signals go.
        store: where bars and signals are.
        commits: where groups are given.
        evaluator: what is computed.
        bars: the recording's topic of bars.
        topic: where its signals are published; of one partition.
        live: providers that live inference evaluates, and is told of.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        commits: Commits,
        evaluator: Evaluator,
        bars: TopicInfo,
        topic: str,
        live: Collection[str] = (),
    ) -> None:
        self._live = live
        self._bus, self._store, self._commits, self._bars = bus, store, commits, bars
        self._evaluator, self._topic = evaluator, topic
        observer = SignalsObserver(bars.name, "", "")
        self._observer = observer
        self._writer = GroupWriter(bus, store, commits, observer, None, 1)
        self.done = Signalled()

    async def run(self, claim: Claim, stop: asyncio.Event) -> Signalled:
        """Evaluate all, unless it was done before with the same rules and models.

        Raises:
            FencedError: another process has taken over.
            ModelError: a model did not answer for some of the bars; what others said is stored.
        """
        known = decode_signals_checkpoint(claim.checkpoint) if claim.checkpoint else None
        left = await patient(
            lambda: self._store.outbox(claim.key.group, claim.key.topic, claim.key.partition)
        )
        async with self._commits:
            await self._writer.publish(left)
            spans, end = await self._told()
            spans = {key: some for key, some in spans.items() if key[0] not in self._live}
            spans = await patient(lambda: self._widened(spans))
            edition = Edition(self._evaluator.version)
            ended = SignalsCheckpoint(log_id=self._bars.log_id, position=end, editions=[edition])
            same = known and (known.log_id, known.position) == (ended.log_id, ended.position)
            if same and known and known.editions == ended.editions:
                await self._writer.tidy()
                return self.done
            begun = msgspec.structs.replace(ended, position=-1)
            unanswered: set[str] = set()
            for (provider, interval), block in _blocks(spans):
                if stop.is_set():
                    return self.done
                revised = await patient(
                    lambda p=provider, i=interval, b=block: revise_range(  # type: ignore[misc]
                        self._store, self._evaluator, p, parse_interval(i), b
                    )
                )
                self.done.bars += revised.bars
                unanswered |= revised.unanswered
                claim = await self._commit(claim, begun, revised.changes)
            if unanswered:
                names = ", ".join(sorted(unanswered))
                msg = f"no answer for some bars of the recording: {names}; run it again"
                raise ModelError(reason="unanswered", message=msg)
            await self._commit(claim, ended, [])
            await self._writer.tidy()
        return self.done

    async def _commit(
        self, claim: Claim, checkpoint: SignalsCheckpoint, changes: Sequence[Signal]
    ) -> Claim:
        group = SignalsGroup(claim, checkpoint, changes, self._topic)
        result = await self._writer.commit([group])
        self._observer.given(changes)
        self.done.add(changes, result.signals)
        await self._writer.publish(result.outbox)
        return replace(claim, sequence=claim.sequence + 1)

    async def _widened(self, spans: _Spans) -> _Spans:
        """With the bars that are compared with those of an index that the recording has."""
        found: _Spans = {}
        for key, symbols in spans.items():
            indices = self._evaluator.indices(parse_interval(key[1]))
            changed = [symbols[symbol] for symbol in indices if symbol in symbols]
            others = [await compared_spans(self._store, key, indices, span) for span in changed]
            found[key] = united(symbols, *others)
        return found

    async def _told(self) -> tuple[_Spans, int]:
        """What the recording's bars are, and how many records tell of them."""
        spans: _Spans = {}
        read = 0
        for number in range(self._bars.partitions):
            async for record in self._records(number):
                read += 1
                if record.payload.startswith(MAGIC):
                    batch, _ = BarBatch.decode(record.payload)
                    _widen(spans, batch)
                    self.done.left += len(batch) if batch.provider in self._live else 0
        return spans, read

    async def _records(self, number: int) -> AsyncIterator[Record]:
        name = self._bars.name
        bounds = await patient(lambda: self._bus.bounds(name, number))
        position = bounds.first
        while position < bounds.next:
            found = await patient(
                lambda p=position: self._bus.poll(name, {number: p}, _POLL_BYTES, 0.0)  # type: ignore[misc]
            )
            for record in found.get(number, ()):
                yield record
                position = record.offset + 1
            if not found:
                return


def _widen(spans: _Spans, batch: BarBatch) -> None:
    key = batch.provider, batch.interval
    spans[key] = united(spans.get(key, {}), batch.spans())


def _blocks(spans: _Spans) -> Iterator[tuple[tuple[str, str], dict[str, tuple[int, int]]]]:
    for key, symbols in sorted(spans.items()):
        for block in blocks(symbols, parse_interval(key[1])):
            yield key, block
