"""An import that waits for standard input ends with Ctrl-C, and what it had read is stored."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.lab import wait_until

_MDP = "from market_data_pipeline.cli import main; main()"
_LINE = (
    b'{"provider":"p","symbol":"SPY","interval":"1m","ts":"2025-10-24T14:00:00Z","open":1,'
    b'"high":1,"low":1,"close":1,"volume":1}\n'
)


@pytest.mark.timeout(60)
def test_ctrl_c_while_waiting_for_a_line(tmp_path: Path) -> None:
    """At once, with one exit code or the other, without a word of Python's."""
    command = [sys.executable, "-c", _MDP, "store", "import", "bars_ohlcv", "-"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(_LINE)
        process.stdin.flush()
        wait_until((tmp_path / ".mdp" / "store.db").exists, "it has begun")
        status = Path(f"/proc/{process.pid}/status")
        wait_until(lambda: "Threads:\t1\n" not in status.read_text(), "it reads")
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=20)[1].decode()
    assert "Traceback" not in errors, errors
    assert "Fatal" not in errors, errors
