"""The example runs as it stands, on both stores."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.servers.postgres import Server

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "run_pipeline_to_store.py"


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_run_pipeline_to_store(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    environment = {**os.environ}
    if store == "postgres":
        server: Server = request.getfixturevalue("postgres")
        environment["MDS_DSN"] = server.new_schema()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--bars", "2000", "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    assert f"http://127.0.0.1:{port}/metrics" in shown
    for level in ("soft", "hard", "ok"):
        assert f"feedback   {level}" in shown
    assert "the queue is high" in shown
    assert "replay     " in shown
    assert "2,000 bars, 4 symbols" in shown
    assert shown.endswith("0 records left\n")
