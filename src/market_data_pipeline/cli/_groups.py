"""How far consumer groups have come, by the store's checkpoints and the bus's logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from market_data_core._suggest import did_you_mean
from market_data_core.clock import SystemClock
from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import PartitionKey, PartitionStatus
from market_data_core.errors import MdpError, TransientError, UsageError
from market_data_core.intervals import NS_PER_MS
from market_data_core.records import TopicInfo
from market_data_pipeline.backends import open_bus
from market_data_pipeline.cli import _output
from market_data_pipeline.cli._topics import kind_of, read_status
from market_data_pipeline.positions import Position, groups_of, position_of

_COLUMNS = (
    "group", "topic", "partition", "state", "owner", "token", "heartbeat_ms", "sequence", "resume",
    "counted", "next", "unread", "lag_ms", "pending",
)  # fmt: skip
_NUMBERS = ("partition", *_COLUMNS[5:])
_COUNTS = ("unread", "lag_ms", "pending")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked at.

    Attributes:
        topic: None for all; the live one stands for all its generations.
        group: None for all.
        finished: recordings that are finished as well.
        check: whether something that is wrong fails.
        max_lag_ms: with `check`, the greatest lag that is not wrong; None for any.
    """

    topic: str | None
    group: str | None
    finished: bool
    check: bool
    max_lag_ms: int | None

    def covers(self, settings: Settings, key: PartitionKey) -> bool:
        """Whether a partition is one of those."""
        live = self.topic == settings.bus.events_topic
        here = kind_of(settings, key.topic) == "events" if live else self.topic in (None, key.topic)
        return here and self.group in (None, key.group)


async def show(settings: Settings, wanted: Wanted, form: str) -> None:
    """Print the groups' partitions.

    Raises:
        TransientError: the store is away.
        UsageError: nothing reads a topic of that name, or no group is called so.
        MdpError: the bus is away; or something is wrong that was to be checked.
    """
    status = await read_status(settings)
    away = ""
    bus = open_bus(settings)
    try:
        try:
            infos = {info.name: info for info in await bus.topics()}
            rows = await _rows(settings, bus, infos, status, wanted)
        except TransientError as error:
            away = f"the bus cannot be used: {error}; what is unread is not known"
            rows = await _rows(settings, None, {}, status, wanted)
    finally:
        await bus.close()
    if not rows and not away:
        _refuse_unknown(settings, status, wanted)
    if form != "table":
        _output.write_rows(rows, _COLUMNS, form)
    elif rows:
        _output.show_table(_COLUMNS, _cells(rows), right=_NUMBERS)
    elif not away:
        typer.echo("no group has read anything yet")
    if away:
        raise MdpError(away)
    if wanted.check:
        _check(rows, wanted.max_lag_ms)


def _refuse_unknown(settings: Settings, status: Sequence[PartitionStatus], wanted: Wanted) -> None:
    """Find out whether nothing is shown because a name is wrong.

    Raises:
        UsageError: it is.
    """
    keys = [row.key for row in status if not row.key.topic.startswith("@")]
    groups = {key.group for key in keys}.union(groups_of(settings.bus.group).values())
    if wanted.group is not None and wanted.group not in groups:
        msg = f"there is no group {wanted.group!r}; {did_you_mean(wanted.group, sorted(groups))}"
        raise UsageError(msg)
    if wanted.topic is not None:
        topics = sorted({key.topic for key in keys if wanted.group in (None, key.group)})
        who = f"group {wanted.group!r} does not read" if wanted.group else "no group reads"
        msg = f"{who} topic {wanted.topic!r}; {did_you_mean(wanted.topic, topics)}"
        raise UsageError(msg)


async def _rows(
    settings: Settings,
    bus: Bus | None,
    infos: Mapping[str, TopicInfo],
    status: Sequence[PartitionStatus],
    wanted: Wanted,
) -> list[Row]:
    """What is told of every partition; without a bus only what the store knows."""
    known = {row.key: row for row in status if not row.key.topic.startswith("@")}
    for key in _waiting(settings, infos, list(known), wanted):
        known.setdefault(key, PartitionStatus(key, 0, "", 0, 0, None))
    rows = []
    for key in sorted(known, key=lambda k: (k.group, k.topic, k.partition)):
        place = position_of(known[key], kind_of(settings, key.topic) == "recording_bars")
        finished = place is not None and place.finished and place.pending in (0, None)
        if wanted.covers(settings, key) and (wanted.finished or not finished):
            rows.append(await _row(settings, bus, infos.get(key.topic), known[key], place))
    return rows


def _waiting(
    settings: Settings,
    infos: Mapping[str, TopicInfo],
    known: Sequence[PartitionKey],
    wanted: Wanted,
) -> Iterator[PartitionKey]:
    """Partitions that somebody is expected to read, whether or not anybody ever has.

    The live topic's wait for the workers, for whom else has begun to read it, and for the
    archivers if it is they who are asked for; those of its bars likewise for inference.
    """
    own = groups_of(settings.bus.group)
    archivers = {own["archive"]} if wanted.group == own["archive"] else set()
    inferring = {own["infer"]} if wanted.group == own["infer"] else set()
    readers = {"events": {own["workers"], *archivers}, "bars": inferring}
    for key in known:
        readers.get(kind_of(settings, key.topic), set()).add(key.group)
    for info in infos.values():
        for group in readers.get(kind_of(settings, info.name), ()):
            for number in range(info.partitions):
                yield PartitionKey(group, info.name, number)


async def _row(
    settings: Settings,
    bus: Bus | None,
    info: TopicInfo | None,
    row: PartitionStatus,
    place: Position | None,
) -> Row:
    age_ns = SystemClock().now_ns() - row.heartbeat
    state = "free"
    if row.owner:
        lease_ns = settings.micro_batch.lease_ms * NS_PER_MS
        state = "owned" if age_ns <= lease_ns else "stale"
    elif place and place.finished and not place.pending:
        state = "finished"
    values: Row = dict.fromkeys(_COLUMNS)
    values |= {
        "group": row.key.group,
        "topic": row.key.topic,
        "partition": row.key.partition,
        "state": state,
        "owner": row.owner or None,
        "token": row.token,
        "heartbeat_ms": max(0, age_ns) // NS_PER_MS if row.heartbeat else None,
        "sequence": row.sequence,
    }
    if place:
        values |= {"resume": place.resume, "counted": place.counted, "pending": place.pending}
    if bus and info and row.key.partition < info.partitions:
        if place and place.counted is None:
            values |= await _unevaluated(bus, info, place)
        else:
            values |= await _unread(bus, info, row.key.partition, place)
    return values


async def _unread(bus: Bus, info: TopicInfo, partition: int, place: Position | None) -> Row:
    """What of a partition's log lies behind the group's position."""
    bounds = await bus.bounds(info.name, partition)
    at = bounds.first
    counted = place.counted if place and place.log_id == info.log_id else None
    if counted is not None:  # in another log the position means nothing
        at = min(max(counted, bounds.first), bounds.next)
    found: Row = {"next": bounds.next, "unread": 0, "lag_ms": 0}
    polled = await bus.poll(info.name, {partition: at}, 1, 0) if at < bounds.next else {}
    if partition in polled:
        end = await bus.received(info.name, partition, bounds.next)
        begin = await bus.received(info.name, partition, at)
        known = begin is not None and end is not None
        found["unread"] = end - begin if known else None  # type: ignore[operator]
        lag_ns = SystemClock().now_ns() - polled[partition][0].append_ts
        found["lag_ms"] = max(0, lag_ns) // NS_PER_MS
    return found


async def _unevaluated(bus: Bus, info: TopicInfo, place: Position) -> Row:
    """What of a recording's bars inference has to do: all of them, until it has done all."""
    if place.finished:
        return {"unread": 0, "lag_ms": 0}
    found = [await _unread(bus, info, number, None) for number in range(info.partitions)]
    unread = [row["unread"] for row in found]
    return {
        "unread": None if None in unread else sum(unread),
        "lag_ms": max(row["lag_ms"] for row in found),
    }


def _cells(rows: Sequence[Row]) -> list[list[object]]:
    """The rows as people read them, with a line of totals."""
    total: Row = dict.fromkeys(_COLUMNS) | {"group": "total", "partition": len(rows)}
    for name, joined in (("unread", sum), ("pending", sum), ("lag_ms", max)):
        known = [row[name] for row in rows if row[name] is not None]
        total[name] = joined(known) if known else None
    return [
        [f"{row[n]:,}" if n in _COUNTS and row[n] is not None else row[n] for n in row]
        for row in (*rows, total)
    ]


def _check(rows: Sequence[Row], max_lag_ms: int | None) -> None:
    """Say what is wrong.

    Raises:
        MdpError: something is.
    """
    wrong = 0
    for row in rows:
        where = f"{row['group']}: partition {row['partition']} of {row['topic']}"
        lag_ms = row["lag_ms"] or 0
        waits = row["unread"] or (row["unread"] is None and lag_ms)
        if waits and row["state"] not in ("owned", "finished"):
            wrong += 1
            sys.stderr.write(f"{where} has unread input and no owner ({row['state']})\n")
        if max_lag_ms is not None and lag_ms > max_lag_ms:
            wrong += 1
            sys.stderr.write(f"{where} lags by {lag_ms:,} ms\n")
    if wrong:
        msg = f"{wrong:,} of what was checked {'is' if wrong == 1 else 'are'} not as it should be"
        raise MdpError(msg)
