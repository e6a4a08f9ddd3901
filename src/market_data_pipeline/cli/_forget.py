"""How a consumer group that was given up is forgotten."""

from __future__ import annotations

from collections import Counter

import typer

from market_data_core._suggest import did_you_mean
from market_data_core.clock import SystemClock
from market_data_core.config import Settings
from market_data_core.contracts.store import PartitionStatus, Positions
from market_data_core.errors import MdpError, UsageError
from market_data_core.intervals import NS_PER_MS
from market_data_pipeline.backends import missing_store
from market_data_pipeline.cli import _output
from market_data_pipeline.positions import Role, role_of
from market_data_store.opening import open_ready_store

_MEANS: dict[Role, str] = {
    "archive": "an archiver of this group that is started again needs another folder",
    "infer": "inference of this group that is started again evaluates what the log of bars holds; "
    "signals that are stored stay",
}
"""What it means for who comes after."""


async def forget(settings: Settings, group: str, yes: bool) -> None:
    """Remove a group's positions, and what it has not published, after asking.

    Raises:
        UsageError: there is no such group, or it is the one that the configuration works with.
        MdpError: there is no store, or a member of the group is alive.
        TransientError: the store is away.
    """
    if group == settings.bus.group:
        msg = (
            f"{group!r} is the group of this configuration: its positions tell which events are in "
            "the bars; to give it up, set bus.redis.consumer_group to another one first"
        )
        raise UsageError(msg)
    absent = missing_store(settings)
    if absent:
        raise MdpError(absent)
    lease_ns = settings.micro_batch.lease_ms * NS_PER_MS
    store = await open_ready_store(settings.store.uri)
    try:
        rows = await _unowned(store, group, lease_ns)
        left = await _unpublished(store, rows)
        typer.echo(_told(group, rows, len(left)), err=True)
        _output.confirm(f"Forget group {group} for good?", yes)
        rows = await _unowned(store, group, lease_ns)  # the answer may have taken a while
        left = await _unpublished(store, rows)
        if left:  # first: without its positions nothing would tell whose they are
            await store.commit([], left)
        for topic in sorted({row.key.topic for row in rows}):
            await store.forget(group, topic)
    finally:
        await store.close()
    typer.echo(f"group {group} is forgotten")


async def _unowned(store: Positions, group: str, lease_ns: int) -> list[PartitionStatus]:
    """The group's partitions, none of which has a live owner.

    Raises:
        UsageError: there is no such group.
        MdpError: one has.
    """
    rows = await store.status(group)
    if not rows:
        known = sorted({row.key.group for row in await store.status()})
        msg = f"there is no group {group!r}; {did_you_mean(group, known)}"
        raise UsageError(msg)
    alive_since = SystemClock().now_ns() - lease_ns
    owned = [row for row in rows if row.owner and row.heartbeat >= alive_since]
    if owned:
        key = owned[0].key
        members = ", ".join(sorted({row.owner for row in owned}))
        msg = (
            f"group {group!r} is at work: partition {key.partition} of {key.topic} is owned by "
            f"{owned[0].owner}; stop its members first ({members})"
        )
        raise MdpError(msg)
    return rows


async def _unpublished(store: Positions, rows: list[PartitionStatus]) -> list[int]:
    """Ids of the messages that its members decided and did not publish."""
    return [
        item.id
        for row in rows
        for item in await store.outbox(row.key.group, row.key.topic, row.key.partition)
    ]


def _told(group: str, rows: list[PartitionStatus], unpublished: int) -> str:
    """What will be gone, and what that means."""
    topics = Counter(row.key.topic for row in rows)
    told = [
        f"{topic}: the position{'s' if count > 1 else ''} of {count:,} "
        f"partition{'s' if count > 1 else ''}"
        for topic, count in sorted(topics.items())
    ]
    if unpublished:
        many = f"{unpublished:,} messages that were" if unpublished > 1 else "1 message that was"
        told.append(f"{many} not published yet")
    role = role_of(group)
    return "\n".join([*told, *([_MEANS[role]] if role in _MEANS else [])])
