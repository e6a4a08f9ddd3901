"""A bus in a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from market_data_core.clock import ManualClock
from market_data_pipeline.bus.embedded import EmbeddedBus

TOPIC = "mdp.events"
Open = Callable[[], EmbeddedBus]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus" / f"{TOPIC}.db"


@pytest.fixture
async def open_bus(path: Path) -> AsyncIterator[Open]:
    opened: list[EmbeddedBus] = []

    def open_one() -> EmbeddedBus:
        opened.append(EmbeddedBus(path.parent, clock=ManualClock(1)))
        return opened[-1]

    yield open_one
    for bus in opened:
        await bus.close()
