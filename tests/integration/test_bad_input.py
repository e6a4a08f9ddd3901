"""Bad input: set aside with its reason and its bytes, counted, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.conftest import Deployment

from market_data_core.events import format_ts

START = 1_761_314_400 * 10**9


def event(i: int, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "ver": 1,
        "provider": "feed",
        "symbol": "SPY",
        "kind": "tick",
        "src_ts": format_ts(START + i * 100_000_000),
        "o": 10.5,
        "h": 10.5,
        "l": 10.5,
        "c": 10.5,
        "v": 2,
        "seq": i,
    }
    return json.dumps(values | changes).encode()


BAD = {
    b"not json": "malformed",
    b'{"ver": 1, "provider": "feed"': "malformed",
    b"\xff\xfe{}": "malformed",
    event(1, c="10.5"): "bad_type",
    event(1, symbol=7): "bad_type",
    event(1, v=None): "bad_type",
    event(1, ver=2): "bad_version",
    event(1, c=float("nan")): "malformed",  # JSON has no NaN
    event(1, h=9.0): "high_below_low",
    event(1, v=-1): "negative",
    event(1, src_ts="yesterday"): "bad_timestamp",
    event(1, src_ts="0001-01-01T00:00:00Z"): "bad_timestamp",
    event(1, src_ts="9999-01-01T00:00:00Z"): "bad_timestamp",
    b'{"x": "' + b"y" * 10_000_000 + b'"}': "bad_type",
}


def letters(deployment: Deployment) -> list[Any]:
    return list(json.loads(deployment.ok("dlq", "list", "--format", "json", "--limit", 99)))


def test_every_bad_line_is_kept_and_no_good_one_is_lost(
    deployment: Deployment, tmp_path: Path
) -> None:
    good = [event(i) for i in range(200)]
    lines = [*good[:100], b"", *BAD, b"  ", *good[100:]]
    (tmp_path / "mixed.ndjson").write_bytes(b"\n".join(lines) + b"\n")
    said = deployment.ok("run", tmp_path / "mixed.ndjson")
    assert f"{200 + len(BAD)} received = 200 stored" in said
    found = {bytes_of(deployment, row): row["reason"] for row in letters(deployment)}
    assert found == BAD
    assert deployment.query("SELECT sum(trade_count) FROM bars_ohlcv") == [(200,)]
    assert "no difference" in deployment.ok("verify")


def bytes_of(deployment: Deployment, row: Any) -> bytes:
    """The letter's bytes as they came, through the command that shows them."""
    return deployment.raw("dlq", "show", row["id"], "--raw")


def test_an_empty_file_is_a_recording_without_events(
    deployment: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert "0 received = 0 stored" in deployment.ok("run", tmp_path / "empty")


def test_mistakes_are_answered_in_one_line(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\0" * 100)
    (tmp_path / "bad.yaml").write_text("version: 1\nmicro_batch:\n  window_msec: 5\n")
    for arguments, said in (
        (("run", "absent.csv"), "absent.csv"),
        (("run", tmp_path / "binary"), "binary"),
        (("run", "--config", tmp_path / "bad.yaml"), "window_msec"),
        (("run", "--window", "2x", "a"), "2x"),
        (("run", "--provider", "synthetik"), "synthetic"),
        (("bars", "SPY", "--from", "tomorrow"), "tomorrow"),
        (("stream", "tail", "--topic", "nowhere"), "nowhere"),
    ):
        done = deployment.mdp(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
