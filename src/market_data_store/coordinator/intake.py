"""Submitting: from callers into the queue, whatever the queue's state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from market_data_core.errors import MdpError
from market_data_store.coordinator._calls import call_safely
from market_data_store.coordinator.dead_letter import LeasedItems
from market_data_store.coordinator.lanes import SHARED, Barrier
from market_data_store.coordinator.observe import Observer
from market_data_store.coordinator.queue import WriteQueue

T = TypeVar("T")

# A row given as one of these has a length, but is one row.
_ONE_ROW = (str, bytes, bytearray, dict, tuple)


class QueueFullError(MdpError):
    """The queue is full and overflow is ``error``; the items from `accepted` on were not taken.

    Attributes:
        accepted: how many items of the call were taken.
    """

    def __init__(self, message: str, accepted: int = 0) -> None:
        super().__init__(message)
        self.accepted = accepted


class CoordinatorClosedError(MdpError):
    """The coordinator does not run (any more); the item was not taken."""


class Intake(Generic[T]):
    """The half of a coordinator that callers see.

    Args:
        coord_id: name for messages.
        capacity: rows.
        workers: how many take from the queue.
        batch_size: rows of a full batch.
        flush_interval: longest wait for a batch to fill, in seconds.
        overflow: ``block``, ``drop_oldest`` (or ``drop``) or ``error``.
        drop_callback: gets what overflow drops.
        key: of an item, None for an item without.
        callback_timeout: seconds that a callback may take.
    """

    def __init__(
        self,
        coord_id: str,
        capacity: int,
        workers: int,
        batch_size: int,
        flush_interval: float,
        overflow: str,
        drop_callback: Callable[[T], Any] | None,
        key: Callable[[T], Hashable | None] | None,
        callback_timeout: float,
    ) -> None:
        self.coord_id = coord_id
        self._overflow = "drop_oldest" if overflow == "drop" else overflow
        self._drop_callback, self._callback_timeout = drop_callback, callback_timeout
        self._key, self._worker_count = key, workers
        self._single: set[type] = set(_ONE_ROW)
        self._queue = WriteQueue[T](capacity, batch_size, flush_interval, workers, self._rows_of)
        self._breathe_after = self._credit = self._queue.batch_size
        self._observer = Observer(coord_id, workers)
        self._confirming: set[asyncio.Task[None]] = set()

    async def submit(self, item: T) -> None:
        """Take one item; returns when it is in the queue, not when it is stored.

        Raises:
            QueueFullError: overflow is ``error`` and there is no room.
            CoordinatorClosedError: the coordinator does not run.
        """
        rows = 1 if type(item) in self._single else self._rows_of(item)
        number = SHARED if self._key is None else self._lane_of(item)
        if not self._queue.offer(item, rows, number):
            await self._submit_slowly(item, rows, number)
        self._credit -= rows
        if self._credit <= 0:
            # Those who write have to get their turn from one who never waits, too.
            self._credit = self._breathe_after
            await asyncio.sleep(0)

    async def submit_many(
        self, items: Iterable[T] | Iterable[Sequence[T]] | AsyncIterable[T | Sequence[T]]
    ) -> int:
        """Take items, or lists of items, of a plain or async iterable; as :meth:`submit` each.

        The `items` of records that :meth:`DeadLetterQueue.replay` gave are confirmed there once
        all of them are stored or set aside again.

        Returns:
            How many were taken.

        Raises:
            QueueFullError: `accepted` tells how many were taken before.
            CoordinatorClosedError: likewise not all were taken.
        """
        taken = 0
        try:
            if isinstance(items, AsyncIterable):
                async for item in items:
                    taken += await self._submit_each([item])
            elif isinstance(items, LeasedItems):
                taken = await self._submit_each([cast("T", items)])
            else:
                source, more = cast("Iterator[T | Sequence[T]]", iter(items)), True
                while more:
                    chunk: list[T | Sequence[T]] = []
                    try:
                        chunk.extend(islice(source, self._queue.batch_size))
                        more = bool(chunk)
                    finally:  # what an iterable gave before it raised is taken
                        taken += await self._submit_each(chunk)
        except QueueFullError as error:
            error.accepted += taken
            raise
        return taken

    async def _submit_each(self, chunk: Sequence[T | Sequence[T]]) -> int:
        """Take items and lists of items, in order."""
        kinds = set(map(type, chunk))
        if self._key is None and kinds <= self._single:
            return await self._submit_rows(cast("list[T]", chunk))
        taken = 0
        for entry in chunk:
            if isinstance(entry, LeasedItems):
                taken += await self._submit_leased(entry)
            elif isinstance(entry, list):
                taken += await self._submit_each(entry)
            else:
                self._rows_of(cast("T", entry))  # so that the next ones of its type are known
                await self.submit(cast("T", entry))
                taken += 1
        return taken

    async def _submit_rows(self, items: list[T]) -> int:
        """Take items of one row each, as many at a time as there is room for."""
        queue, taken, total = self._queue, 0, len(items)
        while taken < total:
            size = min(queue.batch_size, total - taken)
            part = items if size == total else items[taken : taken + size]
            if queue.offer_all(part):
                self._credit -= size
            else:
                for done, item in enumerate(part):
                    try:
                        await self.submit(item)
                    except QueueFullError as error:
                        error.accepted = taken + done
                        raise
            taken += size
            if self._credit <= 0:
                self._credit = self._breathe_after
                await asyncio.sleep(0)
        return taken

    async def _submit_leased(self, items: LeasedItems[T]) -> int:
        barrier = self._queue.barrier()
        complete = False
        try:
            taken = await self._submit_each(list(items))
            complete = True
        finally:
            barrier.dropped |= not complete
            barrier.close()
            task = asyncio.get_running_loop().create_task(self._confirm(items, barrier))
            self._confirming.add(task)
            task.add_done_callback(self._confirming.discard)
        return taken

    async def _confirm(self, items: LeasedItems[T], barrier: Barrier) -> None:
        await self._queue.wait_for(barrier)
        await call_safely(
            items.release if barrier.dropped else items.confirm,
            timeout_s=self._callback_timeout,
            failed=lambda error: self._observer.callback_failed("replay", error),
        )

    async def _submit_slowly(self, item: T, rows: int, number: int) -> None:
        """The queue did not take the item at once."""
        queue = self._queue
        self._check_running()
        while not queue.offer(item, rows, number):
            self._check_running()
            if number == SHARED and self._overflow == "error":
                self._observer.refused += 1
                msg = (
                    f"coordinator {self.coord_id!r}: {queue.rows} of {queue.capacity} rows wait; "
                    "submit later, or use overflow='block'"
                )
                raise QueueFullError(msg)
            if number == SHARED and self._overflow == "drop_oldest":
                dropped = queue.drop_oldest()
                if dropped is not None:
                    await self._report_dropped(dropped)
                    continue
            await queue.put([item], rows, number)
            break

    async def _report_dropped(self, item: T) -> None:
        self._observer.dropped += 1
        if self._drop_callback is not None:
            await call_safely(
                self._drop_callback,
                item,
                timeout_s=self._callback_timeout,
                failed=lambda error: self._observer.callback_failed("drop_callback", error),
            )

    def _rows_of(self, item: T) -> int:
        kind = type(item)
        if kind not in self._single:
            if hasattr(kind, "__len__") and not issubclass(kind, _ONE_ROW):
                return max(len(cast("Any", item)), 1)
            self._single.add(kind)
        return 1

    def _lane_of(self, item: T) -> int:
        key = self._key(item) if self._key is not None else None
        return SHARED if key is None else 1 + hash(key) % self._worker_count

    def _check_running(self) -> None:
        if not self._queue.accepting:
            msg = (
                f"coordinator {self.coord_id!r} does not run; submit inside of "
                "'async with WriteCoordinator(…)'"
            )
            raise CoordinatorClosedError(msg)
