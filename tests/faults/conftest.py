"""Fixtures of the fault tests, and the number of kills that hit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import skip_without
from tests.faults.brokers import BehindProxies
from tests.faults.buses import Log, on_kafka, on_redis
from tests.faults.lab import THOROUGH, Lab
from tests.faults.stores import Database, PostgresSchema


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C reaches the processes under test, also where a shell runs this in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module's tests on each of its DEPLOYMENTS, on files where it names none.

    In the long campaign, who names a server as the bus is tried on all buses with all stores.
    """
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "deployment" not in metafunc.fixturenames or any("deployment" in n for n in named):
        return
    found = getattr(metafunc.module, "DEPLOYMENTS", ("embedded-sqlite",))
    if THOROUGH and not all(name.startswith("embedded") for name in found):
        found = [f"{bus}-{store}" for bus in LOGS for store in DATABASES]
    metafunc.parametrize("deployment", found, indirect=True)


@pytest.fixture
def deployment(
    request: pytest.FixtureRequest,
) -> tuple[Callable[[], Log | None], Callable[[], Database | None]]:
    """Makes the bus and the store of a deployment; None for files in its folder."""
    bus, store = request.param.split("-")
    return LOGS[bus](request), DATABASES[store](request)


def _on_redis(request: pytest.FixtureRequest) -> Callable[[], Log]:
    server = request.getfixturevalue("redis_server")
    return lambda: on_redis(server)


def _on_kafka(request: pytest.FixtureRequest) -> Callable[[], Log]:
    server = request.getfixturevalue("kafka")
    return lambda: on_kafka(server)


def _on_postgres(request: pytest.FixtureRequest) -> Callable[[], Database]:
    server = request.getfixturevalue("postgres")
    return lambda: PostgresSchema(server)


def _in_files(_: pytest.FixtureRequest) -> Callable[[], None]:
    return lambda: None


LOGS: dict[str, Callable[[pytest.FixtureRequest], Callable[[], Log | None]]] = {
    "embedded": _in_files,
    "redis": _on_redis,
    "kafka": _on_kafka,
}
DATABASES: dict[str, Callable[[pytest.FixtureRequest], Callable[[], Database | None]]] = {
    "sqlite": _in_files,
    "postgres": _on_postgres,
}


@pytest.fixture(scope="session")
def kafka() -> Iterator[BehindProxies]:
    """A Kafka broker that is reached by other ways too; one for each process of the tests."""
    from tests.servers import kafka

    with kafka.running(kind=BehindProxies) as server:
        if server is None:
            skip_without(kafka.MISSING)
        assert isinstance(server, BehindProxies)
        try:
            yield server
        finally:
            server.close()


@pytest.fixture
def make_lab(
    tmp_path: Path,
    deployment: tuple[Callable[[], Log | None], Callable[[], Database | None]],
) -> Iterator[Callable[..., Lab]]:
    """Makes deployments; their processes end with the test."""
    made: list[Lab] = []
    new_log, new_database = deployment

    def make(name: str = "lab", **settings: Any) -> Lab:
        made.append(Lab(tmp_path / name, new_database(), new_log(), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """One deployment."""
    return make_lab()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many kills hit a live process, by what they hit."""
    hits: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                for name, value in report.user_properties:
                    if name.startswith("kills of "):
                        hits[name] = hits.get(name, 0) + int(str(value))
    for name, count in sorted(hits.items()):
        terminalreporter.write_line(f"{name}: {count}")
