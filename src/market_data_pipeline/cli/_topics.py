"""The topics of the bus, and what each of them is."""

from __future__ import annotations

import re
from collections.abc import Iterable

import typer

from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import PartitionStatus
from market_data_core.errors import MdpError, TransientError
from market_data_core.events import format_ts
from market_data_core.feedback import FEEDBACK_TOPIC
from market_data_core.records import TopicInfo
from market_data_pipeline.assembly import LETTERS_TOPIC
from market_data_pipeline.backends import missing_store, open_bus
from market_data_pipeline.cli import _log, _output
from market_data_pipeline.generations import registry_topic
from market_data_pipeline.letters import REPLAYS_TOPIC
from market_data_pipeline.positions import groups_of, position_of
from market_data_store.opening import open_ready_store

_COLUMNS = ("topic", "kind", "state", "partitions", "first_append", "last_append", "log_id")
_POSITIONS = ("topic", "partition", "first", "next", "first_append", "last_append")
_NUMBERS = ("partitions", "partition", "first", "next")
_GENERATION = re.compile(r"-g\d+")


async def show(settings: Settings, positions: bool, form: str) -> None:
    """Print the topics, or the positions of their partitions.

    Raises:
        TransientError: the bus is away.
        MdpError: the store is away, so that the states of recordings are missing.
    """
    rows: list[PartitionStatus] = []
    away = ""
    if not positions:
        try:
            rows = await read_status(settings)
        except TransientError as error:
            away = f"{error}; the states of recordings are missing"
    bus = open_bus(settings)
    try:
        infos = await bus.topics()
        if positions:
            shown = [row for info in infos for row in await _positions_of(bus, info)]
        else:
            shown = [await _row(settings, bus, info, rows) for info in infos]
    finally:
        await bus.close()
    columns = _POSITIONS if positions else _COLUMNS
    if form != "table":
        _output.write_rows(shown, columns, form)
    elif shown:
        right = [name for name in _NUMBERS if name in columns]
        _output.show_table(columns, [list(row.values()) for row in shown], right=right)
    else:
        typer.echo("no topics yet")
    if away:
        raise MdpError(away)


async def read_status(settings: Settings) -> list[PartitionStatus]:
    """The partitions' rows of all groups; none if there is no store yet, and none is made.

    Raises:
        TransientError: the store cannot be used now; the message says so.
    """
    if missing_store(settings):
        return []
    try:
        store = await open_ready_store(settings.store.uri)
        try:
            return await store.status()
        finally:
            await store.close()
    except TransientError as error:
        msg = f"the store cannot be used: {error}"
        raise TransientError(msg) from error


def kind_of(settings: Settings, name: str) -> str:
    """What a topic of that name holds, in a word."""
    bus = settings.bus
    known = {
        bus.events_topic: "events",
        bus.bars_topic: "bars",
        bus.signals_topic: "signals",
        registry_topic(bus.events_topic): "generations",
        LETTERS_TOPIC: "letters",
        REPLAYS_TOPIC: "replays",
        FEEDBACK_TOPIC: "feedback",
    }
    if name in known:
        return known[name]
    if name.startswith(f"{bus.events_topic}."):
        return "recording"
    if name.startswith(f"{bus.bars_topic}."):
        return "recording_bars"
    if name.startswith(f"{bus.signals_topic}."):
        return "recording_signals"
    if _GENERATION.fullmatch(name.removeprefix(bus.events_topic)):
        return "events"
    return "other"


async def _row(
    settings: Settings, bus: Bus, info: TopicInfo, rows: Iterable[PartitionStatus]
) -> dict[str, object]:
    kind, appended = kind_of(settings, info.name), []
    for number in range(info.partitions):
        appended += await _appended(bus, info.name, number)
    values = (
        info.name,
        kind,
        _state(settings, info, rows),
        info.partitions,
        format_ts(min(appended)) if appended else None,
        format_ts(max(appended)) if appended else None,
        info.log_id,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _state(settings: Settings, info: TopicInfo, rows: Iterable[PartitionStatus]) -> str | None:
    """How far a recording has come, or its signals have; None for other topics.

    Returns:
        ``finished``, ``waiting`` for a live feed to pass its windows, or ``unfinished``.
    """
    bus, kind = settings.bus, kind_of(settings, info.name)
    if kind == "recording":
        group, topic, partitions = bus.group, info.name, info.partitions
    elif kind == "recording_signals":  # they are worked out from all partitions of its bars at once
        lane = info.name.removeprefix(f"{bus.signals_topic}.")
        group, topic, partitions = groups_of(bus.group)["infer"], f"{bus.bars_topic}.{lane}", 1
    else:
        return None
    mine = [row for row in rows if row.key.topic == topic and row.key.group == group]
    places = [position_of(row, lane=kind == "recording_signals") for row in mine]
    known = [place for place in places if place]
    if not known:
        return None
    if len(known) < partitions or not all(place.finished for place in known):
        return "unfinished"
    return "waiting" if any(place.pending for place in known) else "finished"


async def _appended(bus: Bus, topic: str, partition: int) -> list[int]:
    """When the first and the last record of a partition were appended, UTC ns."""
    first = await _log.oldest(bus, topic, partition)
    last = await _log.newest(bus, topic, partition)
    return [record.append_ts for record in (first, last) if record]


async def _positions_of(bus: Bus, info: TopicInfo) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number in range(info.partitions):
        bounds = await bus.bounds(info.name, number)
        appended = [format_ts(ts) for ts in await _appended(bus, info.name, number)]
        first, last = (appended[0], appended[-1]) if appended else (None, None)
        values = (info.name, number, bounds.first, bounds.next, first, last)
        rows.append(dict(zip(_POSITIONS, values, strict=True)))
    return rows
