"""What the operator's commands make of inference's positions, beside those of others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from market_data_core.contracts.store import PartitionKey
from market_data_core.errors import DamagedFileError, MdpError, UsageError
from market_data_core.events import make_batch
from market_data_pipeline.backends import open_backends
from market_data_pipeline.flow import Flow
from market_data_pipeline.positions import decode_any
from market_data_pipeline.signals.assembly import evaluator_of
from market_data_pipeline.signals.checkpoint import decode_signals_checkpoint

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z
OWN, INFER = "mdp-consumers", "mdp-consumers-infer"
RECORDING = """\
symbol,ts,price,size
A,2025-10-24T14:00:00Z,1.0,1
A,2025-10-24T14:00:02Z,1.5,1
A,2025-10-24T14:00:04Z,1.0,1
"""


def ticks(count: int, begin: int = 0) -> Any:
    """A tick of each of four symbols every second."""
    seconds = [begin + i for i in range(count) for _ in "ABCD"]
    seqs = range(4 * begin, 4 * (begin + count))
    prices = [100.0 + i * i % 7 for i in seqs]
    ts = [START + s * 10**9 for s in seconds]
    return make_batch("feed", list("ABCD") * count, ts, seqs, prices, [1.0] * len(ts))


def infer(home: Home) -> None:
    """Evaluate all bars of the live topic that there are."""

    async def run() -> None:
        settings = home.settings()
        evaluator = evaluator_of(settings)
        assert evaluator is not None
        stop = asyncio.Event()
        stop.set()
        async with open_backends(settings) as backends:
            await Flow(settings, backends).infer(stop, evaluator, drain=True)

    asyncio.run(run())


@pytest.fixture
def inferred(home: Home) -> Home:
    """Bars of ten seconds, evaluated, and those of ten more, which are not."""
    home.lane([ticks(10)], "mdp.events.a")
    infer(home)
    home.lane([ticks(10, begin=100)], "mdp.events.b")
    return home


def rows(home: Home, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        home.ok("stream", "groups", "--format", "json", *options)
    )
    return found


def claim(home: Home, number: int) -> None:
    async def run() -> None:
        async with open_backends(home.settings()) as backends:
            key = PartitionKey(INFER, "mdp.bars", number)
            assert await backends.store.claim(key, "worker-1", 0)

    asyncio.run(run())


def test_positions_and_unread_bars_are_told(inferred: Home) -> None:
    found = rows(inferred)
    assert [(row["group"], row["topic"], row["partition"]) for row in found] == [
        (INFER, "mdp.bars", number) for number in range(3)
    ]
    assert {row["state"] for row in found} == {"free"}
    assert {row["pending"] for row in found} == {None}
    assert all(row["resume"] == row["counted"] for row in found)
    unread = inferred.store("SELECT count(*) FROM bars_ohlcv WHERE ts >= ?", [START + 50 * 10**9])
    assert sum(row["unread"] for row in found) == unread[0][0] > 0
    assert all(bool(row["unread"]) == ((row["counted"] or 0) < row["next"]) for row in found)
    table = inferred.ok("stream", "groups", "--group", INFER)
    assert table.splitlines()[-1].split()[:3] == ["total", "3", str(unread[0][0])]

    infer(inferred)
    assert {row["unread"] for row in rows(inferred)} == {0}


def test_unread_bars_without_an_owner_fail_a_check(inferred: Home) -> None:
    waiting = [row["partition"] for row in rows(inferred) if row["unread"]]
    result = inferred.run("stream", "groups", "--check")
    assert isinstance(result.exception, MdpError)
    for number in waiting:
        assert f"{INFER}: partition {number} of mdp.bars has unread input and no owner" in (
            result.stderr
        )
    for number in waiting:
        claim(inferred, number)
    inferred.ok("stream", "groups", "--check", "--max-lag-ms", "3600000")
    late = inferred.run("stream", "groups", "--check", "--max-lag-ms", "0", "--group", INFER)
    assert isinstance(late.exception, MdpError)
    assert f"partition {waiting[0]} of mdp.bars lags by" in late.stderr
    infer_done = [row for row in rows(inferred) if row["partition"] in waiting]
    assert {(row["owner"], row["state"]) for row in infer_done} == {("worker-1", "owned")}


def test_inference_that_never_ran_is_missed_if_it_is_named(home: Home) -> None:
    home.lane([ticks(10)], "mdp.events.a")
    assert rows(home) == []
    found = rows(home, "--group", INFER)
    assert [(row["partition"], row["state"], row["counted"]) for row in found] == [
        (number, "free", None) for number in range(3)
    ]
    assert isinstance(home.run("stream", "groups", "--check", "--group", INFER).exception, MdpError)
    wrong = home.error("stream", "groups", "--group", f"{INFER}r")
    assert isinstance(wrong, UsageError)
    assert f"did you mean {INFER!r}?" in str(wrong)


def test_signals_of_recordings_are_finished_or_not(home: Home) -> None:
    Path("rec.csv").write_text(RECORDING, encoding="utf-8")
    home.ok("run", "rec.csv")
    topics = json.loads(home.ok("stream", "topics", "--format", "json"))
    (signals,) = [row for row in topics if row["kind"] == "recording_signals"]
    assert (signals["state"], signals["partitions"]) == ("finished", 1)
    assert rows(home) == []
    (done,) = rows(home, "--all", "--group", INFER)
    assert (done["state"], done["unread"], done["counted"]) == ("finished", 0, None)
    assert done["topic"] == signals["topic"].replace("mdp.signals", "mdp.bars")

    ((data,),) = home.store(
        "SELECT checkpoint FROM partitions WHERE consumer_group = ? AND topic = ?",
        [INFER, done["topic"]],
    )
    begun = msgspec.structs.replace(decode_signals_checkpoint(data), position=-1)
    home.store(
        "UPDATE partitions SET checkpoint = ? WHERE consumer_group = ?", [begun.encode(), INFER]
    )
    topics = json.loads(home.ok("stream", "topics", "--format", "json"))
    assert [row["state"] for row in topics if row["kind"] == "recording_signals"] == ["unfinished"]
    (open_,) = rows(home, "--group", INFER)
    assert (open_["state"], open_["unread"]) == ("free", 3)


def test_the_other_commands_pass_it_over(inferred: Home) -> None:
    inferred.ok("verify")
    inferred.ok("verify", "--signals")
    inferred.ok("doctor")
    inferred.ok("dlq", "list")
    assert "mdp.bars" not in inferred.ok("conservation")


def test_a_group_that_is_called_like_inference_is_none(inferred: Home) -> None:
    """A deployment may give its workers any name."""
    Path("named.yaml").write_text(
        f"bus: {{redis: {{consumer_group: {INFER}}}}}\n", encoding="utf-8"
    )
    error = inferred.error("conservation", "--config", "named.yaml")
    assert "no checkpoints yet" in str(error)
    inferred.ok("doctor", "--config", "named.yaml")
    inferred.ok("verify", "--config", "named.yaml")


def test_it_is_forgotten_and_evaluates_again_what_the_log_holds(inferred: Home) -> None:
    infer(inferred)
    before = inferred.store("SELECT * FROM signals ORDER BY 1, 2, 3, 4")
    assert before
    told = inferred.run("stream", "forget-group", INFER, "--yes")
    assert told.exit_code == 0, told.exception
    assert "mdp.bars: the positions of 3 partitions" in told.stderr
    assert "evaluates what the log of bars holds" in told.stderr
    assert rows(inferred) == []
    infer(inferred)
    assert inferred.store("SELECT * FROM signals ORDER BY 1, 2, 3, 4") == before
    assert {row["unread"] for row in rows(inferred)} == {0}


def test_a_checkpoint_of_another_release_is_named() -> None:
    later = msgspec.msgpack.encode({"log_id": "x", "position": 1, "version": "signals-3"})
    with pytest.raises(DamagedFileError, match=r"inference is 'signals-3', this release reads"):
        decode_any(later)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        decode_any(b"\xff")
