"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.servers.kafka import Server as KafkaServer
    from tests.servers.postgres import Server
    from tests.servers.redis import Server as RedisServer

pytest.register_assert_rewrite("market_data_core.testing")  # failures of the suites show values

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT.parent / "shared" / "data"

# A machine that is shared with other work makes single examples slow now and then.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")

_OURS = ("MDP_", "MDS_", "REDIS_URI", "KAFKA_BOOTSTRAP")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the developer's shell has set; MDP_FAULT_RUNS is ours."""
    for name in os.environ:
        if name.startswith(_OURS) and name != "MDP_FAULT_RUNS":
            monkeypatch.delenv(name)


def skip_without(what: str) -> NoReturn:
    """Skip the test; where all tests have to run, fail it."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def recorded_data() -> Path:
    """The folder of recorded market data; absent outside CI: skipped, absent in CI: failed."""
    if not RECORDED.is_dir():
        skip_without(f"recorded market data is not in {RECORDED}")
    return RECORDED


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; absent outside CI: skipped, absent in CI: failed."""
    from tests.servers import postgres  # a driver that most tests need not load

    with postgres.running() as server:
        if server is None:
            skip_without(postgres.MISSING)
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server; absent outside CI: skipped, absent in CI: failed."""
    from tests.servers import redis

    with redis.running() as server:
        if server is None:
            skip_without(redis.MISSING)
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A Kafka broker; absent outside CI: skipped, absent in CI: failed."""
    from tests.servers import kafka

    with kafka.running() as server:
        if server is None:
            skip_without(kafka.MISSING)
        yield server
