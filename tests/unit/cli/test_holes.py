"""A topic that has lost records in its middle: commands that read show what is left of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pytest
from tests.unit.cli.conftest import START

from market_data_core.deadletters import DeadLetter, encode_letters
from market_data_core.errors import LogHoleError, LogLostError
from market_data_core.events import make_batch
from market_data_core.records import Entry, Record
from market_data_pipeline import past_holes
from market_data_pipeline.backends import open_bus
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.cli._tail_topic import TopicTail

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

BEHIND = 2
"""Position of the record behind the hole."""
EVENTS = 1_234


@pytest.fixture
def torn(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Each client meets the hole before the third record of a topic once, as on Redis."""
    poll, told = EmbeddedBus.poll, set[tuple[EmbeddedBus, str]]()

    async def torn(
        self: EmbeddedBus, topic: str, positions: Mapping[int, int], most: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        found = await poll(self, topic, positions, most, timeout_s)
        for number, records in found.items():
            before = [r for r in records if r.offset < BEHIND]
            if (self, topic) not in told and before != records and positions[number] <= BEHIND:
                if before:
                    return {number: before}
                told.add((self, topic))
                raise LogHoleError("a hole", number, BEHIND, EVENTS)
        return found

    monkeypatch.setattr(EmbeddedBus, "poll", torn)
    past_holes._tell.cache_clear()
    yield home
    past_holes._tell.cache_clear()


async def append(home: Home, topic: str, *payloads: bytes) -> None:
    """Each as a record of one event."""
    bus = open_bus(home.settings())
    await bus.create_topic(topic, 1)
    await bus.append(topic, [Entry(0, payload, 1) for payload in payloads])
    await bus.close()


def events(count: int) -> list[bytes]:
    ts = [START + i for i in range(count)]
    batch = make_batch("p", ["SPY"] * count, ts, range(count), [1.0] * count, [1.0] * count)
    return list(codec.encode_events(batch, "json"))


def told(topic: str) -> str:
    return (
        f"warning: 1,234 events are missing in partition 0 of {topic} before position 2: somebody "
        "has removed them; going on behind\n"
    )


@pytest.mark.parametrize(
    "options",
    [("--limit", "9"), ("--from", "0"), ("--from", "0", "--follow", "--limit", "5")],
    ids=" ".join,
)
def test_tail_goes_on_behind_a_hole(torn: Home, options: tuple[str, ...]) -> None:
    asyncio.run(append(torn, "mdp.x", *events(5)))
    result = torn.run("stream", "tail", "--topic", "mdp.x", *options)
    assert (result.exit_code, result.stderr) == (0, told("mdp.x")), result.exception
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [*range(5)]


def test_following_goes_on_behind_a_hole(torn: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(append(torn, "mdp.x", *events(2)))
    last = TopicTail.last

    async def then_more(self: TopicTail, limit: int) -> object:
        found = await last(self, limit)
        await append(torn, "mdp.x", *events(5)[2:])
        return found

    monkeypatch.setattr(TopicTail, "last", then_more)
    shown = TopicTail.follow

    async def three(self: TopicTail, show: Callable[[str, Sequence[Record]], bool]) -> None:
        count = 0

        def counted(topic: str, records: Sequence[Record]) -> bool:
            nonlocal count
            count += len(records)
            return show(topic, records) and count < 3

        await shown(self, counted)

    monkeypatch.setattr(TopicTail, "follow", three)
    result = torn.run("stream", "tail", "--topic", "mdp.x", "--limit", "2", "--follow")
    assert (result.exit_code, result.stderr) == (0, told("mdp.x")), result.exception
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [*range(5)]


def test_lines_before_an_error_are_written(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(append(home, "mdp.x", *events(5)))
    poll = EmbeddedBus.poll

    async def lost(
        self: EmbeddedBus, topic: str, positions: Mapping[int, int], most: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        if positions[0] >= BEHIND:
            raise LogLostError("gone")
        found = await poll(self, topic, positions, most, timeout_s)
        return {0: [r for r in found[0] if r.offset < BEHIND]}

    monkeypatch.setattr(EmbeddedBus, "poll", lost)
    result = home.run("stream", "tail", "--topic", "mdp.x", "--from", "0")
    assert isinstance(result.exception, LogLostError)
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [0, 1]


def test_letters_behind_a_hole_are_shown_and_replayed(torn: Home) -> None:
    originals = events(5)
    made = [
        encode_letters([
            DeadLetter(reason="late", detail="", topic="mdp.events", partition=0, offset=number,
                       original=original, provider="p", symbol="SPY", src_ts=START + number)
        ])
        for number, original in enumerate(originals)
    ]  # fmt: skip
    asyncio.run(append(torn, "mdp.dlq", *made))
    listed = torn.run("dlq", "list", "--format", "json")
    assert (listed.exit_code, listed.stderr) == (0, told("mdp.dlq")), listed.exception
    assert [row["id"] for row in json.loads(listed.stdout)] == [f"{n}.0" for n in range(5)]
    assert torn.run("dlq", "show", "4.0").exit_code == 0
    assert torn.run("dlq", "show", "2.0").exit_code == 0
    replayed = torn.run("dlq", "replay")
    assert replayed.exit_code == 0, (replayed.output, replayed.exception)
    assert "5 letters replayed" in replayed.stdout
