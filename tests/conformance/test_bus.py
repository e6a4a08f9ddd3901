"""The bus suite, over every bus that the registry lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from market_data_core import registry
from market_data_core.clock import SystemClock
from market_data_core.config import BusSettings, EmbeddedBusSettings
from market_data_core.contracts.bus import Bus
from market_data_core.testing.bus_suite import BusSuite, OpenBus


def _embedded(folder: Path) -> BusSettings:
    return BusSettings(embedded=EmbeddedBusSettings(path=folder / "bus"))


# A fresh storage for each backend; a backend without an entry here fails its tests.
SETTINGS: dict[str, Callable[[Path], BusSettings]] = {"embedded": _embedded}


class TestBus(BusSuite):
    @pytest.fixture(params=registry.backends("bus"))
    async def open_bus(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> AsyncIterator[OpenBus]:
        settings = SETTINGS[request.param](tmp_path)
        backend = registry.backend("bus", request.param)
        opened: list[Bus] = []

        def open_one() -> Bus:
            bus: Bus = backend.create(settings, SystemClock())
            opened.append(bus)
            return bus

        yield open_one
        for bus in opened:
            await bus.close()
