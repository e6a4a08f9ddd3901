"""Ctrl-C while a command waits for a bus that is away: it ends, and nothing has failed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from market_data_pipeline import patience
from market_data_pipeline.cli import _session

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

NOWHERE = """
telemetry: {metrics_port: 0}
bus: {type: redis, redis: {uri: "redis://127.0.0.1:1/0"}}
"""
LINE = '{"ver":1,"kind":"tick","provider":"p","symbol":"SPY","ts":"2025-10-24T14:00:00Z"}\n'


@pytest.fixture
def interrupted(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A bus that is away; Ctrl-C comes as soon as that is found out."""
    (home.path.parent / "away.yaml").write_text(NOWHERE)
    (home.path.parent / "f.ndjson").write_text(LINE)
    monkeypatch.setattr(_session, "configure_logging", lambda *_: None)

    class Told:
        asked = False

        def warning(self, *_: object, **__: Any) -> None:
            if not self.asked:
                self.asked = True
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(patience, "log", Told())
    return home


@pytest.mark.parametrize(
    "command",
    [
        ("run", "f.ndjson"),
        ("run", "--provider", "synthetic"),
        ("stream", "produce", "--provider", "synthetic"),
        ("stream", "micro-batch"),
        ("stream", "archive"),
    ],
    ids=" ".join,
)
def test_a_command_that_waits_for_its_bus_can_be_stopped(
    interrupted: Home, command: tuple[str, ...]
) -> None:
    result = interrupted.run(*command, "--config", "away.yaml")
    assert (result.exit_code, result.stdout) == (0, ""), (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("stopped while waiting, nothing is lost: ")
    assert "127.0.0.1:1" in line
    ((status, error),) = interrupted.store("SELECT status, error_message FROM job_runs")
    assert (status, error) == ("cancelled", "")
