"""From a feed to signals: in one process, as three, and of a recording; each signal once."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from typing import Any

import pytest
from tests.faults import checks
from tests.faults.lab import BARS, EVENTS, Lab, wait_until
from tests.faults.recordings import SYMBOLS, trades, write_recording

from market_data_core.events import parse_ts
from market_data_core.intervals import parse_interval
from market_data_pipeline.positions import groups_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

SIGNALS = "mdp.signals"
RULES = """\
- {name: rising, condition: "close > open", signal: 1, score: 0.75, meta: [close, momentum]}
- {name: falling, condition: "close < prev(close)", signal: -1, interval: 10s, meta: [close]}
"""
_LIVE = {
    "symbols": list(SYMBOLS[:6]), "tick_rate": 10, "speed": 20, "start": "2025-01-02T00:00:00Z",
}  # fmt: skip


@pytest.fixture
def ready(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A deployment with our rules; a feed that falters closes no window before its time."""
    lab.synthetic, lab.micro_batch = _LIVE, {"flush_timeout_ms": 60_000}
    monkeypatch.setattr("tests.faults.lab.RULES", RULES)
    return lab


def told(lab: Lab, topic: str) -> list[dict[str, Any]]:
    """What a reader of the topic is given."""
    output = lab.run("stream", "tail", "--topic", topic, "--limit", "1000000")
    return [json.loads(line) for line in output.splitlines()]


def stored(lab: Lab) -> list[dict[str, Any]]:
    """The table's rows."""
    output = lab.run("store", "export", "signals", "-")
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [row | {"ts": parse_ts(row["ts"])} for row in rows]


def check(lab: Lab, topic: str) -> None:
    """Every signal stands in the table and on the topic, once, and its bar's end is its time."""
    signals = stored(lab)
    assert {signal["name"] for signal in signals} == {"rising", "falling"}
    assert {signal["state"] for signal in signals} == {"active"}
    published = [signal | {"ts": parse_ts(signal["ts"])} for signal in told(lab, topic)]
    keys = Counter((s["provider"], s["symbol"], s["ts"], s["name"]) for s in published)
    assert set(keys.values()) == {1}
    by_key = {(s["provider"], s["symbol"], s["ts"], s["name"]): s for s in signals}
    assert keys.keys() == by_key.keys()
    bars = checks.stored_bars(lab)
    version = sha256(RULES.encode()).hexdigest()
    for signal in published:
        kept = by_key[signal["provider"], signal["symbol"], signal["ts"], signal["name"]]
        assert [signal[k] for k in ("value", "score", "meta")] == [
            kept[k] for k in ("value", "score", "metadata")
        ]
        meta = signal["meta"]
        assert meta["interval"] == {"rising": "2s", "falling": "10s"}[signal["name"]]
        start = signal["ts"] - parse_interval(meta["interval"])
        assert parse_ts(meta["bar"]) == start
        bar = bars[signal["provider"], signal["symbol"], meta["interval"], start]
        assert meta["features"]["close"] == bar.close
        assert (meta["adapter"], version.startswith(meta["version"])) == ("rules", True)
        if signal["name"] == "rising":
            assert bar.close > bar.open
    rising = sum(k[2] == "2s" and bar.close > bar.open for k, bar in bars.items())
    assert rising == sum(signal["name"] == "rising" for signal in signals)
    output = lab.run("verify", "--signals")
    assert f"{len(signals):,} agree\nno difference\n" in output


def test_in_one_process(ready: Lab) -> None:
    output = ready.run("run", "--provider", "synthetic", "--for", "60s")
    assert f"{len(stored(ready)):,} inserted, 0 updated, 0 unchanged, 0 retracted" in output
    check(ready, SIGNALS)


@pytest.mark.parametrize("lab", ["embedded-sqlite", "redis-postgres"], indirect=True)
def test_as_three_processes(ready: Lab) -> None:
    infer = ready.start("stream", "infer")
    batch = ready.start("stream", "micro-batch")
    feed = ready.start("stream", "produce", "--provider", "synthetic")
    names = "SELECT count(DISTINCT name) FROM signals"
    wait_until(lambda: ready.number(names) == 2, "there are signals of both rules")
    feed.stop()
    wait_until(lambda: checks.all_read(ready, EVENTS), "all events are read")
    batch.stop()
    group = groups_of(ready.group)["infer"]

    def unread() -> int:
        rows = ready.run("stream", "groups", "--group", group, "--format", "json")
        assert {row["topic"] for row in json.loads(rows)} == {BARS}
        return sum(row["unread"] for row in json.loads(rows))

    wait_until(lambda: not unread(), "all bars are evaluated")
    infer.stop()
    assert f"{len(stored(ready)):,} inserted, 0 updated, 0 unchanged, 0 retracted" in infer.output
    check(ready, SIGNALS)


def test_of_a_recording(ready: Lab) -> None:
    """A second run changes nothing, and tells nothing again."""
    path = ready.path / "rec.ndjson"
    write_recording(path, 7, trades(7, 2_000, 60))
    ready.run("run", str(path))
    (lane,) = checks.lane_topics(ready)
    check(ready, lane.replace(EVENTS, SIGNALS))
    before = ready.table("signals")
    ready.run("run", str(path))
    assert ready.table("signals") == before
    check(ready, lane.replace(EVENTS, SIGNALS))
