from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from market_data_core.errors import MdpError, TransientError
from market_data_core.events import make_batch
from market_data_pipeline.cli import _topics

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z


def batch(count: int, begin: int = 0) -> Any:
    at = range(begin, begin + count)
    return make_batch(
        "feed", ["A"] * count, [START + i for i in at], at, [1.0] * count, [1.0] * count
    )


def rows(home: Home, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        home.ok("stream", "topics", "--format", "json", *options)
    )
    return found


def test_topics_are_told_with_what_they_hold(home: Home) -> None:
    home.lane([batch(3)])
    home.lane([batch(2)], "mdp.events.b", ended=False)
    found = {row["topic"]: row for row in rows(home)}
    assert {name: (row["kind"], row["state"]) for name, row in found.items()} == {
        "mdp.bars": ("bars", None),
        "mdp.dlq": ("letters", None),
        "mdp.events.a": ("recording", "finished"),
        "mdp.events.b": ("recording", "unfinished"),
    }
    events = found["mdp.events.a"]
    assert (events["partitions"], len(events["log_id"])) == (3, 32)
    assert events["first_append"] <= events["last_append"]
    assert found["mdp.dlq"]["first_append"] is None
    table = home.ok("stream", "topics")
    assert [name in table for name in found] == [True] * 4


def test_kinds_are_told_by_name(home: Home) -> None:
    names = ("mdp.events", "mdp.events-g2", "mdp.events-generations", "mdp.bars.x", "mdp.feedback",
             "mdp.dlq.replays", "mdp.signals", "mdp.signals.x", "mine")  # fmt: skip
    assert [_topics.kind_of(home.settings(), name) for name in names] == [
        "events", "events", "generations", "recording_bars", "feedback", "replays", "signals",
        "recording_signals", "other",
    ]  # fmt: skip


def test_positions_are_told_by_partition(home: Home) -> None:
    home.lane([batch(3)])
    found = [row for row in rows(home, "--positions") if row["topic"] == "mdp.events.a"]
    assert [row["partition"] for row in found] == [0, 1, 2]
    assert {row["first"] for row in found} == {0}
    assert all(row["next"] > 0 and row["first_append"] for row in found)
    table = csv.DictReader(
        io.StringIO(home.ok("stream", "topics", "--positions", "--format", "csv"))
    )
    assert table.fieldnames == list(found[0])


def test_no_topics(home: Home) -> None:
    assert home.ok("stream", "topics") == "no topics yet\n"
    assert rows(home) == []
    assert not home.path.exists()


def test_without_the_store_states_are_missing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.lane([batch(3)])

    async def away(uri: str) -> NoReturn:
        msg = "cannot connect"
        raise TransientError(msg)

    monkeypatch.setattr(_topics, "open_ready_store", away)
    result = home.run("stream", "topics", "--format", "json")
    assert isinstance(result.exception, MdpError)
    assert "the store cannot be used: cannot connect" in str(result.exception)
    assert {row["state"] for row in json.loads(result.stdout)} == {None}
    assert home.run("stream", "topics", "--positions").exit_code == 0
