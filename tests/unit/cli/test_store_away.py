"""Commands that only look do not wait for a store that is away."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from market_data_core.errors import TransientError
from market_data_pipeline.cli import app


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "command", ["bars SPY", "verify", "conservation", "job list", "store status"]
)
def test_who_only_looks_does_not_wait(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_STORE_URI", "postgresql://me:hunter2@127.0.0.1:1/x")
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, TransientError)
    assert "127.0.0.1:1" in str(result.exception)
    assert "hunter2" not in str(result.exception) + result.output
