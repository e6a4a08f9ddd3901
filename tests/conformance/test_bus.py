"""The bus suite, over every bus that the registry lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from market_data_core import registry
from market_data_core.clock import SystemClock
from market_data_core.config import (
    BusSettings,
    EmbeddedBusSettings,
    KafkaBusSettings,
    RedisBusSettings,
)
from market_data_core.contracts.bus import Bus
from market_data_core.testing.bus_suite import BusSuite, OpenBus


def _embedded(_: pytest.FixtureRequest, folder: Path) -> BusSettings:
    return BusSettings(embedded=EmbeddedBusSettings(path=folder / "bus"))


def _kafka(request: pytest.FixtureRequest, _: Path) -> BusSettings:
    server = request.getfixturevalue("kafka")
    address, prefix = server.address, server.new_prefix()
    return BusSettings(kafka=KafkaBusSettings(bootstrap_servers=address, topic_prefix=prefix))


def _redis(request: pytest.FixtureRequest, _: Path) -> BusSettings:
    server = request.getfixturevalue("redis_server")
    return BusSettings(redis=RedisBusSettings(uri=server.uri, key_prefix=server.new_prefix()))


# A fresh storage for each backend; a backend without an entry here fails its tests.
SETTINGS: dict[str, Callable[[pytest.FixtureRequest, Path], BusSettings]] = {
    "embedded": _embedded,
    "kafka": _kafka,
    "redis": _redis,
}


class TestBus(BusSuite):
    @pytest.fixture(params=registry.backends("bus"))
    async def open_bus(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> AsyncIterator[OpenBus]:
        settings = SETTINGS[request.param](request, tmp_path)
        backend = registry.backend("bus", request.param)
        request.instance.atomic_appends = request.param != "kafka"
        opened: list[Bus] = []

        def open_one() -> Bus:
            bus: Bus = backend.create(settings, SystemClock())
            opened.append(bus)
            return bus

        yield open_one
        for bus in opened:
            await bus.close()
