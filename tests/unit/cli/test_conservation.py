from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from market_data_core.events import Rejected, make_batch
from market_data_pipeline.windows.checkpoint import decode_checkpoint

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z


@pytest.fixture
def counted(home: Home) -> Home:
    ts = [START, START + 10**12, START, START + 10**12]
    batch = make_batch("feed", ["SPY"] * 4, ts, [1, 2, 3, 2], [1.0] * 4, [1.0] * 4)
    home.lane([Rejected("malformed", "no message", b"x"), batch])
    return home


def unbalance(home: Home) -> None:
    ((partition, blob), *_) = home.store("SELECT partition, checkpoint FROM partitions")
    checkpoint = decode_checkpoint(blob)
    checkpoint.counts.stored += 1
    home.store(
        "UPDATE partitions SET checkpoint = ? WHERE partition = ?", (checkpoint.encode(), partition)
    )


def test_every_term_of_every_partition(counted: Home) -> None:
    rows = json.loads(counted.ok("conservation", "--format", "json"))

    assert [(row["topic"], row["partition"]) for row in rows] == [
        ("mdp.events.a", p) for p in range(3)
    ]
    terms = ("received", "stored", "open", "deduplicated", "late", "dead_lettered", "lost")
    total = {name: sum(row[name] for row in rows) for name in terms}
    assert total == dict(zip(terms, (5, 2, 0, 1, 1, 1, 0), strict=True))
    table = counted.ok("conservation").splitlines()[-1].split()
    assert table == ["total", "5", "2", "0", "1", "1", "1", "0", "yes"]


def test_an_equation_that_does_not_hold_fails(counted: Home) -> None:
    unbalance(counted)

    result = counted.run("conservation")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].endswith("no")
    assert "does not hold" in str(result.exception)
    assert "fail  conservation" in counted.run("doctor").stdout


def test_nothing_yet(home: Home) -> None:
    result = home.run("conservation", "--format", "json")

    assert result.stdout == "[]\n"
    assert "no bars yet" in str(result.exception)
    assert not home.path.exists()
