"""``mdp stream repartition``: another number of partitions for the live topic, while feeds run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_core.contracts.bus import Bus

_PARTITIONS_MAX = 1024


def repartition(
    partitions: Annotated[int, typer.Option(help="The new number of partitions.")],
    at: Annotated[
        str | None,
        typer.Option(
            "--at", help="ISO time, UTC, from which on events are spread anew; default: soon."
        ),
    ] = None,
    config: _output.ConfigOption = None,
) -> None:
    """Spread the live topic's symbols among another number of partitions from a time on.

    Feeds and workers go on and pick it up by themselves. That time is a bound of all windows:
    with windows of a day, the next midnight UTC.
    """
    begins = _output.parse_when(at, "--at")
    settings = _output.load_settings(config)
    typer.echo(_output.run_async(_repartition(settings, partitions, begins)))


async def _repartition(settings: Settings, partitions: int, at: int | None) -> str:
    from market_data_core.clock import SystemClock
    from market_data_core.errors import UsageError
    from market_data_core.events import format_ts
    from market_data_core.intervals import NS_PER_MS
    from market_data_pipeline.backends import open_bus
    from market_data_pipeline.generations import Generations, lead_ns

    if not 1 <= partitions <= _PARTITIONS_MAX:
        msg = f"--partitions {partitions} is not a number from 1 to {_PARTITIONS_MAX}"
        raise UsageError(msg)
    bus, name, clock = open_bus(settings), settings.bus.events_topic, SystemClock()
    try:
        if await bus.find_topic(name) is None:
            msg = f"there is no topic {name!r} yet; set bus.partitions to {partitions} instead"
            raise UsageError(msg)
        generations = Generations(bus, name, clock)
        timeline = await generations.look(settings.bus.partitions)
        newest = timeline.newest
        begun = newest.from_ts <= clock.now_ns()
        if newest.partitions == partitions and await _made_so(bus, newest.topic, partitions):
            since = "" if begun else f", from {format_ts(newest.from_ts)} on"
            return f"nothing to do: {name} is spread among {partitions} partitions{since}"
        if not begun:
            msg = (
                f"a change to {newest.partitions} partitions begins at "
                f"{format_ts(newest.from_ts)}; wait for it, then make this one"
            )
            raise UsageError(msg)
        begins = _begin(settings, at, clock.now_ns())
        lead = lead_ns(settings.micro_batch.max_future_ms * NS_PER_MS)
        first = timeline.generations[0].partitions
        entered = await generations.enter(partitions, begins, first, lead)
        if (entered.partitions, entered.from_ts) != (partitions, begins):
            msg = (
                f"somebody else has begun a change to {entered.partitions} partitions at "
                f"{format_ts(entered.from_ts)}; wait for it, then make this one"
            )
            raise UsageError(msg)
        return (
            f"{name}: {newest.partitions} partitions become {partitions} for events from "
            f"{format_ts(begins)} on, in topic {entered.topic}"
        )
    finally:
        await bus.close()


async def _made_so(bus: Bus, topic: str, partitions: int) -> bool:
    """Whether the topic has that number of partitions; on Kafka others may have added some."""
    info = await bus.find_topic(topic)
    return info is None or info.partitions == partitions


def _begin(settings: Settings, at: int | None, now: int) -> int:
    """When the generation begins, UTC ns.

    Raises:
        UsageError: it cannot begin `at` that time.
    """
    from market_data_core.errors import UsageError
    from market_data_core.events import format_ts
    from market_data_core.intervals import NS_PER_MS, format_interval
    from market_data_pipeline.generations import grid_ns, next_begin

    batch = settings.micro_batch
    windows, future_ns = batch.windows_ns, batch.max_future_ms * NS_PER_MS
    soonest = next_begin(now, windows, future_ns)
    if at is None:
        return soonest
    grid = grid_ns(windows)
    if at < soonest:
        msg = f"--at {format_ts(at)} is too early; the next possible time is {format_ts(soonest)}"
        raise UsageError(msg)
    if at % grid:
        following = -(-at // grid) * grid
        msg = (
            f"--at {format_ts(at)} is not a multiple of {format_interval(grid)}, in which all "
            f"windows meet; the next possible time is {format_ts(following)}"
        )
        raise UsageError(msg)
    return at
