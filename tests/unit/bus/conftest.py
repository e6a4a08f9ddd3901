"""A bus in a folder of its own, and a Redis server of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.servers.redis import MISSING, Server, binary, running

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


@pytest.fixture
def server() -> Iterator[Server]:
    """A Redis server that a test may stop and damage; what it has taken is on its disk."""
    if binary() is None:
        pytest.skip(MISSING)
    with running("--appendfsync", "always") as one:
        assert one
        yield one
