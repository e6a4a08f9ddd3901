"""Ctrl-C and SIGTERM: the first one drains, the second one stops at once; nothing is lost."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from tests.faults import checks
from tests.faults.lab import BARS, EVENTS, ROOT, Lab, Worker, cases, wait_until
from tests.faults.recordings import SYMBOLS, trades, write_recording

DEPLOYMENTS = ("embedded-sqlite", "redis-postgres", "kafka-sqlite")
ON_FILES = pytest.mark.parametrize("deployment", ["embedded-sqlite"], indirect=True)
pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_LIVE = {"symbols": list(SYMBOLS), "tick_rate": 20, "speed": 10, "start": "2025-01-02T00:00:00Z"}
_PRODUCE = ("stream", "produce", "--provider", "synthetic")
_BATCH = ("stream", "micro-batch")
_STOPPED_AT_ONCE = 130
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def _some_events(lab: Lab) -> bool:
    return checks.received(lab, EVENTS) > 2_000


def _drain(lab: Lab) -> None:
    """Let a worker read everything, and check that it is right."""
    worker = lab.start(*_BATCH)
    wait_until(lambda: checks.all_read(lab, EVENTS), "all is read")
    worker.stop()
    assert checks.stored_bars(lab) == checks.check_topic(lab, EVENTS)
    checks.check_published(lab, [BARS])
    checks.check_files(lab)
    assert "no difference" in lab.run("verify").splitlines()


@pytest.mark.parametrize("number", cases(_NUMBERS[::-1], 1))
def test_produce_and_micro_batch_drain(lab: Lab, number: signal.Signals) -> None:
    lab.synthetic = _LIVE
    feed, worker = lab.start(*_PRODUCE), lab.start(*_BATCH)
    wait_until(lambda: _some_events(lab), "events flow")
    feed.stop(number)
    assert f"{checks.received(lab, EVENTS):,} events written" in feed.output
    wait_until(lambda: checks.all_read(lab, EVENTS), "all is read")
    worker.stop(number)
    assert checks.stored_bars(lab) == checks.check_topic(lab, EVENTS)
    checks.check_published(lab, [BARS])


@pytest.mark.parametrize("number", cases(_NUMBERS, 1))
def test_a_live_run_drains(lab: Lab, number: signal.Signals) -> None:
    """What the feed wrote before it was stopped is read before the process ends.

    The feed runs as fast as it can, so that there is something left to read.
    """
    lab.synthetic = {**_LIVE, "speed": "max", "tick_rate": 200}
    worker = lab.start("run", "--provider", "synthetic")
    wait_until(lambda: _some_events(lab), "events flow")
    worker.stop(number)
    received = checks.received(lab, EVENTS)
    assert f"{received:,} received = " in worker.output
    counts = checks.total_counts(lab, EVENTS)
    assert counts.holds()
    assert counts.received == received
    checks.check_published(lab, [BARS])


@pytest.mark.parametrize("number", cases(_NUMBERS, 1))
def test_a_recording_stops_and_goes_on(lab: Lab, number: signal.Signals) -> None:
    lab.block_rows, lab.micro_batch = 100, {"max_batch_size": 20}
    lines = write_recording(lab.path / "rec.ndjson", 5, trades(5, 30_000, 200))
    command = ("run", str(lab.path / "rec.ndjson"))
    worker = lab.start(*command)
    wait_until(lambda: bool(checks.lane_topics(lab)), "the lane is there")
    (topic,) = checks.lane_topics(lab)
    wait_until(lambda: checks.total_counts(lab, topic).stored > 0, "it is at work")
    worker.stop(number)
    counts = checks.total_counts(lab, topic)
    assert counts.holds()
    assert counts.received < lines, "it was done already"
    lab.run(*command)
    assert checks.received(lab, topic) == lines
    assert checks.stored_bars(lab) == checks.check_topic(lab, topic)
    checks.check_published(lab, [topic.replace(EVENTS, BARS)])


@ON_FILES
@pytest.mark.parametrize("blocked", ["store", EVENTS])
def test_a_second_signal_stops_at_once(lab: Lab, blocked: str) -> None:
    """A drain that cannot end is cut short; what was acknowledged is there."""
    lab.synthetic = _LIVE
    feed, worker = lab.start(*_PRODUCE), lab.start(*_BATCH)
    wait_until(
        lambda: _some_events(lab) and checks.total_counts(lab, EVENTS).stored > 0, "bars are stored"
    )
    path = lab.store_file if blocked == "store" else lab.topic_file(EVENTS)
    victim = worker if blocked == "store" else feed
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        before = checks.read_topic(lab, EVENTS)
        victim.send(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            victim.process.wait(1)
        victim.send(signal.SIGINT)
        assert victim.wait(5) == _STOPPED_AT_ONCE, victim.output
        lock.execute("ROLLBACK")
    for process in (feed, worker):
        if process.alive:
            process.stop()
    after = checks.read_topic(lab, EVENTS)
    for partition, records in enumerate(before.records):
        assert after.records[partition][: len(records)] == records
    _drain(lab)


_KINDS = ("produce", "micro-batch", "tail")
_ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize(
    ("starting", "stopping"), cases(list(zip(_ORDERS, _ORDERS[::-1], strict=True))[::-1], 1)
)
def test_any_order(lab: Lab, starting: tuple[int, ...], stopping: tuple[int, ...]) -> None:
    """The stages start and stop in any order, each when the one before is at work."""
    lab.synthetic = _LIVE
    commands = (_PRODUCE, _BATCH, ("stream", "tail", "--follow", "--limit", "5"))
    workers: dict[int, Worker] = {}
    for i in starting:
        workers[i] = lab.start(*commands[i])
        if lab.log:
            wait_until(lambda i=i: workers[i].runs, f"{_KINDS[i]} runs")  # type: ignore[misc]
        elif lab.topic_file(EVENTS).exists() or _KINDS[i] != "tail":
            wait_until(lambda i=i: workers[i].opened(lab.home), f"{_KINDS[i]} runs")  # type: ignore[misc]
    wait_until(lambda: _some_events(lab), "events flow")
    wait_until(lambda: '"symbol"' in workers[2].output, "tail shows events")
    for i in stopping:
        assert workers[i].alive, workers[i].output
        workers[i].send(signal.SIGINT)
        assert workers[i].wait() == 0, workers[i].output
        assert "Traceback" not in workers[i].output
    _drain(lab)


_SHARE = """
import asyncio, pathlib, sys
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_store.backends.sqlite import SqliteStore

async def main():
    bus = EmbeddedBus(pathlib.Path(sys.argv[1]) / "bus")
    await bus.create_topic("t", 1)
    print(await bus.received("t", 0, (await bus.bounds("t", 0)).next))
    await bus.close()
    store = SqliteStore(pathlib.Path(sys.argv[1]) / "store.db")
    await store.migrate()
    print(len(await store.heartbeat("g", "t", "other", 10**12, {})))
    await store.leave("g", "t", "other")
    await store.close()

asyncio.run(main())
"""


@ON_FILES
async def test_one_that_leaves_takes_nothing_along(lab: Lab) -> None:
    """A process that opens and closes the files does not cut off those that still use them."""
    from market_data_core.records import Entry
    from market_data_pipeline.bus.embedded import EmbeddedBus
    from market_data_store.backends.sqlite import SqliteStore

    lab.home.mkdir(parents=True)
    bus, store = EmbeddedBus(lab.home / "bus"), SqliteStore(lab.store_file)
    await bus.create_topic("t", 1)
    await store.migrate()
    for i in range(1, 4):
        await bus.append("t", [Entry(0, b"x", 1)])
        await store.heartbeat("g", "t", f"member{i}", 10**12, {})
        done = subprocess.run(  # noqa: ASYNC221  (nothing else runs meanwhile)
            [sys.executable, "-c", _SHARE, str(lab.home)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [str(i), str(i + 1)]
    await bus.close()
    await store.close()
