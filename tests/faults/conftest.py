"""Fixtures of the fault tests, and the number of kills that hit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.lab import Lab


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C reaches the processes under test, also where a shell runs this in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Makes deployments; their processes end with the test."""
    made: list[Lab] = []

    def make(name: str = "lab", **settings: Any) -> Lab:
        made.append(Lab(tmp_path / name, **settings))
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
