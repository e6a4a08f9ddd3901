"""How groups get into PostgreSQL: all that they hold, inside one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
from psycopg import AsyncConnection

from market_data_core.contracts.store import (
    BadRow,
    Claim,
    CommitResult,
    Gap,
    Group,
    Message,
    OutboxItem,
    PartitionKey,
    WriteCounts,
)
from market_data_core.errors import FencedError
from market_data_core.tables import SIGNALS
from market_data_store.backends._outbox import MESSAGE, message_row
from market_data_store.backends._postgres_arrays import blobs, integers, moments, texts
from market_data_store.backends._postgres_bars import Frontier, write_bars
from market_data_store.backends._postgres_records import upsert_rows
from market_data_store.backends._postgres_rows import NEW, UNCHANGED, UPDATED, Rows

MINE = "consumer_group = %s AND topic = %s AND partition = %s"
# in the order of the key, so that no two transactions wait for each other
_LOCK = """SELECT p.consumer_group, p.topic, p.partition, p.token, p.sequence FROM partitions AS p
    JOIN unnest(%s, %s, %s) AS k (consumer_group, topic, partition)
    ON p.consumer_group = k.consumer_group AND p.topic = k.topic AND p.partition = k.partition
    ORDER BY 1, 2, 3 FOR NO KEY UPDATE OF p"""
_MOVE = f"""UPDATE partitions SET sequence = sequence + 1, checkpoint = %s, heartbeat = %s
    WHERE {MINE} AND token = %s AND sequence = %s"""
_SEND = f"""INSERT INTO outbox (consumer_group, topic, partition, {MESSAGE})
    SELECT consumer_group, topic, partition, {MESSAGE}
    FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) WITH ORDINALITY
    AS m (consumer_group, topic, partition, {MESSAGE}, number) ORDER BY number RETURNING id"""
_ARRAYS: tuple[Callable[[Any], Any], ...] = (
    texts,
    texts,
    integers,
    texts,
    texts,
    blobs,
    *[integers] * 2,
    texts,
    *[integers] * 2,
)
_GAPS = """INSERT INTO gaps (provider, symbol, from_ts, to_ts, cause, state, detail, created_at)
    SELECT g.provider, g.symbol, g.from_ts, g.to_ts, g.cause, 'open', g.detail, n.now
    FROM unnest(%s, %s, %s, %s, %s, %s) WITH ORDINALITY
    AS g (provider, symbol, from_ts, to_ts, cause, detail, number), unnest(%s) AS n (now)
    ORDER BY number ON CONFLICT DO NOTHING"""


@dataclass(slots=True)
class _Work:
    """A group, and what became of its bars: (batch, row) of those to publish, and of the bad."""

    group: Group
    told: dict[int, list[int]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)


async def commit_groups(
    db: AsyncConnection[Any],
    groups: Sequence[Group],
    guard: Claim | None,
    now: int,
    frontier: Frontier,
) -> CommitResult:
    """Write all groups inside the open transaction; errors undo the whole of it.

    Raises:
        FencedError: a claim no longer holds.
        RejectedError: a signal can never be stored.
    """
    result = CommitResult()
    await _require_claims(db, groups, guard)
    work = [_Work(group) for group in groups]
    result.counts = await _write_bars(db, work, now, frontier)
    signals = [signal for group in groups for signal in group.signals]
    if signals:
        result.signals = await upsert_rows(db, SIGNALS, signals, now // 1000)
    if work:
        await _finish(db, work, now, result)
    gaps = [gap for group in groups for gap in group.gaps]
    if gaps:
        await _enter(db, gaps, now)
    return result


async def _require_claims(
    db: AsyncConnection[Any], groups: Sequence[Group], guard: Claim | None
) -> None:
    """Lock the partitions' rows until the transaction ends, and look whether they are ours."""
    claims = [group.claim for group in groups]
    keys = {claim.key for claim in (*claims, *((guard,) if guard else ()))}
    if not keys:
        return
    cursor = await db.execute(
        _LOCK,
        (
            texts(key.group for key in keys),
            texts(key.topic for key in keys),
            integers(np.array([key.partition for key in keys])),
        ),
    )
    held = {PartitionKey(*row[:3]): tuple(row[3:]) for row in await cursor.fetchall()}
    if guard:
        require(held.get(guard.key, (None,))[0] == guard.token, guard)
    for claim in claims:
        require(held.get(claim.key) == (claim.token, claim.sequence), claim)


async def _write_bars(
    db: AsyncConnection[Any], work: list[_Work], now: int, frontier: Frontier
) -> WriteCounts:
    """Write the bars of all groups as one table, and tell each group what became of its own."""
    origin = [(one, i) for one in work for i in range(len(one.group.bars))]
    rows = Rows([batch for one in work for batch in one.group.bars])
    if not len(rows):
        return rows.counts()
    await write_bars(db, rows, now // 1000, frontier)
    all_told = np.array([one.group.tells_all for one, _ in origin], bool)[rows.batch]
    told = (rows.fate == NEW) | (rows.fate == UPDATED) | (all_told & (rows.fate == UNCHANGED))
    for number in np.unique(rows.batch[told]).tolist():
        one, i = origin[number]
        one.told[i] = np.sort(rows.row[told & (rows.batch == number)]).tolist()
    for at, error in rows.errors.items():
        one, i = origin[rows.batch[at]]
        one.bad.append(BadRow(i, int(rows.row[at]), error))
    for one in work:
        one.bad.sort(key=attrgetter("batch", "row"))
    return rows.counts()


async def _bar_messages(db: AsyncConnection[Any], work: list[_Work]) -> list[list[Message]]:
    """What to publish of each group's bars; versions are drawn after the bars are locked."""
    needed = sum(len(one.told) for one in work if one.group.bars_topic)
    versions: Iterator[int] = iter(())
    if needed:
        cursor = await db.execute(
            "SELECT nextval('bars_version') FROM generate_series(1, %s)", (needed,)
        )
        versions = iter(sorted(version for (version,) in await cursor.fetchall()))
    return [_messages(one, versions) if one.group.bars_topic else [] for one in work]


def _messages(one: _Work, versions: Iterator[int]) -> list[Message]:
    claim, key = one.group.claim, one.group.claim.key
    origin = f"{key.group}/{key.topic}/{key.partition}/{claim.token}/{claim.sequence}"
    messages = []
    for i, rows in sorted(one.told.items()):
        batch = one.group.bars[i]
        told = batch if len(rows) == len(batch) else batch.take(np.array(rows, int))
        messages.append(
            Message(
                one.group.bars_topic,
                f"{origin}/bars/{i}",
                told.encode(next(versions)),
                len(told),
                provider=told.provider,
                min_ts=int(told.ts.min()),
                max_ts=int(told.ts.max()),
            )
        )
    return messages


async def _finish(
    db: AsyncConnection[Any], work: list[_Work], now: int, result: CommitResult
) -> None:
    """Move the partitions' positions and put their messages into the outbox."""
    moves: list[tuple[Any, ...]] = []
    sent: list[tuple[Any, ...]] = []
    items: list[tuple[int, Message]] = []
    for one, messages in zip(work, await _bar_messages(db, work), strict=True):
        claim, mine = one.group.claim, row_of(one.group.claim.key)
        checkpoint, more = one.group.finish(one.bad)
        if one.bad:
            result.bad[claim.key.partition] = one.bad
        moves.append((checkpoint, now, *mine, claim.token, claim.sequence))
        for message in (*messages, *more):
            sent.append((*mine, *message_row(message)))
            items.append((claim.key.partition, message))
    async with db.cursor() as cursor:
        await cursor.executemany(_MOVE, moves)
        if items:
            columns = zip(*sent, strict=True)
            arrays = [pack(column) for pack, column in zip(_ARRAYS, columns, strict=True)]
            await cursor.execute(_SEND, arrays)
            numbers = sorted(number for (number,) in await cursor.fetchall())
            for number, item in zip(numbers, items, strict=True):
                result.outbox.append(OutboxItem(number, *item))


async def _enter(db: AsyncConnection[Any], gaps: Sequence[Gap], now: int) -> None:
    """Put gaps into the ledger, rounded outward to whole microseconds."""
    values = (
        texts(gap.provider for gap in gaps),
        texts(gap.symbol for gap in gaps),
        moments(np.array([gap.from_ts // 1000 for gap in gaps])),
        moments(np.array([-(-gap.to_ts // 1000) for gap in gaps])),
        texts(gap.cause for gap in gaps),
        texts(gap.detail for gap in gaps),
        moments(np.array([now // 1000])),
    )
    await db.execute(_GAPS, values)


def row_of(key: PartitionKey) -> tuple[str, str, int]:
    """The values that :data:`MINE` asks for."""
    return key.group, key.topic, key.partition


def require(holds: bool, claim: Claim) -> None:
    """Raise FencedError if the claim does not hold."""
    if not holds:
        msg = f"partition {claim.key.partition} of {claim.key.topic} has a new owner"
        raise FencedError(msg, claim.key.partition)
