"""What waits for its files."""

from __future__ import annotations

import tracemalloc

import pytest
from tests.unit.archive.conftest import TOPIC, batch, packed

from market_data_core.records import Record, TopicInfo
from market_data_pipeline.archive.waiting import Waiting
from market_data_pipeline.bus import codec


@pytest.mark.parametrize("events", [0, 1, 50])
def test_no_more_memory_is_needed_than_is_reckoned_with(events: int) -> None:
    """Small records need far more than their events."""
    rows = [("A", i / 100, i, 1.0) for i in range(events)]
    payload = packed(batch(*rows)) if events else b"not json"
    waiting = Waiting(TopicInfo(TOPIC, "log", 1), 0, codec)
    waiting.take([Record(0, 0, payload, 1, 1)])
    before = waiting.memory
    tracemalloc.start()
    for i in range(1, 1001):
        waiting.take([Record(0, i, bytes(bytearray(payload)), 1, 1)])
    needed, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    reckoned = waiting.memory - before
    assert reckoned / 4 < needed < reckoned * 1.1
