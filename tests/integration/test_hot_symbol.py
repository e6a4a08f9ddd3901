"""One symbol with a long backlog does not keep its neighbours' bars waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from market_data_core.clock import SystemClock
from market_data_core.config import load_config
from market_data_core.contracts.store import Claim, CommitResult, Group
from market_data_core.events import make_batch
from market_data_core.intervals import NS_PER_S
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry
from market_data_pipeline.backends import Backends, open_bus
from market_data_pipeline.bus import codec
from market_data_pipeline.flow import Flow
from market_data_pipeline.windows.checkpoint import decode_checkpoint
from market_data_store.backends.sqlite import SqliteStore

START = 1_761_314_520 * NS_PER_S
PARTITIONS, ROWS, RECORDS = 4, 5_000, 200
NAMES = ("SPY", "AAPL", "MSFT", "QQQ", "IBM", "GE", "F", "T", "C", "BAC", "JPM")
HOT, *QUIET = (
    next(s for s in NAMES if partition_of(s, PARTITIONS) == p) for p in range(PARTITIONS)
)


class _Watching(SqliteStore):
    """Notes how much of the hot symbol was counted when a neighbour's bar was committed first."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hot = 0
        self.hot_before: dict[str, int] = {}

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        result = await super().commit(groups, published, guard)
        for group in groups:
            if group.claim.key.partition == partition_of(HOT, PARTITIONS):
                self.hot = decode_checkpoint(group.finish(())[0]).counts.received
        for bars in (batch for group in groups for batch in group.bars):
            for symbol in set(bars.symbol_column()) - {HOT}:
                self.hot_before.setdefault(symbol, self.hot)
        return result


def _entry(symbol: str, begin: int, rows: int) -> Entry:
    times = START + (begin + np.arange(rows, dtype=np.int64)) * 10_000
    price = np.full(rows, 100.25)
    batch = make_batch("p", [symbol] * rows, times, np.arange(begin, begin + rows), price, price)
    span = int(times[0]), int(times[-1])
    partition = partition_of(symbol, PARTITIONS)
    return Entry(partition, codec.encode_columns(batch), rows, "p", *span)


async def test_a_hot_symbol_does_not_starve_its_neighbours(tmp_path: Path) -> None:
    settings = load_config(
        None, {"bus.embedded.path": str(tmp_path / "bus"), "bus.partitions": PARTITIONS}
    )
    store = _Watching(tmp_path / "store.db")
    await store.migrate()
    bus = open_bus(settings)
    await bus.create_topic("mdp.events", PARTITIONS)
    for i in range(RECORDS):  # ten seconds of event time
        await bus.append("mdp.events", [_entry(HOT, i * ROWS, ROWS)])
    for symbol in QUIET:  # the same ten seconds, in one small record
        last = _entry(symbol, RECORDS * ROWS, 1)
        await bus.append("mdp.events", [_entry(symbol, 0, 100), last])
    flow, stop = Flow(settings, Backends(bus, store, SystemClock())), asyncio.Event()
    working = asyncio.create_task(flow.micro_batch(stop))
    try:
        async with asyncio.timeout(60):
            while flow.progress.counts.received < RECORDS * ROWS + 101 * len(QUIET):
                assert not working.done(), working.exception()
                await asyncio.sleep(0.005)
    finally:
        stop.set()
        await working
        await bus.close()
        await store.close()
    assert set(store.hot_before) == set(QUIET)
    assert max(store.hot_before.values()) < RECORDS * ROWS / 2
