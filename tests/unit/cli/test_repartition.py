"""``mdp stream repartition``: what it refuses, and what it says."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.cli.conftest import Home

from market_data_core.clock import SystemClock
from market_data_core.errors import UsageError
from market_data_core.events import format_ts
from market_data_core.intervals import NS_PER_S
from market_data_pipeline.backends import open_bus
from market_data_pipeline.generations import Generations

GRID = 2 * NS_PER_S  # of the configuration's only window


@pytest.fixture
def live(home: Home) -> Home:
    """A home with a live topic of eight partitions."""

    async def make() -> None:
        bus = open_bus(home.settings())
        await Generations(bus, "mdp.events", SystemClock()).open(8)
        await bus.close()

    asyncio.run(make())
    return home


def refused(home: Home, *arguments: str) -> str:
    error = home.error("stream", "repartition", *arguments)
    assert isinstance(error, UsageError)
    return str(error)


def at(seconds: int) -> int:
    """That far from now, on the grid."""
    return (SystemClock().now_ns() // GRID) * GRID + seconds * NS_PER_S


def test_a_change_is_told_with_its_time_and_made_once(live: Home) -> None:
    begins = at(60)
    arguments = ("stream", "repartition", "--partitions", "3", "--at", format_ts(begins))
    told = live.ok(*arguments)
    assert "8 partitions become 3" in told
    assert format_ts(begins) in told
    again = live.ok(*arguments)
    assert again.startswith("nothing to do: mdp.events is spread among 3 partitions, from")
    assert f"begins at {format_ts(begins)}" in refused(live, "--partitions", "5")
    assert "events-generations" in live.ok("stream", "topics")


def test_the_number_that_there_is_needs_no_change(live: Home) -> None:
    told = live.ok("stream", "repartition", "--partitions", "8")
    assert told == "nothing to do: mdp.events is spread among 8 partitions\n"


@pytest.mark.parametrize("number", ["0", "-1", "1025"])
def test_a_number_that_cannot_be_is_refused(live: Home, number: str) -> None:
    assert "1 to 1024" in refused(live, "--partitions", number)


def test_a_time_that_is_too_early_is_refused_with_the_next_possible(live: Home) -> None:
    message = refused(live, "--partitions", "3", "--at", format_ts(at(-60)))
    named = message.rpartition(" ")[2]
    assert "too early" in message
    assert "become 3" in live.ok("stream", "repartition", "--partitions", "3", "--at", named)


def test_a_time_within_a_window_is_refused_with_the_next_possible(live: Home) -> None:
    begins = at(60)
    message = refused(live, "--partitions", "3", "--at", format_ts(begins + 1_000_000))
    assert "not a multiple of 2s" in message
    assert message.endswith(format_ts(begins + GRID))


def test_a_time_that_is_none_is_refused(live: Home) -> None:
    assert "--at 'soon'" in refused(live, "--partitions", "3", "--at", "soon")


def test_without_a_topic_the_configuration_is_named(home: Home) -> None:
    assert "set bus.partitions to 3" in refused(home, "--partitions", "3")
