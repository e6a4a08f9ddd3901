"""A worker goes on from what another one left behind in the middle of its work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from market_data_core.bars import BarBatch
from market_data_core.clock import SystemClock
from market_data_core.contracts.store import Claim, CommitResult, Group
from market_data_core.deadletters import decode_letters
from market_data_core.events import make_batch
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, TopicInfo
from market_data_core.testing.oracle import batch_bars, oracle_events
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.observe import Observer
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import decode_checkpoint
from market_data_pipeline.windows.micro_batcher import MicroBatcher
from market_data_pipeline.windows.settings import BatcherSettings
from market_data_store.backends.sqlite import SqliteStore
from market_data_store.sinks.groups import CoordinatedCommits

EVENTS, BARS, LETTERS, GROUP = "mdp.events", "mdp.bars", "mdp.dlq", "g"
START = 1_761_314_520 * NS_PER_S
SYMBOLS = tuple(
    next(s for s in ("SPY", "AAPL", "MSFT", "QQQ", "IBM", "GE") if partition_of(s, 2) == p)
    for p in (0, 1)
)
SPEC = WindowSpec((2 * NS_PER_S, 10 * NS_PER_S), 500 * NS_PER_MS, 5 * NS_PER_S)


class _Died(Exception):
    """Stands for the death of the process."""


class _Dying(SqliteStore):
    """A store whose process dies right after a commit, before what it decided is published."""

    commits_left = 3

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        result = await super().commit(groups, published, guard)
        self.commits_left -= bool(result.outbox)
        if self.commits_left == 0:
            raise _Died
        return result

    async def leave(self, group: str, topic: str, member: str) -> None:
        """The dead say nothing."""


Opened = tuple[EmbeddedBus, SqliteStore]


@pytest.fixture
async def open_pair(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Opened]]]:
    """Opens bus and store as one more process would."""
    opened: list[EmbeddedBus | SqliteStore] = []

    async def open_them(store_class: type[SqliteStore] = SqliteStore) -> Opened:
        bus, store = EmbeddedBus(tmp_path / "bus"), store_class(tmp_path / "store.db")
        opened.extend((bus, store))
        await store.migrate()
        return bus, store

    yield open_them
    for one in opened:
        await one.close()


async def _fill(bus: EmbeddedBus) -> TopicInfo:
    """Two symbols' trades every 100 ms for 40 s, each tenth one twice, a late one at the end."""
    info = await bus.create_topic(EVENTS, 2)
    for topic, partitions in ((BARS, 2), (LETTERS, 1)):
        await bus.create_topic(topic, partitions)
    for second in range(40):
        for partition, symbol in enumerate(SYMBOLS):
            rows = [*range(10), 9]
            if second == 39:
                rows.append(-380)  # more than the horizon ago
            batch = make_batch(
                "p",
                [symbol] * len(rows),
                [START + second * NS_PER_S + i * 100 * NS_PER_MS for i in rows],
                [1_000 * second + i for i in rows],
                [100 + i / 7 for i in rows],
                [1 + i % 3 for i in [abs(r) for r in rows]],
            )
            span = int(batch.src_ts.min()), int(batch.src_ts.max())
            entry = Entry(partition, codec.encode_columns(batch), len(batch), "p", *span)
            await bus.append(EVENTS, [entry])
    return info


def _batcher(pair: Opened, info: TopicInfo, member: str, poll_bytes: int) -> MicroBatcher:
    settings = BatcherSettings(
        group=GROUP,
        member=member,
        lease_ns=300 * NS_PER_MS,
        flush_timeout_ns=3600 * NS_PER_S,
        commit_interval_ns=1,
        poll_bytes=poll_bytes,
        max_future_ns=NS_PER_S,
        retention_ns=24 * 3600 * NS_PER_S,
        retention_bytes=1 << 40,
        pending_rows_max=20_000,
    )
    bus, store = pair
    observer = Observer(EVENTS, GROUP, member, True, 0)
    commits = CoordinatedCommits(store, member)
    return MicroBatcher(
        bus, store, codec, SPEC, info, BARS, LETTERS, settings, SystemClock(), observer, commits
    )


@pytest.mark.parametrize("commits", [1, 2, 3, 4])
@pytest.mark.timeout(30)
async def test_the_next_owner_finishes_what_was_begun(
    open_pair: Callable[..., Awaitable[Opened]], commits: int
) -> None:
    dying = await open_pair(_Dying)
    info = await _fill(dying[0])
    dying[1].commits_left = commits  # type: ignore[attr-defined]
    with pytest.raises(_Died):
        await _batcher(dying, info, "first", 1).run(asyncio.Event())
    left = [item for p in (0, 1) for item in await dying[1].outbox(GROUP, EVENTS, p)]
    assert left

    pair = await open_pair()
    bus, store = pair
    stop = asyncio.Event()
    working = asyncio.create_task(_batcher(pair, info, "second", 1 << 20).run(stop))
    async with asyncio.timeout(20):
        while not await _all_counted(bus, store):
            await asyncio.sleep(0.01)
    stop.set()
    await working

    assert [i for p in (0, 1) for i in await store.outbox(GROUP, EVENTS, p)] == []
    rows = await store.status(GROUP, EVENTS)
    assert [row.token for row in rows] == [2, 2]
    counts = [decode_checkpoint(row.checkpoint or b"").counts for row in rows]
    assert all(c.holds() for c in counts)
    assert sum(c.received for c in counts) == 2 * (40 * 11 + 1)
    assert sum(c.late for c in counts) == 2
    letters = await _all(bus, LETTERS, 1)
    found = {(x.symbol, x.reason) for payload in letters for x in decode_letters(payload)}
    assert found == {(symbol, "late") for symbol in SYMBOLS}
    await _check_bars(bus, store)
    keys = await _all(bus, BARS, 2)
    assert len(keys) == len(set(keys))


async def _all_counted(bus: EmbeddedBus, store: SqliteStore) -> bool:
    rows = [row for row in await store.status(GROUP, EVENTS) if row.checkpoint]
    if {row.token for row in rows} != {2}:
        return False  # not yet taken over
    ends = {row.key.partition: decode_checkpoint(row.checkpoint or b"").counted for row in rows}
    return ends == {p: (await bus.bounds(EVENTS, p)).next for p in (0, 1)}


async def _all(bus: EmbeddedBus, topic: str, partitions: int) -> list[bytes]:
    found: list[bytes] = []
    for partition in range(partitions):
        end = (await bus.bounds(topic, partition)).next
        if end:
            records = (await bus.poll(topic, {partition: 0}, 1 << 30, 0))[partition]
            found += [record.payload for record in records]
    return found


async def _check_bars(bus: EmbeddedBus, store: SqliteStore) -> None:
    """Stored bars are those of a batch computation, and so are the published ones."""
    events = []
    for payload in await _all(bus, EVENTS, 2):
        batch = codec.decode(payload)
        events += oracle_events(batch)  # type: ignore[arg-type]
    on_time = [e for e in events if e.seq != 39 * 1_000 - 380]
    latest: dict[tuple[str, str, int], tuple[int, float]] = {}
    for payload in await _all(bus, BARS, 2):
        bars, version = BarBatch.decode(payload)
        for symbol, ts, volume in zip(
            bars.symbol_column(), bars.ts.tolist(), bars.volume.tolist(), strict=True
        ):
            key = symbol, bars.interval, ts
            latest[key] = max(latest.get(key, (0, 0.0)), (version, volume))
    for interval, length in (("2s", 2 * NS_PER_S), ("10s", 10 * NS_PER_S)):
        frame = await store.bars(interval=interval)
        closed = START + 39_900 * NS_PER_MS - 500 * NS_PER_MS
        expected = {
            key: bar
            for key, bar in batch_bars(on_time, length).items()
            if key[2] + length <= closed // (2 * NS_PER_S) * (2 * NS_PER_S)
        }
        stored = {
            (p, s, int(ts)): tuple(values)
            for p, s, ts, *values in frame.select(
                "provider", "symbol", frame["ts"].cast(int), "open", "high", "low", "close",
                "volume", "vwap", "trade_count",
            ).iter_rows()
        }  # fmt: skip
        assert stored == {key: tuple(bar) for key, bar in expected.items()}
        for (_, symbol, ts), bar in expected.items():
            assert latest[symbol, interval, ts][1] == bar.volume
