"""A process that sleeps until its work was taken over must not write when it wakes."""

from __future__ import annotations

import signal

import pytest
from tests.faults import checks
from tests.faults.lab import BARS, EVENTS, Lab, Worker, wait_until
from tests.faults.recordings import SYMBOLS, trades, write_recording

DEPLOYMENTS = ("embedded-sqlite", "embedded-postgres", "redis-postgres", "kafka-sqlite")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

LIVE = {"symbols": list(SYMBOLS), "tick_rate": 20, "speed": 10, "start": "2025-01-02T00:00:00Z"}


def pause(lab: Lab, worker: Worker) -> None:
    """SIGSTOP, at a moment at which no file is locked by it."""

    def stopped_between_transactions() -> bool:
        worker.send(signal.SIGSTOP)
        if not any(database.in_use() for database in (lab.store, *lab.files)):
            return True
        worker.send(signal.SIGCONT)
        return False

    wait_until(stopped_between_transactions, "the worker holds no lock")


def owned_by(lab: Lab, worker: Worker) -> dict[int, tuple[int, int]]:
    """The worker's partitions of the live topic: number -> (token, sequence)."""
    rows = lab.query(
        f"SELECT partition, token, sequence FROM partitions WHERE topic = '{EVENTS}' "
        f"AND owner LIKE '%-{worker.process.pid}-%'",
    )
    return {int(str(p)): (int(str(token)), int(str(sequence))) for p, token, sequence in rows}


def test_a_worker_that_slept_is_fenced_off(lab: Lab) -> None:
    config = lab.config(**LIVE)
    feed = lab.start("stream", "produce", "--provider", "synthetic", "--for", "5m", config=config)
    sleeper, other = (lab.start("stream", "micro-batch") for _ in range(2))
    wait_until(
        lambda: len(owned_by(lab, sleeper)) == 2 and len(owned_by(lab, other)) == 2,
        "each worker owns its share",
    )
    wait_until(lambda: min(n for _, n in owned_by(lab, sleeper).values()) > 2, "it commits")
    pause(lab, sleeper)
    lost = owned_by(lab, sleeper)
    wait_until(lambda: len(owned_by(lab, other)) == 4, "the other one takes over")
    for number, (token, sequence) in lost.items():
        wait_until(
            lambda n=number, s=sequence: owned_by(lab, other)[n][1] > s + 3,  # type: ignore[misc]
            "the other one commits",
        )
        assert owned_by(lab, other)[number][0] == token + 1
    sleeper.send(signal.SIGCONT)
    wait_until(lambda: "taken over" in sleeper.output, "the sleeper's commit is refused")
    wait_until(lambda: len(owned_by(lab, sleeper)) == 2, "it goes on as a member like any other")
    feed.stop()
    sleeper.stop()
    wait_until(lambda: len(owned_by(lab, other)) == 4, "the other one owns all")
    other.stop()
    expected = checks.check_topic(lab, EVENTS)
    assert expected
    assert checks.stored_bars(lab) == expected
    checks.check_published(lab, [BARS])
    checks.check_files(lab)


def test_a_recording_that_slept_writes_nothing_more(lab: Lab) -> None:
    """The second run takes the lane over and ends it; the first one, awake again, gives up."""
    source = trades(1, 60_000, 100)
    lines = write_recording(lab.path / "rec.ndjson", 1, source)
    lab.micro_batch, lab.block_rows = {"max_batch_size": 50}, 200
    command = ("run", str(lab.path / "rec.ndjson"))
    first = lab.start(*command)
    wait_until(lambda: _commits(lab) > 0, "the first run is at work")
    pause(lab, first)
    (topic,) = checks.lane_topics(lab)
    assert checks.received(lab, topic) < lines, "it was done already"
    lab.run(*command)
    before = lab.table("bars_ohlcv")
    assert checks.received(lab, topic) == lines
    first.send(signal.SIGCONT)
    assert first.wait() == 1, first.output
    assert "taken over" in first.output
    assert "Traceback" not in first.output
    assert checks.received(lab, topic) == lines
    assert lab.table("bars_ohlcv") == before
    expected = checks.check_topic(lab, topic)
    assert checks.stored_bars(lab) == expected


def _commits(lab: Lab) -> int:
    return lab.number("SELECT sum(sequence) FROM partitions")
