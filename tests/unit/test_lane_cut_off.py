"""A feeder that dies in the middle of an append to a log that has no transactions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from market_data_core.clock import ManualClock
from market_data_core.contracts.provider import Item
from market_data_core.events import EventBatch, Rejected, StreamEvent, make_batch
from market_data_core.records import CodecName, Entry, TopicInfo
from market_data_pipeline.bus import codec
from market_data_pipeline.bus._kafka_heads import Admission, Head, settled_by
from market_data_pipeline.producer import Producer, ProducerSettings

S = 10**9
T = 1_700_000_000 * S
PARTITIONS = 2
EVENTS = 60
INFO = TopicInfo("t", "log", PARTITIONS)
Log = list[tuple[Head, Entry]]


class CutOff:
    """A log that takes only so many entries, one after the other, and none after these."""

    def __init__(self, log: Log, room: int) -> None:
        self.log, self.room = log, room

    async def append(self, _: str, entries: Sequence[Entry]) -> None:
        settled = settled_by(entries)
        for e, up_to in list(zip(entries, settled, strict=True))[: self.room]:
            self.log.append((Head(e.count, source=e.source, settled=up_to), e))
        self.room = max(0, self.room - len(entries))


def source() -> list[Item]:
    """Ticks of two feeds between each other, and lines that cannot be read."""
    items: list[Item] = []
    for n in range(EVENTS):
        if n % 7 == 3:
            items.append(Rejected("malformed", "", b"%d" % n))
        else:
            items.append(make_batch(f"p{n % 2}", [f"S{n % 5}"], [T + n], [n], [1.0], [1.0]))
    return items


def flushes(items: list[Item], size: int) -> Iterator[list[Item]]:
    for begin, end in pairwise([*range(0, len(items), size), len(items)]):
        yield items[begin:end]


async def feed(log: Log, room: int, name: CodecName, size: int) -> None:
    """Feed the recording from where the log has all of it on."""
    held = [0] * PARTITIONS
    for head, entry in log:
        held[entry.partition] = max(held[entry.partition], head.settled)
    bus: Any = CutOff(log, room)
    settings = ProducerSettings(name, 1_000, 10 * S, S, 0, "kafka")
    producer = Producer(bus, codec, INFO, "p", settings, ManualClock(T), held)
    for items in flushes(source(), size):
        for item in items:
            producer.add(item)
        await producer.flush()


def effective(log: Log) -> Counter[int | bytes]:
    """What readers see of the recording: numbers of events, and lines."""
    admissions = [Admission() for _ in range(PARTITIONS)]
    found: Counter[int | bytes] = Counter()
    for offset, (head, entry) in enumerate(log):
        if not entry.count or not admissions[entry.partition].admits(offset, head):
            continue
        item = codec.decode(entry.payload)
        if isinstance(item, EventBatch):
            found.update(np.asarray(item.seq).tolist())
        elif isinstance(item, StreamEvent):
            found[item.seq or 0] += 1
        else:
            assert isinstance(item, Rejected)
            found[item.original] += 1
    return found


@pytest.mark.parametrize("name", ["columnar", "json", "msgpack"])
@pytest.mark.parametrize("cut", [*range(12), 25, 40])
async def test_nothing_is_left_out(name: CodecName, cut: int) -> None:
    """Not either where the next one cuts its batches elsewhere, and dies too."""
    log: Log = []
    for room, size in ((cut, 20), (cut, 13), (10_000, 17)):
        await feed(log, room, name, size)
    found = effective(log)
    lines = {b"%d" % n for n in range(EVENTS) if n % 7 == 3}
    assert found.keys() == {n for n in range(EVENTS) if n % 7 != 3} | lines
    assert {found[line] for line in lines} == {1}
    if name != "columnar":  # columns that come again hold copies, which windows leave out
        assert set(found.values()) == {1}
