from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from market_data_core.clock import ManualClock
from market_data_core.errors import TransientError, UsageError
from market_data_core.events import Rejected, make_batch
from market_data_core.records import Entry, Record
from market_data_core.wire import decode_event
from market_data_pipeline.backends import open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z
TOPIC = ("--topic", "mdp.events.a")
COMMAND = [sys.executable, "-c", "from market_data_pipeline.cli import main; main()", "stream"]


@pytest.fixture
def topic(home: Home) -> Home:
    batches = []
    for at in range(0, 300, 10):
        ts = [START + i * 10**8 for i in range(at, at + 10)]
        symbols = [("A", "B", "C")[i % 3] for i in range(at, at + 10)]
        batches.append(make_batch("feed", symbols, ts, range(at, at + 10), [1.5] * 10, [2.0] * 10))
    home.lane([Rejected("malformed", "no message", b"\xffoops"), *batches])
    return home


def lines(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def test_the_last_events_are_version_1_lines(topic: Home) -> None:
    output = topic.ok("stream", "tail", *TOPIC, "--limit", "25")

    events = [decode_event(line.encode()) for line in output.splitlines()]
    assert sorted(event.seq for event in events) == sorted({*range(275, 300)})
    assert events[0].event_id is not None


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_single_events_are_shown_the_same(home: Home, codec: str) -> None:
    batch = make_batch(
        "feed", ["A"] * 40, [START + i for i in range(40)], range(40), [1.0] * 40, [1.0] * 40
    )
    home.lane([batch], bus__codec=codec)

    found = lines(home.ok("stream", "tail", *TOPIC, "--limit", "20"))
    assert [line["seq"] for line in found] == [*range(20, 40)]


def test_a_symbol_is_found_however_far_back(topic: Home) -> None:
    found = lines(topic.ok("stream", "tail", *TOPIC, "--symbol", "b", "--limit", "1000"))

    assert [line["seq"] for line in found] == [*range(1, 300, 3)]


def test_marks_and_rejected_input_are_shown_as_such(topic: Home) -> None:
    found = lines(topic.ok("stream", "tail", *TOPIC, "--limit", "1000"))
    assert {"rejected"} == {key for line in found if "ver" not in line for key in line}
    marked = lines(topic.ok("stream", "tail", *TOPIC, "--limit", "1000", "--marks"))
    assert [line["mark"]["kind"] for line in marked[-3:]] == ["end"] * 3  # type: ignore[index]
    part = lines(topic.ok("stream", "tail", *TOPIC, "--limit", "1000", "--partition", "0"))
    assert 0 < len(part) < len(found)


def test_bars_and_letters_are_lines_too(topic: Home) -> None:
    bars = lines(topic.ok("stream", "tail", "--topic", "mdp.bars", "--limit", "3"))
    assert {"provider", "symbol", "interval", "ts", "open", "vwap", "state", "version"} < set(
        bars[0]
    )
    letters = lines(topic.ok("stream", "tail", "--topic", "mdp.dlq"))
    assert [(line["reason"], line["original"]) for line in letters] == [("malformed", r"\xffoops")]


def test_raw_records(topic: Home) -> None:
    (record,) = lines(topic.ok("stream", "tail", *TOPIC, "--limit", "1", "--raw"))

    assert set(record) == {"topic", "partition", "offset", "append_ts", "count", "payload"}


def test_from_and_until_take_offsets_and_times(topic: Home) -> None:
    first = lines(topic.ok("stream", "tail", *TOPIC, "--from", "2025-01-01", "--limit", "11"))
    assert "rejected" in first[0]
    assert sorted(int(str(line["seq"])) for line in first[1:]) == [*range(10)]
    every = lines(topic.ok("stream", "tail", *TOPIC, "--from", "2025-01-01"))
    assert len(every) == 301

    part = (*TOPIC, "--partition", "0", "--raw")
    records = lines(topic.ok("stream", "tail", *part, "--from", "0"))
    third, seventh = records[3], records[7]
    by_offset = ("--from", str(third["offset"]), "--until", str(seventh["offset"]))
    assert lines(topic.ok("stream", "tail", *part, *by_offset)) == records[3:7]
    by_time = ("--from", str(third["append_ts"]), "--until", str(seventh["append_ts"]))
    assert lines(topic.ok("stream", "tail", *part, *by_time)) == records[3:7]
    for until in ("offset", "append_ts"):
        before = ("--until", str(seventh[until]), "--limit", "2")
        assert lines(topic.ok("stream", "tail", *part, *before)) == records[5:7]


def test_a_place_that_is_none_is_told(topic: Home) -> None:
    for options, said in (
        (("--from", "5"), "add --partition, or give a time"),
        (
            ("--from", "5000", "--partition", "1"),
            "--from 5000: partition 1 of 'mdp.events.a' holds 0",
        ),
        (("--from", "yesterday"), "--from 'yesterday'"),
        (("--until", "2025-13-01"), "--until '2025-13-01'"),
        (("--until", "2025-12-01", "--follow"), "--until ends where --follow goes on"),
        (("--limit", "0"), "--limit 0"),
    ):
        error = topic.error("stream", "tail", *TOPIC, *options)
        assert isinstance(error, UsageError)
        assert said in str(error)


def test_symbols_and_feeds_are_filtered(topic: Home) -> None:
    found = lines(topic.ok("stream", "tail", *TOPIC, "--symbol", "b, C", "--limit", "1000"))
    assert {line["symbol"] for line in found} == {"B", "C"}
    assert len(found) == 200
    feed = lines(topic.ok("stream", "tail", *TOPIC, "--provider", "feed", "--limit", "1000"))
    assert len(feed) == 300
    assert topic.ok("stream", "tail", *TOPIC, "--provider", "fee") == ""
    raw = lines(topic.ok("stream", "tail", *TOPIC, "--raw", "--symbol", "B", "--limit", "1000"))
    assert sum(int(str(record["count"])) for record in raw) >= 100
    assert len({record["partition"] for record in raw}) == 1


def test_the_last_of_much_are_found_without_reading_it_all(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fill() -> None:
        clock = ManualClock(START)
        async with open_backends(home.settings(), clock) as backends:
            await backends.bus.create_topic("mdp.events.a", 1)
            for i in range(2_000):
                batch = make_batch("feed", ["A"], [START + i], [i], [1.0], [1.0])
                (payload,) = codec.encode_events(batch, "columnar")
                await backends.bus.append("mdp.events.a", [Entry(0, payload, 1, "feed", 1, 1)])
                clock.advance(10**9)

    asyncio.run(fill())
    handed_out: list[Record] = []
    poll = EmbeddedBus.poll

    async def counted(self: EmbeddedBus, *arguments: Any) -> dict[int, list[Record]]:
        found = await poll(self, *arguments)
        handed_out.extend(record for records in found.values() for record in records)
        return found

    monkeypatch.setattr(EmbeddedBus, "poll", counted)
    found = lines(home.ok("stream", "tail", *TOPIC, "--limit", "20"))
    assert [line["seq"] for line in found] == [*range(1_980, 2_000)]
    assert len(handed_out) < 100


def test_wrong_topics_and_partitions_are_answered_with_right_ones(topic: Home) -> None:
    error = topic.error("stream", "tail", "--topic", "mdp.event.a")
    assert isinstance(error, UsageError)
    assert "did you mean 'mdp.events.a'?" in str(error)
    assert "mdp.dlq" in str(error)
    assert "has 0 to 2" in str(topic.error("stream", "tail", *TOPIC, "--partition", "3"))


def test_a_reader_that_goes_leaves_no_traceback(topic: Home) -> None:
    """300 lines are more than a pipe holds, so the command is still writing when it goes."""
    command = [*COMMAND, "tail", *TOPIC, "--limit", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert json.loads(running.stdout.readline())
        running.stdout.close()
        assert running.stderr.read() == b""
        running.wait(10)


def test_follow_goes_on_until_ctrl_c(topic: Home) -> None:
    command = [*COMMAND, "tail", "--topic", "mdp.bars", "--limit", "1", "--follow"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        first = json.loads(running.stdout.readline())
        later = make_batch("feed", ["A"], [START + 10**12], [1000], [7.0], [1.0])
        topic.lane([later], "mdp.events.b")
        second = json.loads(running.stdout.readline())
        running.send_signal(signal.SIGINT)
        errors = running.stderr.read()
        assert running.wait(10) == 0
    assert first["symbol"] in "ABC"
    assert (second["symbol"], second["open"]) == ("A", 7.0)
    assert errors == b""


def test_follow_goes_on_in_a_topic_that_was_made_anew(topic: Home) -> None:
    command = [*COMMAND, "tail", *TOPIC, "--limit", "1", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        first = json.loads(running.stdout.readline())

        async def anew() -> None:
            async with open_backends(topic.settings()) as backends:
                await backends.bus.drop_topic("mdp.events.a")
                await backends.bus.create_topic("mdp.events.a", 1)
                batch = make_batch("feed", ["NEW"], [START], [7], [1.0], [1.0])
                (payload,) = codec.encode_events(batch, "columnar")
                await backends.bus.append("mdp.events.a", [Entry(0, payload, 1, "feed", 1, 1)])

        asyncio.run(anew())
        second = json.loads(running.stdout.readline())
        running.send_signal(signal.SIGINT)
        errors = running.stderr.read().decode()
        assert running.wait(10) == 0
    assert first["symbol"] in "ABC"
    assert (second["symbol"], second["seq"]) == ("NEW", 7)
    assert "mdp.events.a was made anew" in errors


def test_follow_waits_for_a_bus_that_is_away(topic: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    left = 6
    poll = EmbeddedBus.poll

    async def away(self: EmbeddedBus, *arguments: Any) -> dict[int, list[Record]]:
        nonlocal left
        left -= 1
        if left % 2:
            msg = "the bus is away"
            raise TransientError(msg)
        return await poll(self, *arguments)

    monkeypatch.setattr(EmbeddedBus, "poll", away)
    output = topic.ok("stream", "tail", *TOPIC, "--from", "2025-01-01", "--limit", "5", "--follow")
    assert len(lines(output)) == 5
    assert isinstance(topic.error("stream", "tail", *TOPIC, "--from", "2025-01-01"), TransientError)
