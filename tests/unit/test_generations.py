"""Generations of the live topic: who knows of them when, and what belongs where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from market_data_core.clock import ManualClock
from market_data_core.errors import DamagedFileError, UsageError
from market_data_core.events import make_batch
from market_data_core.records import Entry
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.generations import (
    Generations,
    grid_ns,
    lead_ns,
    next_begin,
    registry_topic,
)
from market_data_pipeline.timeline import Generation, Timeline
from market_data_pipeline.windows.assigner import FOREVER, NEVER

S = 10**9
T = 1_700_000_000 * S
DAY = 86_400 * S
LEAD = lead_ns(S)
EVENTS = "mdp.events"
REGISTRY = registry_topic(EVENTS)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T)


@pytest.fixture
async def bus(tmp_path: Path, clock: ManualClock) -> AsyncIterator[EmbeddedBus]:
    opened = EmbeddedBus(tmp_path, clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
async def running(bus: EmbeddedBus, clock: ManualClock) -> Generations:
    """What a process knows that was there before any change."""
    known = Generations(bus, EVENTS, clock)
    await known.open(4)
    return known


async def change(
    bus: EmbeddedBus, clock: ManualClock, partitions: int, begins: int, first: int = 4
) -> Generation:
    operator = Generations(bus, EVENTS, clock)
    await operator.look(first)
    return await operator.enter(partitions, begins, first, LEAD)


def count(known: Generations) -> int:
    return len(known.timeline.generations)


# ---- when a generation begins -----------------------------------------------------------------


@pytest.mark.parametrize("windows", [(S,), (2 * S, 3 * S), (2 * S, 60 * S), (S, DAY)])
@pytest.mark.parametrize("after", [0, 1, S, DAY // 2])
def test_a_generation_begins_where_all_windows_meet_and_late_enough(
    windows: tuple[int, ...], after: int
) -> None:
    begins = next_begin(T + after, windows, 5 * S)
    assert all(begins % length == 0 for length in windows)
    assert begins - (T + after) > lead_ns(5 * S) > 5 * S
    assert begins - grid_ns(windows) < T + after + lead_ns(5 * S) + S


def test_with_windows_of_a_day_that_is_midnight() -> None:
    assert next_begin(T, (2 * S, DAY), S) % DAY == 0


def test_an_event_belongs_to_the_generation_of_its_time() -> None:
    timeline = Timeline(Generation(1, "a", 2, NEVER, T), Generation(2, "b", 3, T, T + 9))
    timeline.generations += (Generation(3, "c", 4, T + 9),)
    times = [T - 1, T, T + 8, T + 9, T + 100, T - 5]
    assert [timeline.at(ts).number for ts in times] == [1, 2, 2, 3, 3, 1]
    batch = make_batch("p", ["A"] * 6, times, range(6), [1.0] * 6, [1.0] * 6)
    parts = {home.topic: part.seq.tolist() for home, part in timeline.split(batch)}
    assert parts == {"a": [0, 5], "b": [1, 2], "c": [3, 4]}
    ((home, whole),) = timeline.split(batch.take(np.array([2, 1])))
    assert (home.topic, whole.seq.tolist()) == ("b", [2, 1])


def test_windows_that_reach_beyond_a_generation_are_known() -> None:
    home = Generation(2, "b", 3, T, T + 6)
    assert home.whole(np.array([T - 4, T, T + 2, T + 4]), 4).tolist() == [False, True, True, False]


# ---- the registry -----------------------------------------------------------------------------


async def test_who_only_looks_creates_nothing(bus: EmbeddedBus, clock: ManualClock) -> None:
    timeline = await Generations(bus, EVENTS, clock).look(3)
    assert timeline.generations == (Generation(1, EVENTS, 3),)
    assert await bus.topics() == []


async def test_without_a_change_there_is_no_registry(
    bus: EmbeddedBus, running: Generations
) -> None:
    assert running.timeline.generations == (Generation(1, EVENTS, 4, NEVER, FOREVER),)
    assert [info.name for info in await bus.topics()] == [EVENTS]


async def test_a_process_learns_of_a_change_and_makes_its_topic(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    known = running.timeline
    begins = T + LEAD
    await change(bus, clock, 7, begins)
    await bus.drop_topic(f"{EVENTS}-g2")  # as if the operator had died before making it
    assert count(running) == 1
    await running.refresh()
    first, second = known.generations
    assert first == Generation(1, EVENTS, 4, NEVER, begins)
    assert second == Generation(2, f"{EVENTS}-g2", 7, begins, FOREVER)
    info = await bus.find_topic(second.topic)
    assert info is not None
    assert info.partitions == 7


async def test_a_change_counts_whose_operator_follows_one_that_died_early(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    await bus.create_topic(REGISTRY, 1)  # it died before it entered the first generation

    entered = await change(bus, clock, 7, T + LEAD)

    await running.refresh()
    fresh = Generations(bus, EVENTS, clock)
    await fresh.open(4)
    for known in (running, fresh):
        assert known.timeline.generations[1:] == (entered,)


async def test_the_registry_wins_over_the_configuration(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    await change(bus, clock, 7, T + LEAD)
    clock.advance(LEAD)
    await change(bus, clock, 2, T + 2 * LEAD)
    for configured in (4, 7, 2, 11):
        late = Generations(bus, EVENTS, clock)
        await late.open(configured)
        assert [g.partitions for g in late.timeline.generations] == [4, 7, 2]


async def test_without_a_registry_another_number_is_refused(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    with pytest.raises(UsageError, match=r"4 partitions.*says 8.*repartition --partitions 8"):
        await Generations(bus, EVENTS, clock).open(8)


async def test_of_two_operators_the_first_one_counts(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    operators = [Generations(bus, EVENTS, clock) for _ in range(3)]
    for operator in operators:
        await operator.look(4)
    entered = [
        await operator.enter(partitions, T + LEAD + wait, 4, LEAD)
        for operator, partitions, wait in zip(operators, (7, 5, 7), (0, S, 0), strict=True)
    ]
    assert entered == [Generation(2, f"{EVENTS}-g2", 7, T + LEAD)] * 3
    await running.refresh()
    assert running.timeline.newest == entered[0]
    names = [info.name for info in await bus.topics()]
    assert names == [EVENTS, f"{EVENTS}-g2", REGISTRY]


async def test_what_was_entered_too_late_counts_for_nobody(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    with pytest.raises(UsageError, match="too late"):
        await change(bus, clock, 7, T + LEAD - 1)
    await running.refresh()
    assert count(running) == 1
    assert (await change(bus, clock, 7, T + LEAD)).number == 2
    await running.refresh()
    assert running.timeline.newest.from_ts == T + LEAD


async def test_before_records_are_taken_the_registry_was_read_after_their_append(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    await change(bus, clock, 7, T + LEAD)
    await running.catch_up(T + S)  # what is so old cannot be of a generation that is not known
    assert count(running) == 1
    clock.advance(3 * S)
    await running.catch_up(T + 3 * S)
    assert count(running) == 2
    assert running.looked_at == T + 3 * S


async def test_partitions_that_others_added_are_refused_until_they_are_taken_in(
    bus: EmbeddedBus, clock: ManualClock
) -> None:
    await Generations(bus, EVENTS, clock).open(4, enter=True)
    await bus.drop_topic(EVENTS)
    await bus.create_topic(EVENTS, 6)
    with pytest.raises(UsageError, match=r"6 partitions.*with 4.*repartition --partitions 6"):
        await Generations(bus, EVENTS, clock).open(4)
    await change(bus, clock, 6, T + LEAD, first=6)
    known = Generations(bus, EVENTS, clock)
    await known.open(4)
    assert [g.partitions for g in known.timeline.generations] == [4, 6]


async def test_a_registry_that_cannot_be_read_is_told(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    await bus.create_topic(REGISTRY, 1)
    await bus.append(REGISTRY, [Entry(0, b"{")])
    with pytest.raises(DamagedFileError, match=r"mdp\.events-generations, record 0"):
        await running.refresh()


async def test_a_registry_that_lost_its_end_starts_nobody(
    bus: EmbeddedBus, clock: ManualClock, running: Generations
) -> None:
    await change(bus, clock, 7, T + LEAD)
    await bus.drop_topic(REGISTRY)
    with pytest.raises(DamagedFileError, match=r"'mdp\.events-g2' exists.*end was lost"):
        await Generations(bus, EVENTS, clock).open(4)
