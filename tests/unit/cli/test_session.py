"""What a long-running command leaves behind on the terminal and in the log."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from market_data_core.config import load_config
from market_data_pipeline.audit import Job
from market_data_pipeline.cli import _session

_HIDE, _SHOW = b"\x1b[?25l", b"\x1b[?25h"
_ENDLESS = """
import asyncio
from market_data_core.config import load_config
from market_data_pipeline.audit import Job
from market_data_pipeline.cli import _session

async def work(flow, stop):
    await asyncio.Event().wait()

_session.execute(load_config(None, {"telemetry.metrics_port": 0}), work, "live", Job("run", "live"))
"""


def test_a_second_signal_gives_the_cursor_back(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    home = {**os.environ, "TERM": "xterm", "MDP_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS], stderr=theirs, stdout=theirs, cwd=tmp_path, env=home
    )
    os.close(theirs)
    shown = b""
    try:
        while _HIDE not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # this work takes no notice of the first one
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:  # how Linux tells the end of a terminal
            pass
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert shown.rfind(_SHOW) > shown.rfind(_HIDE)


@pytest.mark.parametrize(
    ("title", "port", "expected"),
    [("live", 1, True), (_session.RECORDING, 1, False), ("live", 0, None)],
)
def test_only_runs_that_last_announce_their_metrics(
    title: str, port: int, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDP_HOME", str(tmp_path))
    monkeypatch.setattr(_session, "configure_logging", lambda *_: None)
    served: list[bool] = []
    monkeypatch.setattr(
        _session, "serve_metrics", lambda port, host, announce: served.append(announce)
    )

    async def work(flow: object, stop: object) -> None:
        return

    settings = load_config(None, {"telemetry.metrics_port": port})
    _session.execute(settings, work, title, Job("run", "live"))
    assert served == ([] if expected is None else [expected])
