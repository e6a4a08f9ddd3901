"""The archive of real processes that die and stand still: its rows are the log's events."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import polars as pl
import pytest
import yaml
from tests.faults import buses
from tests.faults.lab import EVENTS, KILLS, Lab, Worker, wait_until
from tests.faults.recordings import trades
from tests.faults.test_pause import pause

from market_data_core.clock import SystemClock
from market_data_core.contracts.bus import Bus
from market_data_core.errors import RejectedError
from market_data_core.events import EventBatch, StreamEvent, Tick, parse_ts
from market_data_core.intervals import NS_PER_S
from market_data_core.records import Entry
from market_data_core.wire import BatchBuilder
from market_data_pipeline.archive.files import Archive, Selection
from market_data_pipeline.bus import codec
from market_data_pipeline.producer import Producer, ProducerSettings

pytestmark = [pytest.mark.timeout(180), pytest.mark.faults]

PARTITIONS = 4
PLACE = ("log", "partition", "offset", "row")
VALUES = ("provider", "symbol", "seq", *"ohlcv")


DEPLOYMENTS = pytest.mark.parametrize(
    "lab", ["embedded-sqlite", "redis-postgres", "kafka-sqlite"], indirect=True
)


def config(lab: Lab, **archive: object) -> Path:
    """The lab's configuration with an archive that writes at once."""
    path = lab.config()
    values = yaml.safe_load(path.read_text())
    values["archive"] = {"path": str(root(lab)), "file_seconds_max": 0.02, **archive}
    path.write_text(yaml.safe_dump(values))
    return path


def root(lab: Lab) -> Path:
    return lab.path / "archive"


def feed(lab: Lab, events: Sequence[StreamEvent]) -> None:
    """Append trades in columns, every tenth as a message of its own, and something unreadable."""

    async def work(bus: Bus) -> None:
        info = await bus.create_topic(EVENTS, PARTITIONS)
        settings = ProducerSettings("columnar", 10**6, NS_PER_S, 2 * NS_PER_S, 0, "test")
        producer = Producer(bus, codec, info, "rec", settings, SystemClock())
        for e in events:
            producer.add(Tick(e.symbol, parse_ts(e.src_ts), e.c, e.v, e.seq))
        await producer.flush()
        singles = [Entry(1, msgspec.json.encode(e), 1) for e in events[::10]]
        await bus.append(EVENTS, [*singles, Entry(2, b"not json", 1)])

    lab.topics.ask(work)


def logged(lab: Lab, topic: str = EVENTS) -> tuple[Counter[tuple[Any, ...]], int]:
    """Every event of the log with its position, and how many records cannot be read."""
    found: Counter[tuple[Any, ...]] = Counter()
    unreadable = 0
    info = lab.topics.ask(lambda bus: bus.find_topic(topic))
    assert info
    records = lab.topics.ask(lambda bus: buses.read(bus, topic)).records
    for record in [record for partition in records for record in partition]:
        try:
            item = codec.decode(record.payload)
        except RejectedError:
            unreadable += 1
            continue
        if isinstance(item, StreamEvent):
            builder = BatchBuilder()
            builder.add(item, record.append_ts)
            item = builder.build()[0][0]
        for row, e in enumerate(item.events() if isinstance(item, EventBatch) else ()):
            where = (info.log_id, record.partition, record.offset, row)
            value = (e.provider, e.symbol, e.seq, e.o, e.h, e.l, e.c, e.v)
            found[(*where, *value)] += 1
    return found, unreadable


def archived(lab: Lab, topic: str = EVENTS) -> Counter[tuple[Any, ...]]:
    frames = [f.filter(topic=topic) for f in Archive(root(lab)).frames(Selection())]
    return Counter(row for f in frames for row in f.select(*PLACE, *VALUES).rows())


def check(lab: Lab) -> None:
    """After an archiver has come to the end: nothing lacks, nothing is there twice."""
    lab.run("stream", "archive", "--once", config=config(lab))
    found, unreadable = logged(lab)
    assert archived(lab) == found
    rejected = pl.read_parquet(root(lab) / "rejected/*/*.parquet", hive_partitioning=False)
    assert rejected.unique(PLACE).height == rejected.height == unreadable
    assert [p for p in (root(lab) / ".staging").rglob("*") if p.is_file()] == []


def rows(lab: Lab) -> int:
    """Events that a reader sees now."""
    if not (root(lab) / "archive.json").exists():
        return 0
    return sum(archived(lab).values())


def busy(lab: Lab, worker: Worker, before: int) -> None:
    wait_until(lambda: not worker.alive or rows(lab) > before, "something is archived")


@DEPLOYMENTS
def test_kill_9_at_any_time_changes_nothing(lab: Lab) -> None:
    chance = random.Random(5)
    events = trades(5, 4_000, 120)
    settings = config(lab)
    hits = 0
    while hits < min(KILLS, 20):
        start = hits * 150 % len(events)
        before = rows(lab)
        worker = lab.start("stream", "archive", config=settings)
        feed(lab, events[start : start + 150])
        if hits % 3:
            busy(lab, worker, before)
        else:
            wait_until(lambda w=worker: w.listens, "it has started")  # type: ignore[misc]
        for _ in range(chance.randrange(3)):
            feed(lab, events[start : start + 20])
        hits += worker.kill()
    check(lab)


DOOMS = [
    "store:COMMIT:before:9", "store:COMMIT:after:7", "store:COMMIT:after:8",
    "store:COMMIT:after:9", "store:COMMIT:after:10", "store:COMMIT:after:11",
    "store:UPDATE partitions:after:6", "store:UPDATE partitions:after:8",
]  # fmt: skip


@pytest.mark.parametrize("doom", DOOMS if KILLS >= 50 else DOOMS[::3])
def test_deaths_around_commits_change_nothing(lab: Lab, doom: str) -> None:
    feed(lab, trades(9, 600, 120))
    worker = lab.start("stream", "archive", config=config(lab), doom=doom)
    assert worker.wait() == -signal.SIGKILL, worker.output
    check(lab)


@DEPLOYMENTS
def test_one_that_slept_and_was_taken_over_leaves_nothing(lab: Lab) -> None:
    feed(lab, trades(3, 500, 120))
    settings = config(lab)
    first = lab.start("stream", "archive", config=settings)
    busy(lab, first, 0)
    for number in range(4):
        feed(lab, trades(20 + number, 200, 120))
        pause(lab, first)
        second = lab.start("stream", "archive", config=settings)
        before = rows(lab)
        feed(lab, trades(30 + number, 200, 120))
        busy(lab, second, before)
        first.send(signal.SIGCONT)
        second.stop()
    first.stop()
    check(lab)


def test_two_share_the_work(lab: Lab) -> None:
    settings = config(lab)
    workers = [lab.start("stream", "archive", config=settings) for _ in range(2)]

    def owners() -> Counter[str]:
        sql = f"SELECT owner FROM partitions WHERE topic = '{EVENTS}' AND owner <> ''"
        return Counter(str(owner) for (owner,) in lab.query(sql))

    wait_until(lambda: sorted(owners().values()) == [2, 2], "each has two partitions")
    feed(lab, trades(4, 2_000, 120))
    wait_until(lambda: rows(lab) == sum(logged(lab)[0].values()), "all is archived")
    for worker in workers:
        worker.stop()
    written = [int(w.output.split("events")[1].split()[0].replace(",", "")) for w in workers]
    assert all(written)
    check(lab)


def test_duckdb_and_polars_read_it(lab: Lab) -> None:
    events = [
        msgspec.structs.replace(e, symbol=name)
        for e, name in zip(trades(6, 400, 60), ["0700", "BRK/B", "ÄÖ Ü", "A=1"] * 100, strict=True)
    ]
    feed(lab, events)
    lab.run("stream", "archive", "--once", config=config(lab))
    counts = Counter(row[5] for row in logged(lab)[0].elements())
    files = f"{root(lab)}/date=*/*/*/*.parquet"

    frame = pl.scan_parquet(files, hive_partitioning=True).group_by("symbol").len().collect()
    assert dict(frame.rows()) == counts
    source = f"read_parquet('{files}', hive_partitioning=1)"
    db = duckdb.connect()
    found = db.execute(f"SELECT symbol, count(*) FROM {source} GROUP BY 1").fetchall()
    assert dict(found) == counts
    days = db.execute(f"SELECT DISTINCT CAST(date AS VARCHAR) FROM {source}").fetchall()
    assert days == [("2025-10-24",)]
    typed = db.execute(
        f"SELECT typeof(o), typeof(seq), src_ts = ingest_ts FROM {source}"
    ).fetchall()
    assert typed[0][:2] == ("DOUBLE", "BIGINT")


def test_lanes_are_archived_too_if_asked_for(lab: Lab) -> None:
    path = lab.path / "rec.ndjson"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(msgspec.json.encode(e) for e in trades(8, 300, 60)))
    settings = config(lab)
    lab.run("run", str(path), config=settings)
    (lane,) = [p.stem for p in (lab.home / "bus").glob(f"{EVENTS}.*.db")]

    lab.run("stream", "archive", "--once", config=settings)
    assert not archived(lab, lane)
    for _ in range(2):
        lab.run("stream", "archive", "--once", "--lanes", config=settings)
        assert archived(lab, lane) == logged(lab, lane)[0]
