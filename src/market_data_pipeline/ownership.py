"""Which partitions of a topic a worker owns: its share, proven by tokens in the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Claim, PartitionKey, Positions
from market_data_core.errors import TransientError
from market_data_core.records import TopicInfo

T = TypeVar("T")
log = structlog.get_logger("ownership")

_BEATS_A_LEASE = 6
_SILENT_LEASES = 2
_WORK_MAX_S = 600.0
"""Work in one piece that takes longer is taken for stuck."""


class Retry(Protocol):
    """Waits out transient errors."""

    async def __call__(self, call: Callable[[], Awaitable[T]], /) -> T:
        """The call's result."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """What is to change in what a worker owns.

    Attributes:
        surplus: partitions to hand over.
        claims: partitions that are its own from now on.
    """

    surplus: Sequence[int] = ()
    claims: Sequence[Claim] = ()


class Ownership:
    """One member of a consumer group on one topic.

    Members share the partitions evenly, or as the bus's own group protocol says if it has one.
    Either way a token in the store proves who owns a partition, so that a process that was paused
    and lost one cannot write.

    Args:
        bus: asked for its group protocol.
        store: holds tokens and heartbeats.
        info: the topic.
        group: consumer group.
        member: this worker's name, unique in the group.
        lease_ns: how long an owner may be silent before its partitions are taken over.
        clock: wall-clock time.
        retry: waits out transient errors.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        info: TopicInfo,
        group: str,
        member: str,
        lease_ns: int,
        clock: Clock,
        retry: Retry,
    ) -> None:
        self._bus, self._store, self._info, self._clock = bus, store, info, clock
        self._group, self._member, self._lease_ns = group, member, lease_ns
        self._retry = retry
        self._finding: asyncio.Task[Change] | None = None
        self._given: Sequence[Claim] = ()
        self._beat_at = 0.0
        self._tokens: dict[int, int] = {}
        self._works_until = 0.0
        self._beside: Sequence[asyncio.Task[None]] = ()
        self._heard_at = 0.0
        self._is_member = False

    @property
    def due(self) -> bool:
        """Whether it is time for a sign of life."""
        return self._finding is None and time.monotonic() >= self._beat_at

    async def change(self, owned: Mapping[int, Claim]) -> Change:
        """Give a sign of life now and then; what is to change by what is known of the others.

        Nothing waits for the answer while anything is owned: while the store is away, reading
        goes on. Commits are fenced, whatever became of the lease meanwhile.
        """
        given, self._given = self._given, ()
        for claim in given:
            if claim.key.partition not in owned:  # it could not be taken up: nobody reads it
                await self.release(claim)
        self._tokens |= {number: claim.token for number, claim in owned.items()}
        if not self._beside:
            self._beside = [asyncio.create_task(t) for t in (self._watch(), self._beat_on())]
        if self._finding is None:
            if not self.due:
                return Change()
            self._beat_at = time.monotonic() + self._lease_ns / _BEATS_A_LEASE / 1e9
            self._finding = asyncio.create_task(self._find(frozenset(owned)))
        if owned and not self._finding.done():
            return Change()
        finding, self._finding = self._finding, None
        change = await finding
        self._given = change.claims
        return change

    async def at_work(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call that computes: meanwhile the worker says that it lives.

        Not while it waits: others may be able to do what it cannot. And not for ever: it may hang.
        """
        self._works_until = time.monotonic() + _WORK_MAX_S
        try:
            return await call()
        finally:
            self._works_until = 0.0

    async def _beat_on(self) -> None:
        """Give signs of life in the worker's place while it computes."""
        pause_s = self._lease_ns / _BEATS_A_LEASE / 1e9
        while True:
            await asyncio.sleep(pause_s)
            if self._heard_at + pause_s <= time.monotonic() < self._works_until:
                await self._beat()

    async def _beat(self) -> list[str]:
        """Give a sign of life; all members."""
        tokens = dict(self._tokens)  # one that is not valid any more keeps nothing
        members = await self._retry(
            lambda: self._store.heartbeat(
                self._group, self._info.name, self._member, self._lease_ns, tokens
            )
        )
        self._heard_at = time.monotonic()
        return members

    async def _find(self, owned: Set[int]) -> Change:
        """Give a sign of life; what is to change, with the claims made already."""
        members = await self._beat()
        assigned = await self._retry(
            lambda: self._bus.assignment(self._info.name, self._group, self._member)
        )
        self._is_member = assigned is not None
        if assigned is not None:
            missing = [p for p in sorted(assigned) if p not in owned]
            claims = await self._claim(missing, len(missing)) if missing else ()
            return Change(sorted(owned - assigned), claims)
        share, rest = divmod(self._info.partitions, len(members))
        quota = share + (members.index(self._member) < rest)
        if len(owned) > quota:
            return Change(sorted(owned)[quota:])
        if len(owned) < quota:
            others = (p for p in range(self._info.partitions) if p not in owned)
            return Change((), await self._claim(others, quota - len(owned)))
        return Change()

    async def _watch(self) -> None:
        """Let others have what the bus's protocol gives us while the store is silent for long.

        Theirs may answer, and they wait for what is ours; whatever our worker waits for meanwhile.
        When it asks for its assignment again, it joins again.
        """
        lease_s = self._lease_ns / 1e9
        while True:
            await asyncio.sleep(lease_s / _BEATS_A_LEASE)
            if self._is_member and time.monotonic() >= self._heard_at + _SILENT_LEASES * lease_s:
                self._is_member = False
                await self._leave_bus()

    async def _leave_bus(self) -> None:
        try:
            await self._bus.leave(self._info.name, self._group, self._member)
        except TransientError as error:  # the session will run out instead
            log.warning("could not leave the bus's group", error=str(error))

    async def _claim(self, numbers: Iterable[int], wanted: int) -> list[Claim]:
        """Claims on at most `wanted` of the partitions, of those that nobody holds."""
        rows = await self._retry(lambda: self._store.status(self._group, self._info.name))
        stale = self._clock.now_ns() - self._lease_ns
        held = {r.key.partition for r in rows if r.owner and r.heartbeat >= stale}
        claims = []
        for number in [n for n in numbers if n not in held][:wanted]:
            key = PartitionKey(self._group, self._info.name, number)
            claim = await self._retry(
                lambda key=key: self._store.claim(key, self._member, self._lease_ns)  # type: ignore[misc]
            )
            if claim:
                claims.append(claim)
                self._tokens[number] = claim.token
        return claims

    async def release(self, claim: Claim) -> None:
        """Hand a partition over."""
        await self._retry(lambda: self._store.release(claim))
        log.debug("partition handed over", topic=self._info.name, partition=claim.key.partition)

    async def leave(self) -> None:
        """Leave the group: what was owned is free at once."""
        left = [task for task in (self._finding, *self._beside) if task]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        try:
            await self._store.leave(self._group, self._info.name, self._member)
        except TransientError as error:  # the lease will run out instead
            log.warning("could not leave the group", error=str(error))
        await self._leave_bus()
