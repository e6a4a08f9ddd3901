"""How a group gets into SQLite: bars, checkpoint, messages and gaps, inside one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import (
    BadRow,
    Claim,
    CommitResult,
    Group,
    Message,
    OutboxItem,
    PartitionKey,
)
from market_data_core.errors import FencedError
from market_data_store.backends._outbox import MESSAGE, message_row
from market_data_store.backends._sqlite_bars import (
    Written,
    bad_rows,
    write_bars,
)
from market_data_store.sqlite_file import parts_of, row_marks

MINE = "consumer_group = ? AND topic = ? AND partition = ?"
_OUTBOX_WIDTH = 11


def commit_group(
    db: sqlite3.Connection,
    group: Group,
    now: int,
    result: CommitResult,
) -> None:
    """Write one group and add what was done to `result`; errors undo the whole transaction."""
    claim, key = group.claim, group.claim.key
    origin = f"{key.group}/{key.topic}/{key.partition}/{claim.token}/{claim.sequence}"
    bad: list[BadRow] = []
    messages: list[Message] = []
    for i, batch in enumerate(group.bars):
        written = write_bars(db, batch, now)
        result.counts.add(written.counts)
        bad += bad_rows(i, written)
        told = _told(batch, written, group.tells_all)
        if group.bars_topic and len(told):
            version = _next_version(db)
            span = int(told.ts.min()), int(told.ts.max())
            messages.append(
                Message(
                    group.bars_topic,
                    f"{origin}/bars/{i}",
                    told.encode(version),
                    len(told),
                    provider=told.provider,
                    min_ts=span[0],
                    max_ts=span[1],
                )
            )
    checkpoint, more = group.finish(bad)
    if bad:
        result.bad[key.partition] = bad
    cursor = db.execute(
        f"""UPDATE partitions SET sequence = sequence + 1, checkpoint = ?, heartbeat = ?
            WHERE {MINE} AND token = ? AND sequence = ?""",
        (checkpoint, now, *row_of(key), claim.token, claim.sequence),
    )
    require(cursor.rowcount == 1, claim)
    result.outbox += _send(db, key, [*messages, *more])
    db.executemany(
        """INSERT INTO gaps
            (provider, symbol, from_ts, to_ts, cause, state, detail, created_at)
            VALUES (?, ?, ?, ?, ?, 'open', ?, ?) ON CONFLICT DO NOTHING""",
        [(g.provider, g.symbol, g.from_ts, g.to_ts, g.cause, g.detail, now) for g in group.gaps],
    )


def _send(db: sqlite3.Connection, key: PartitionKey, messages: list[Message]) -> list[OutboxItem]:
    """Put messages into the outbox, many to a statement."""
    items: list[OutboxItem] = []
    for _, part in parts_of(messages):
        marks = row_marks(len(part), _OUTBOX_WIDTH)
        cursor = db.execute(
            f"INSERT INTO outbox (consumer_group, topic, partition, {MESSAGE}) VALUES {marks}",
            [value for message in part for value in (*row_of(key), *message_row(message))],
        )
        # nobody else writes meanwhile, so that the numbers of a statement's rows follow one another
        first = (cursor.lastrowid or 0) - len(part) + 1
        items += [OutboxItem(first + i, key.partition, m) for i, m in enumerate(part)]
    return items


def forget_messages(db: sqlite3.Connection, published: Sequence[int]) -> None:
    """Take messages out of the outbox."""
    for _, part in parts_of(published):
        db.execute(f"DELETE FROM outbox WHERE id IN {row_marks(1, len(part))}", part)


def _told(batch: BarBatch, written: Written, tells_all: bool) -> BarBatch:
    """The bars to publish."""
    if written.changed is None:
        return batch
    if tells_all:
        others = [*written.kept, *(row for row, _ in written.bad)]
        return batch.take(np.delete(np.arange(len(batch)), others)) if others else batch
    return batch.take(np.array(written.changed, int))


def row_of(key: PartitionKey) -> tuple[str, str, int]:
    """The values that :data:`MINE` asks for."""
    return key.group, key.topic, key.partition


def require(holds: bool, claim: Claim) -> None:
    """Raise FencedError if the claim does not hold."""
    if not holds:
        msg = f"partition {claim.key.partition} of {claim.key.topic} has a new owner"
        raise FencedError(msg, claim.key.partition)


def _next_version(db: sqlite3.Connection) -> int:
    (version,) = db.execute(
        """INSERT INTO sequences VALUES ('bars', 1)
            ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"""
    ).fetchone()
    return int(version)
