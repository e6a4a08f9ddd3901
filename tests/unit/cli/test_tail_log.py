"""Reading backwards and merged, on a log whose offsets leave numbers out."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping
from typing import cast

import pytest

from market_data_core.contracts.bus import Bus
from market_data_core.records import Bounds, Record
from market_data_pipeline.cli import _log

MS = 10**6


class SparseBus:
    """A topic in memory; counts the records that were handed out.

    Args:
        records: partition -> records in order.
        behind: numbers between the last record and the end.
        share: most records of one poll.
    """

    def __init__(
        self, records: Mapping[int, list[Record]], behind: int = 0, share: int = 1 << 30
    ) -> None:
        self._records, self._behind, self._share = records, behind, share
        self.handed_out = 0

    async def bounds(self, topic: str, partition: int) -> Bounds:  # noqa: ARG002
        records = self._records[partition]
        if not records:
            return Bounds(0, 0)
        return Bounds(records[0].offset, records[-1].offset + 1 + self._behind)

    async def position_at(self, topic: str, partition: int, append_ns: int) -> int:
        times = [r.append_ts for r in self._records[partition]]
        at = bisect_left(times, append_ns)
        if at == len(times):
            return (await self.bounds(topic, partition)).next
        return self._records[partition][at].offset

    async def poll(
        self,
        topic: str,  # noqa: ARG002
        positions: Mapping[int, int],
        max_bytes: int,
        timeout_s: float,  # noqa: ARG002
    ) -> dict[int, list[Record]]:
        found = {}
        for partition, position in positions.items():
            records, size = [], 0
            for r in self._records[partition]:
                if r.offset < position:
                    continue
                records.append(r)
                size += len(r.payload)
                if size >= max_bytes // len(positions) or len(records) >= self._share:
                    break
            if records:
                found[partition] = records
                self.handed_out += len(records)
        return found


def log(count: int, seed: int = 0, partition: int = 0, size: int = 1) -> list[Record]:
    """Records at random times, some of them equal, after long pauses now and then."""
    chance, offset, ts, found = random.Random(seed), 1_700_000_000_000 << 20, 10**18, []
    for _ in range(count):
        offset += chance.choice((1, 1, 7, 1 << 20))
        ts += chance.choice((0, 0, MS, 50 * MS, 3_600_000 * MS))
        found.append(Record(partition, offset, b"x" * size, ts, 1))
    return found


async def backwards(bus: SparseBus, end: int, until_ns: int) -> list[list[Record]]:
    typed = cast("Bus", bus)
    return [block async for block in _log.backwards(typed, "t", 0, end, until_ns)]


@pytest.mark.parametrize("seed", range(20))
async def test_backwards_gives_all_blocks_in_order(seed: int) -> None:
    records = log(200, seed)
    for cut in (200, 150, 1):
        bus = SparseBus({0: records}, behind=seed % 3, share=7)
        end = records[cut - 1].offset + 1
        blocks = await backwards(bus, end, records[cut - 1].append_ts + 1)
        assert [r for block in reversed(blocks) for r in block] == records[:cut]


async def test_the_end_is_read_without_what_lies_before() -> None:
    records = [Record(0, 10 * i, b"x", 10**18 + i * MS, 1) for i in range(100_000)]
    bus = SparseBus({0: records})
    typed, last = cast("Bus", bus), records[-1]
    async for block in _log.backwards(typed, "t", 0, last.offset + 1, last.append_ts + 1):
        assert block[-1] == last
        break
    assert bus.handed_out < 200


async def test_a_dense_span_behind_a_pause_is_taken_in_parts() -> None:
    dense = [Record(0, i, b"x" * (1 << 20), 10**18 + i * MS, 1) for i in range(100)]
    late = Record(0, 100, b"x", 10**18 + 86_400_000 * MS, 1)
    blocks = await backwards(SparseBus({0: [*dense, late]}), 101, late.append_ts + 1)
    assert [r for block in reversed(blocks) for r in block] == [*dense, late]
    assert max(map(len, blocks)) <= 16  # one poll's worth, and what came with it


@pytest.mark.parametrize("behind", [0, 5])
async def test_the_newest_record(behind: int) -> None:
    records = log(50)
    bus = cast("Bus", SparseBus({0: records, 1: []}, behind))
    assert await _log.newest(bus, "t", 0) == records[-1]
    assert await _log.oldest(bus, "t", 0) == records[0]
    assert await _log.newest(bus, "t", 1) is None
    assert await _log.oldest(bus, "t", 1) is None


@pytest.mark.parametrize("seed", range(10))
async def test_partitions_are_merged_by_time(seed: int) -> None:
    logs = {n: log(50 * n, seed + n, n) for n in range(4)}
    bus = SparseBus(logs, behind=3, share=9)
    spans = {}
    for number in logs:
        bounds = await bus.bounds("t", number)
        spans[number] = bounds.first, bounds.next
    spans[3] = logs[3][10].offset, logs[3][100].offset
    found = [record async for record in _log.merged(cast("Bus", bus), "t", spans)]
    wanted = [*logs[0], *logs[1], *logs[2], *logs[3][10:100]]
    assert found == sorted(wanted, key=lambda r: (r.append_ts, r.partition, r.offset))


@pytest.mark.parametrize("seed", range(5))
async def test_topics_are_merged_by_time(seed: int) -> None:
    topics = [log(30, seed + n) for n in range(3)] + [[]]

    async def records(topic: list[Record]) -> AsyncIterator[Record]:
        for record in topic:
            yield record

    found = [place async for place in _log.in_order([records(t) for t in topics])]
    every = [(n, r) for n, topic in enumerate(topics) for r in topic]
    assert found == sorted(every, key=lambda p: (p[1].append_ts, p[0], p[1].offset))
