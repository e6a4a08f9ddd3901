"""Groups of a micro-batcher on their way through the write coordinator.

Groups only ever wait: they are neither dropped nor set aside, since the log still holds what they
were made of. Whatever waiting does not heal is told to whoever gave them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from market_data_core.contracts.store import Claim, CommitResult, Group, Positions
from market_data_core.errors import TransientError
from market_data_store.coordinator import (
    CircuitBreaker,
    FeedbackSink,
    RetryPolicy,
    WriteCoordinator,
)

_CLOSING_S = 1.0
"""For a commit under way when its owner fails; one that takes longer is looked up later."""


class GroupWrite:
    """Groups that are one transaction; one row of the queue, whatever they hold.

    Attributes:
        tried: whether a commit was begun whose outcome is not known.
        done: the outcome.
    """

    def __init__(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None
    ) -> None:
        self.groups, self.published, self.guard = groups, published, guard
        self.tried = False
        self.done: asyncio.Future[CommitResult] = asyncio.get_running_loop().create_future()


class GroupSink:
    """Commits groups; raises only what may pass, everything else is the groups' outcome.

    Args:
        store: where groups go.
        timed: told how long each attempt took, in seconds.
    """

    def __init__(self, store: Positions, timed: Callable[[float], None]) -> None:
        self._store, self._timed = store, timed

    async def ping(self) -> None:
        """Raises while the store cannot be written."""
        await self._store.ping()

    async def write(self, batch: Sequence[GroupWrite]) -> None:
        """Commit one after the other; those that have an outcome already are passed over.

        Raises:
            TransientError: the store cannot be used now.
        """
        for item in batch:
            if not item.done.done():
                await self._settle(item)

    async def _settle(self, item: GroupWrite) -> None:
        try:
            result = await self._commit(item)
        except TransientError:
            raise
        except Exception as error:  # fenced off, damaged: for the owner to deal with
            if not item.done.done():
                item.done.set_exception(error)
        else:
            if not item.done.done():  # unless its owner has gone
                item.done.set_result(result)

    async def _commit(self, item: GroupWrite) -> CommitResult:
        if item.tried and (found := await self._already_committed(item.groups)):
            return found
        item.tried = True
        began = perf_counter()
        try:
            return await self._store.commit(item.groups, item.published, item.guard)
        finally:
            self._timed(perf_counter() - began)

    async def _already_committed(self, groups: Sequence[Group]) -> CommitResult | None:
        """What can be known of a commit whose answer was lost; None if it did not happen.

        The groups are one transaction, so any of them that nobody took over since tells of all.
        What was done to bars and signals is not known, except which bars were refused.
        """
        if not groups:
            return None
        key = groups[0].claim.key
        rows = {row.key: row for row in await self._store.status(key.group, key.topic)}
        ours = [g for g in groups if (row := rows.get(g.claim.key)) and row.token == g.claim.token]
        if not ours or rows[ours[0].claim.key].sequence == ours[0].claim.sequence:
            return None
        result = CommitResult()
        for group in ours:
            key = group.claim.key
            bad = group.refused(rows[key].checkpoint or b"")
            if bad:
                result.bad[key.partition] = list(bad)
                result.counts.bad += len(bad)
            result.outbox += await self._store.outbox(key.group, key.topic, key.partition)
        return result


class _LeftToTheLog:
    """What was not committed when its owner ended is read again by the next one."""

    path = Path("the log")

    async def save_all(
        self,
        failed: Sequence[tuple[Sequence[GroupWrite], BaseException | str]],
        _metadata: Mapping[str, Any] | None = None,
    ) -> None:
        for items, error in failed:
            for item in items:
                if not item.done.done():
                    item.done.set_exception(TransientError(f"not committed: {error}"))
                    item.done.exception()  # nobody may be waiting any more


class CoordinatedCommits:
    """Implements :class:`market_data_core.contracts.store.Commits` by a write coordinator.

    Args:
        store: where groups go.
        coord_id: the coordinator's name in metrics and feedback.
        capacity: rows from which it counts as full.
        feedback: who is told how full it is.
        timed: told how long each attempt to commit took, in seconds.
        retry: how soon to try again.
    """

    def __init__(
        self,
        store: Positions,
        coord_id: str,
        *,
        capacity: int = 20_000,
        feedback: Sequence[FeedbackSink] = (),
        timed: Callable[[float], None] = lambda _: None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._coordinator = WriteCoordinator[GroupWrite](
            sink=GroupSink(store, timed),
            capacity=capacity,
            workers=1,
            batch_size=1,  # whatever is given is due at once
            retry_policy=retry,
            circuit_breaker=CircuitBreaker(),
            dlq=_LeftToTheLog(),
            coord_id=coord_id,
            drain_timeout=_CLOSING_S,
            feedback=feedback,
        )

    async def __aenter__(self) -> CoordinatedCommits:
        await self._coordinator.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hold(0)  # or others would go on waiting for rows that nobody holds any more
        await self._coordinator.close()

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        """Commit the groups in one transaction, after whatever was given before.

        Raises:
            FencedError: a claim no longer holds; nothing was written.
            RejectedError: a signal can never be stored; nothing was written.
        """
        item = GroupWrite(groups, published, guard)
        await self._coordinator.submit(item)
        return await item.done

    def hold(self, rows: int) -> None:
        """So many rows wait for earlier ones to be committed."""
        self._coordinator.hold(rows)
