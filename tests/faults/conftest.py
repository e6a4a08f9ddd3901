"""Fixtures of the fault tests, and the number of kills that hit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.lab import Lab
from tests.faults.stores import Database, PostgresSchema


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C reaches the processes under test, also where a shell runs this in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module's tests on each of its STORES; on a file where it names none."""
    if "new_database" in metafunc.fixturenames:
        stores = getattr(metafunc.module, "STORES", ("sqlite",))
        metafunc.parametrize("new_database", stores, indirect=True)


@pytest.fixture
def new_database(request: pytest.FixtureRequest) -> Callable[[], Database | None]:
    """Makes the store of a deployment; None for a file in its folder."""
    if request.param == "sqlite":
        return lambda: None
    server = request.getfixturevalue("postgres")
    return lambda: PostgresSchema(server)


@pytest.fixture
def make_lab(
    tmp_path: Path, new_database: Callable[[], Database | None]
) -> Iterator[Callable[..., Lab]]:
    """Makes deployments; their processes end with the test."""
    made: list[Lab] = []

    def make(name: str = "lab", **settings: Any) -> Lab:
        made.append(Lab(tmp_path / name, new_database(), **settings))
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
