"""The closed loop: a store that takes nothing stops the feeds, and nothing is lost or late."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.faults import checks
from tests.faults.lab import BARS, EVENTS, Lab, wait_until
from tests.faults.recordings import SYMBOLS

from market_data_core.feedback import FEEDBACK_TOPIC, decode_feedback

_FAST = {
    "symbols": list(SYMBOLS), "tick_rate": 20, "speed": 20, "start": "2025-01-02T00:00:00Z"
}  # fmt: skip
_QUIET_S = 0.5


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab", micro_batch={"pending_rows_max": 300}, synthetic=_FAST)
    yield made
    made.close()


def _received(lab: Lab) -> int:
    return checks.received(lab, EVENTS)


def _level(lab: Lab) -> str:
    records = [r for part in checks.read_topic(lab, FEEDBACK_TOPIC).records for r in part]
    return decode_feedback(records[-1].payload).level if records else ""


class _Stands:
    """Whether the log has stopped growing."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._count, self._since = lab, -1, 0.0

    def __call__(self) -> bool:
        if (count := _received(self._lab)) != self._count:
            self._count, self._since = count, time.monotonic()
        return time.monotonic() > self._since + _QUIET_S


@pytest.mark.timeout(120)
@pytest.mark.parametrize("together", [True, False], ids=["one process", "two processes"])
def test_a_store_that_takes_nothing_stops_the_feeds(lab: Lab, together: bool) -> None:
    if together:
        workers = [lab.start("run", "--provider", "synthetic")]
    else:
        workers = [
            lab.start("stream", "produce", "--provider", "synthetic"),
            lab.start("stream", "micro-batch"),
        ]
    wait_until(lambda: lab.number("SELECT count(*) FROM bars_ohlcv") > 20, "bars are stored")
    with closing(sqlite3.connect(lab.store_file, isolation_level=None, timeout=10)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        wait_until(lambda: _level(lab) == "hard", "feedback turns hard")
        wait_until(_Stands(lab), "the feed stops")
        held = _received(lab)
        lock.execute("ROLLBACK")
    wait_until(lambda: _level(lab) == "ok", "feedback is ok again")
    wait_until(lambda: _received(lab) > held + 1_000, "the feed goes on")
    for worker in workers:
        worker.stop()
    if not together:
        rest = lab.start("stream", "micro-batch")
        wait_until(
            lambda: checks.total_counts(lab, EVENTS).received == _received(lab), "all is read"
        )
        rest.stop()
    assert checks.stored_bars(lab) == checks.check_topic(lab, EVENTS)
    assert checks.total_counts(lab, EVENTS).late == 0
    checks.check_published(lab, [BARS])
