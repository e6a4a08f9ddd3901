"""Rules that change, or break, while a worker of inference runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.faults import checks
from tests.faults.lab import BARS, EVENTS, WINDOWS, Lab, wait_until
from tests.faults.recordings import trades
from tests.integration.test_lane_and_live import NAME, between, feed

from market_data_core.intervals import parse_interval
from market_data_pipeline.signals.checkpoint import Edition, decode_signals_checkpoint

pytestmark = pytest.mark.timeout(120)

_OTHER = """
- {name: above, condition: "close > sma_3", signal: 2}
- {name: fresh, condition: "close > 0", signal: 0}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.close()


def editions(lab: Lab) -> list[list[Edition]]:
    rows = lab.query(
        f"SELECT checkpoint FROM partitions WHERE consumer_group = '{lab.group}-infer' "
        f"AND topic = '{BARS}' AND checkpoint IS NOT NULL"
    )
    return [decode_signals_checkpoint(checkpoint).editions for (checkpoint,) in rows]


def settled(lab: Lab) -> bool:
    return checks.all_read(lab, EVENTS) and checks.all_evaluated(lab)


def test_rules_change_while_a_worker_runs(lab: Lab) -> None:
    source = trades(31, 900, 40, provider=NAME)
    infer, batch = lab.start("stream", "infer"), lab.start("stream", "micro-batch")
    rules = lab.path / "rules.yaml"
    feed(lab, between(source, 0, 20))
    wait_until(lambda: settled(lab), "the first bars are evaluated")
    wait_until(lambda: len(editions(lab)) == 4, "every partition has a position")
    rules.write_text("- {name: broken, condition: 'close >', signal: 1}")
    wait_until(lambda: "are not used" in infer.output, "broken rules are told of")
    assert "rule 'broken': condition: position" in infer.output
    rules.write_text(_OTHER)
    wait_until(lambda: all(len(e) == 2 for e in editions(lab)), "the new rules are in force")
    feed(lab, between(source, 20, 40))
    wait_until(lambda: settled(lab), "all bars are evaluated")
    for worker in (infer, batch):
        worker.stop()
    base = WINDOWS[0]
    after = {e[-1].after((NAME, base)) + parse_interval(base) for e in editions(lab)}
    versions = {e[0].version != e[-1].version for e in editions(lab)}
    assert versions == {True}
    told = [
        (int(ts), name, value, msgspec.json.decode(metadata)["version"])
        for ts, name, value, metadata in lab.query(
            f"SELECT {lab.store.start_ns}, name, value, metadata FROM signals "
            "WHERE state = 'active'"
        )
    ]
    earlier = {v for ts, _, _, v in told if ts <= min(after)}
    later = {v for ts, _, _, v in told if ts > max(after)}
    assert len(earlier) == len(later) == 1
    assert earlier != later
    assert {v for ts, n, v, _ in told if n == "above" and ts <= min(after)} == {1.0}
    assert {v for ts, n, v, _ in told if n == "above" and ts > max(after)} == {2.0}
    assert min(ts for ts, n, _, _ in told if n == "fresh") > min(after)
    assert "Traceback" not in infer.output
