"""A store in memory, faithful to its contract, and processes that can die."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from market_data_core.bars import BarBatch
from market_data_core.clock import ManualClock
from market_data_core.contracts.store import (
    Claim,
    CommitResult,
    Gap,
    Group,
    Message,
    OutboxItem,
    PartitionKey,
    PartitionStatus,
)
from market_data_core.errors import FencedError, TransientError
from market_data_core.testing.oracle import BarKey, OracleBar, oracle_bars
from market_data_pipeline.windows.checkpoint import decode_checkpoint

StoredBars = dict[tuple[str, BarKey], OracleBar]
"""(interval, (provider, symbol, start)) -> values."""


def bits(bar: OracleBar) -> tuple[bytes | int | None, ...]:
    """The bar's values in a form that is equal only where every bit is."""
    return tuple(struct.pack("<d", v) if isinstance(v, float) else v for v in bar)


@dataclass(slots=True)
class _Row:
    token: int = 0
    owner: str = ""
    heartbeat: int = 0
    sequence: int = 0
    checkpoint: bytes | None = None


@dataclass(slots=True)
class MemoryStore:
    """Implements the half of a store that holds positions; each commit keeps the equation.

    Attributes:
        fails: what happens to the next commits: "before" (not done), "after" (done, answer lost).
        base: interval whose trade counts have to add up to `stored`; "" for no check.
    """

    clock: ManualClock
    base: str = ""
    fails: list[str] = field(default_factory=list)
    rows: dict[PartitionKey, _Row] = field(default_factory=dict)
    members: dict[tuple[str, str, str], int] = field(default_factory=dict)
    kept: StoredBars = field(default_factory=dict)
    states: dict[tuple[str, BarKey], str] = field(default_factory=dict)
    outgoing: dict[int, tuple[PartitionKey, Message]] = field(default_factory=dict)
    keys: Counter[str] = field(default_factory=Counter)
    ledger: list[Gap] = field(default_factory=list)
    ids: int = 0

    async def heartbeat(
        self, group: str, topic: str, member: str, lease_ns: int, owned: Mapping[int, int]
    ) -> list[str]:
        now = self.clock.now_ns()
        self.members = {k: t for k, t in self.members.items() if t >= now - lease_ns}
        self.members[group, topic, member] = now
        for p, token in owned.items():
            row = self.rows[PartitionKey(group, topic, p)]
            if (row.token, row.owner) == (token, member):
                row.heartbeat = now
        return sorted(m for g, t, m in self.members if (g, t) == (group, topic))

    async def leave(self, group: str, topic: str, member: str) -> None:
        self.members.pop((group, topic, member), None)
        for key, row in self.rows.items():
            if (key.group, key.topic, row.owner) == (group, topic, member):
                row.owner, row.heartbeat = "", 0

    async def claim(self, key: PartitionKey, member: str, lease_ns: int) -> Claim | None:
        row = self.rows.setdefault(key, _Row())
        now = self.clock.now_ns()
        if row.owner not in ("", member) and row.heartbeat >= now - lease_ns:
            return None
        row.token, row.owner, row.heartbeat = row.token + 1, member, now
        return Claim(key, row.token, row.sequence, row.checkpoint)

    async def release(self, claim: Claim) -> None:
        row = self.rows[claim.key]
        if row.token == claim.token:
            row.owner, row.heartbeat = "", 0

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        await asyncio.sleep(0)
        fail = self.fails.pop(0) if self.fails and groups else ""
        if fail == "before":
            raise TransientError("the connection broke before the commit")
        for claim in (*(g.claim for g in groups), *([guard] if guard else ())):
            row = self.rows[claim.key]
            moved = claim is not guard and row.sequence != claim.sequence
            if row.token != claim.token or moved:
                raise FencedError("another owner", claim.key.partition)
        result = CommitResult()
        for group in groups:
            self._write(group, result)
        for number in published:
            self.outgoing.pop(number, None)
        self._check()
        if fail == "after":
            raise TransientError("the connection broke after the commit")
        return result

    def _write(self, group: Group, result: CommitResult) -> None:
        for batch in group.bars:
            self._upsert(batch, result)
        checkpoint, messages = group.finish([])
        row = self.rows[group.claim.key]
        row.checkpoint, row.sequence = checkpoint, row.sequence + 1
        self.ledger += group.gaps
        for message in messages:
            self.ids += 1
            self.keys[message.key] += 1
            self.outgoing[self.ids] = group.claim.key, message
            result.outbox.append(OutboxItem(self.ids, group.claim.key.partition, message))

    def _upsert(self, batch: BarBatch, result: CommitResult) -> None:
        found = oracle_bars(batch)
        assert len(found) == len(batch), "a batch holds one bar twice"
        for key, bar in found.items():
            full, old = (batch.interval, key), self.kept.get((batch.interval, key))
            healed = self.states.get(full) == "gap" and batch.state != "gap"
            if old is None:
                result.counts.inserted += 1
            elif bits(old) == bits(bar) and not healed:
                result.counts.unchanged += 1
                continue
            elif bar.trade_count < old.trade_count and not healed:
                result.counts.kept += 1
                continue
            else:
                result.counts.updated += 1
            self.kept[full], self.states[full] = bar, batch.state

    def _check(self) -> None:
        stored = 0
        for row in self.rows.values():
            if row.checkpoint:
                counts = decode_checkpoint(row.checkpoint).counts
                assert counts.holds(), counts
                stored += counts.stored
        if self.base:
            bars = [
                b.trade_count for (interval, _), b in self.kept.items() if interval == self.base
            ]
            assert stored == sum(bars), (stored, bars)

    async def outbox(self, group: str, topic: str, partition: int) -> list[OutboxItem]:
        key = PartitionKey(group, topic, partition)
        return [OutboxItem(i, partition, m) for i, (k, m) in self.outgoing.items() if k == key]

    async def status(
        self, group: str | None = None, topic: str | None = None
    ) -> list[PartitionStatus]:
        return [
            PartitionStatus(k, r.token, r.owner, r.heartbeat, r.sequence, r.checkpoint)
            for k, r in self.rows.items()
            if k.group == (group or k.group) and k.topic == (topic or k.topic)
        ]

    async def forget(self, group: str, topic: str) -> None:
        self.rows = {k: r for k, r in self.rows.items() if (k.group, k.topic) != (group, topic)}

    async def ping(self) -> None:
        return


class Crash(Exception):
    """The process is dead: nothing that it calls does anything any more."""


class Life:
    """A process's life, measured in calls to the outside world.

    Args:
        calls: how many calls and answers it lives to see; endless if negative.
        only: names of the methods whose calls count; all of them if empty.
    """

    def __init__(self, calls: int = -1, only: tuple[str, ...] = ()) -> None:
        self.left, self._only = calls, only

    def step(self, name: str) -> None:
        """A call or its answer."""
        if self.left == 0:
            raise Crash
        self.left -= not self._only or name in self._only


class Mortal:
    """A bus or store as one process sees it; it can die before a call, or before its answer."""

    def __init__(self, inner: Any, life: Life) -> None:
        self._inner, self._life = inner, life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._life.step(name)
            answer = await method(*args, **kwargs)
            self._life.step(name)
            return answer

        return call
