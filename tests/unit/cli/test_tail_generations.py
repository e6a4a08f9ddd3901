"""``mdp stream tail`` and ``mdp stream groups`` of a live topic in several generations."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core.clock import ManualClock, SystemClock
from market_data_core.errors import LogLostError, MdpError, TransientError, UsageError
from market_data_core.events import make_batch
from market_data_core.intervals import NS_PER_S
from market_data_core.records import Entry, Record
from market_data_pipeline.archive.checkpoint import GROUP_SUFFIX
from market_data_pipeline.backends import open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.generations import Generations

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

LIVE, SECOND, THIRD = "mdp.events", "mdp.events-g2", "mdp.events-g3"
START = 1_761_314_400 * NS_PER_S
COMMAND = [sys.executable, "-c", "from market_data_pipeline.cli import main; main()", "stream"]


def change(home: Home, partitions: int) -> None:
    """Another generation, an hour after the last one."""

    async def run() -> None:
        async with open_backends(home.settings()) as backends:
            found = Generations(backends.bus, LIVE, backends.clock)
            await found.open(3)
            begins = max(SystemClock().now_ns(), found.timeline.newest.from_ts) + 3_600 * NS_PER_S
            await found.enter(partitions, begins, 3, 0)

    asyncio.run(run())


def append(home: Home, *places: tuple[str, int, int]) -> None:
    """Events one after the other: topic, partition and seq; a second lies between them."""

    async def run() -> None:
        clock = ManualClock(START)
        async with open_backends(home.settings(), clock) as backends:
            for topic, partition, seq in places:
                clock.advance(START + seq * NS_PER_S - clock.now_ns())
                batch = make_batch("feed", ["A"], [START], [seq], [1.0], [1.0])
                (payload,) = codec.encode_events(batch, "columnar")
                entry = Entry(partition, payload, 1, "feed", 1, 1)
                await backends.bus.append(topic, [entry])

    asyncio.run(run())


@pytest.fixture
def live(home: Home) -> Home:
    """Three partitions, then five; events in turns, and a partition that the first has not."""
    change(home, 5)
    append(home, *((LIVE if seq % 2 else SECOND, seq % 3, seq) for seq in range(20)))
    append(home, (SECOND, 4, 20))
    return home


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def seqs(home: Home, *options: str) -> list[int]:
    return [line["seq"] for line in lines(home.ok("stream", "tail", *options))]


def test_all_generations_are_one_topic(live: Home) -> None:
    assert seqs(live) == [*range(21)]
    assert seqs(live, "--limit", "7") == [*range(14, 21)]
    assert seqs(live, "--from", "2025-01-01", "--limit", "7") == [*range(7)]
    assert seqs(live, "--topic", SECOND) == [*range(0, 20, 2), 20]
    raw = lines(live.ok("stream", "tail", "--raw"))
    assert {line["topic"] for line in raw} == {LIVE, SECOND}


def test_a_partition_is_that_of_every_generation_that_has_it(live: Home) -> None:
    assert seqs(live, "--partition", "1") == [*range(1, 20, 3)]
    assert seqs(live, "--partition", "4") == [20]
    error = live.error("stream", "tail", "--partition", "5")
    assert isinstance(error, UsageError)
    assert "topic 'mdp.events-g2' has 0 to 4" in str(error)


def test_an_offset_is_one_of_the_topic_of_that_name(live: Home) -> None:
    first = lines(live.ok("stream", "tail", "--partition", "1", "--raw"))[0]
    options = ("--partition", "1", "--from", str(first["offset"]))
    assert seqs(live, *options) == [1, 7, 13, 19]


def test_the_registry_is_shown_as_what_it_is(live: Home) -> None:
    found = lines(live.ok("stream", "tail", "--topic", "mdp.events-generations"))
    assert [(line["generation"], line["topic"], line["partitions"]) for line in found] == [
        (1, LIVE, 3),
        (2, SECOND, 5),
    ]
    assert found[1]["begins"].endswith("Z")

    async def break_it() -> None:
        async with open_backends(live.settings()) as backends:
            await backends.bus.append("mdp.events-generations", [Entry(0, b"?")])

    asyncio.run(break_it())
    with_raw = lines(live.ok("stream", "tail", "--topic", "mdp.events-generations", "--raw"))
    assert with_raw[-1]["payload"] == "?"


def test_a_generation_that_begins_meanwhile_is_followed(live: Home) -> None:
    command = [*COMMAND, "tail", "--from", "2025-01-01", "--limit", "24", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        found = [json.loads(running.stdout.readline())["seq"] for _ in range(21)]
        assert found == [*range(21)]
        append(live, (LIVE, 0, 30))
        assert json.loads(running.stdout.readline())["seq"] == 30
        change(live, 2)
        append(live, (THIRD, 1, 31), (SECOND, 2, 32))
        last = {json.loads(running.stdout.readline())["seq"] for _ in range(2)}
        assert running.wait(10) == 0  # with the last line that was wanted
        assert running.stderr.read() == b""
    assert last == {31, 32}


def test_one_that_has_no_such_partition_is_passed_over(live: Home) -> None:
    command = [*COMMAND, "tail", "--partition", "4", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert json.loads(running.stdout.readline())["seq"] == 20
        change(live, 2)
        append(live, (THIRD, 1, 31))
        change(live, 6)
        append(live, ("mdp.events-g4", 4, 32))
        assert json.loads(running.stdout.readline())["seq"] == 32
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 0
        assert running.stderr.read() == b""


@pytest.mark.parametrize("error", [TransientError("away"), LogLostError("gone")])
def test_what_breaks_in_the_middle_is_gone_on_with(
    live: Home, monkeypatch: pytest.MonkeyPatch, error: MdpError
) -> None:
    poll, calls = EmbeddedBus.poll, 0

    async def broken(self: EmbeddedBus, topic: str, *arguments: Any) -> dict[int, list[Record]]:
        nonlocal calls
        calls += topic == LIVE
        if calls == 3:
            calls += 1
            raise error
        return await poll(self, topic, *arguments)

    monkeypatch.setattr(EmbeddedBus, "poll", broken)
    options = ("--from", "2025-01-01", "--limit", "21", "--follow")
    assert sorted(seqs(live, *options)) == [*range(21)]


def rows(home: Home, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        home.ok("stream", "groups", "--format", "json", *options)
    )
    return found


def test_groups_of_the_live_topic_are_those_of_all_generations(live: Home) -> None:
    found = rows(live, "--topic", LIVE)
    assert [row["topic"] for row in found] == [LIVE] * 3 + [SECOND] * 5
    assert sum(row["unread"] for row in found) == 21
    assert {row["topic"] for row in rows(live, "--topic", SECOND)} == {SECOND}
    failed = live.run("stream", "groups", "--topic", LIVE, "--check")
    assert isinstance(failed.exception, MdpError)
    assert "partition 4 of mdp.events-g2 has unread input and no owner" in failed.stderr


def test_a_group_that_reads_one_generation_owes_the_others(live: Home) -> None:
    archive = f"mdp-consumers{GROUP_SUFFIX}"
    assert {row["group"] for row in rows(live)} == {"mdp-consumers"}
    live.ok("stream", "archive", "--once")
    change(live, 2)
    append(live, (THIRD, 1, 40))
    mine = [row for row in rows(live, "--topic", LIVE) if row["group"] == archive]
    assert len(mine) == len(rows(live, "--group", archive, "--topic", LIVE)) == 3 + 5 + 2
    assert {row["topic"] for row in mine} == {LIVE, SECOND, THIRD}
    assert [row["topic"] for row in mine if row["unread"]] == [THIRD]
