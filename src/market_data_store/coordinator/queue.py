"""The bounded queue between those who submit and the workers.

Rows are counted, not items. Items lie in lanes: lane 0 is shared by all workers, and each worker
has one of its own for items that bear a key. What a lane gives out is written in order, because
one worker takes from it, one batch at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from market_data_store.coordinator.lanes import SHARED, Barrier, Batch, Lane

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Waiter(Generic[T]):
    items: list[T]
    rows: int
    lane: Lane[T]
    future: asyncio.Future[None]


class WriteQueue(Generic[T]):
    """Bounded, of one event loop, without a lock and without a task for each item.

    Args:
        capacity: rows; an item of more rows is taken when the queue is empty.
        batch_size: rows that make a batch.
        flush_interval: seconds that an item waits for its batch to fill.
        workers: how many take from it.
        rows_of: rows of an item.

    Attributes:
        rows: inside now.
        held: that a submitter holds back until earlier ones are written; they count as waiting.
        upper: `crossed` is called when the queue holds at least so many rows.
        lower: `crossed` is called when an item leaves and at most so many rows stay.
        accepting: whether offers are taken.
        closed: whether workers are to end once the queue is empty.
    """

    def __init__(
        self,
        capacity: int,
        batch_size: int,
        flush_interval: float,
        workers: int,
        rows_of: Callable[[T], int],
    ) -> None:
        self.capacity = capacity
        self.batch_size = min(batch_size, capacity)
        self.rows = self.held = 0
        self.upper = capacity + 1
        self.lower = -1
        self.crossed: Callable[[], None] = lambda: None
        self.accepting = False
        self.closed = False
        self._turn = False
        self._flush_interval = flush_interval
        self._rows_of = rows_of
        self._lanes: list[Lane[T]] = [Lane(number) for number in range(workers + 1)]
        self._shared = self._lanes[SHARED]
        self._waiters: deque[_Waiter[T]] = deque()
        self._idle: dict[int, asyncio.Future[None]] = {}
        self._barriers: list[Barrier] = []

    # submitting

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._waiters)

    @property
    def depth(self) -> int:
        """Rows that wait, inside and outside."""
        return self.rows + self.held

    @property
    def arrived(self) -> int:
        """Items that ever came in."""
        return sum(lane.arrived for lane in self._lanes)

    @property
    def in_flight(self) -> int:
        """Batches that are being written."""
        return sum(len(lane.in_flight) for lane in self._lanes)

    def room(self) -> int:
        """Rows that fit now without passing those who wait."""
        return 0 if self._waiters else max(self.capacity - self.rows, 0)

    def offer(self, item: T, rows: int, number: int) -> bool:
        """Take the item into lane `number` if there is room and nobody waits for room."""
        total = self.rows + rows
        if self._waiters or (total > self.capacity and self.rows) or not self.accepting:
            return False
        lane = self._lanes[number]
        lane.items.append(item)
        if rows != 1:
            lane.sized = True
        lane.rows += rows
        self.rows = total
        if total >= self.upper:
            self.crossed()
        if lane.rows >= self.batch_size:
            if self._idle:
                self._wake(lane)
        elif lane.linger is None:
            self._start_linger(lane)
        return True

    def offer_all(self, items: list[T]) -> bool:
        """Take the items, one row each, into the shared lane if there is room for all."""
        if len(items) > self.room() or not self.accepting:
            return False
        self._append(items, len(items), self._shared)
        return True

    async def put(self, items: list[T], rows: int, number: int) -> None:
        """Wait for room, then take the items; whoever waits longest comes first.

        If this is cancelled while it waits, the items are not taken.
        """
        lane = self._lanes[number]
        if not self._waiters and self._fits(rows):
            self._append(items, rows, lane)
            return
        waiter = _Waiter(items, rows, lane, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        for each in self._lanes:  # a queue that is full of small lanes has nothing to wait for
            self._make_due(each)
        try:
            await waiter.future
        finally:
            if waiter.future.cancelled():
                self._let_in()

    def drop_oldest(self) -> T | None:
        """Remove the oldest item without a key; None if there is none."""
        lane = self._shared
        if not lane.items:
            return None
        item = lane.items.popleft()
        for barrier in self._barriers:
            barrier.note_dropped(lane, lane.taken)
        lane.taken += 1
        self._leave(lane, self._rows_of(item) if lane.sized else 1)
        self._check_barriers()
        return item

    def _fits(self, rows: int) -> bool:
        return self.rows + rows <= self.capacity or not self.rows

    def _append(self, items: list[T], rows: int, lane: Lane[T]) -> None:
        lane.items.extend(items)
        lane.sized |= rows != len(items)
        lane.rows += rows
        self.rows += rows
        if self.rows >= self.upper:
            self.crossed()
        if self._is_ready(lane):
            self._wake(lane)
        elif lane.linger is None:
            self._start_linger(lane)

    def _leave(self, lane: Lane[T], rows: int) -> None:
        lane.rows -= rows
        self.rows -= rows
        if not lane.items:
            lane.sized = False
        if self._waiters:
            self._let_in()
        if self.rows <= self.lower:
            self.crossed()

    def _let_in(self) -> None:
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.future.cancelled():
                if not self._fits(waiter.rows):
                    return
                self._append(waiter.items, waiter.rows, waiter.lane)
                waiter.future.set_result(None)
            self._waiters.popleft()

    # taking

    async def take(self, worker: int) -> Batch[T] | None:
        """The next batch for `worker` (0, 1, …), once there is a full or a due one.

        Returns:
            None when the queue is closed and holds nothing more for it.
        """
        own, shared = self._lanes[worker + 1], self._shared
        while True:
            # Turn about, so that neither lane can keep the other waiting.
            for lane in (own, shared) if self._turn else (shared, own):
                if self._is_ready(lane):
                    self._turn = not self._turn
                    return self._cut(lane)
            if self.closed:
                return None
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle[worker] = future
            try:
                await future
            finally:
                if self._idle.get(worker) is future:
                    del self._idle[worker]

    def done(self, batch: Batch[T]) -> None:
        """The batch is stored or set aside."""
        batch.lane.in_flight.discard(batch.start)
        self._check_barriers()

    def _cut(self, lane: Lane[T]) -> Batch[T]:
        items, pop = lane.items, lane.items.popleft
        if lane.sized:
            taken, rows = [pop()], 0
            rows = self._rows_of(taken[0])
            while items and rows + (more := self._rows_of(items[0])) <= self.batch_size:
                rows += more
                taken.append(pop())
        else:
            rows = min(self.batch_size, len(items))
            taken = [pop() for _ in range(rows)]
        batch = Batch(lane, lane.taken, taken, rows)
        lane.in_flight.add(lane.taken)
        lane.taken += len(taken)
        self._leave(lane, rows)
        if items:
            if self._is_ready(lane):
                self._wake(lane)
            elif lane.linger is None:
                self._start_linger(lane)
        return batch

    def _is_ready(self, lane: Lane[T]) -> bool:
        return bool(lane.items) and (
            lane.rows >= self.batch_size or lane.taken < lane.due or self.closed
        )

    def _wake(self, lane: Lane[T]) -> None:
        """Wake one idle worker that may take from the lane."""
        if not self._idle:
            return
        worker = next(iter(self._idle)) if lane.number == SHARED else lane.number - 1
        future = self._idle.pop(worker, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _start_linger(self, lane: Lane[T]) -> None:
        loop = asyncio.get_running_loop()
        lane.linger = loop.call_later(self._flush_interval, self._lingered, lane)

    def _lingered(self, lane: Lane[T]) -> None:
        lane.linger = None
        self._make_due(lane)

    def _make_due(self, lane: Lane[T]) -> None:
        lane.due = lane.arrived
        if lane.items:
            self._wake(lane)

    # waiting for all

    def barrier(self) -> Barrier:
        """A barrier that begins here; has to be closed."""
        barrier = Barrier(self._lanes, [lane.arrived for lane in self._lanes])
        self._barriers.append(barrier)
        return barrier

    async def wait_for(self, barrier: Barrier) -> None:
        """Close the barrier, and write at once what it waits for."""
        barrier.close()
        if barrier.check():
            self._check_barriers()
        for lane in self._lanes:
            self._make_due(lane)
        await asyncio.shield(barrier.done)

    async def flush(self) -> None:
        """Return when everything that is inside now is stored or set aside."""
        await self.wait_for(self.barrier())

    def drop_barriers(self) -> None:
        """What is waited for will not be written here."""
        for barrier in self._barriers:
            barrier.dropped = True

    def _check_barriers(self) -> None:
        if self._barriers:
            self._barriers = [barrier for barrier in self._barriers if not barrier.check()]

    # ending

    def close(self) -> None:
        """Take nothing more; idle workers get what is left, then None."""
        self.closed = True
        for lane in self._lanes:
            if lane.linger is not None:
                lane.linger.cancel()
                lane.linger = None
        for future in self._idle.values():
            if not future.done():
                future.set_result(None)
        self._idle.clear()

    def clear(self, refusal: Exception) -> list[T]:
        """Remove and return everything inside; those who wait for room get `refusal`."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(refusal)
        left: list[T] = []
        for lane in self._lanes:
            left += lane.items
            lane.taken += len(lane.items)
            lane.items.clear()
            self._leave(lane, lane.rows)
        self._check_barriers()
        return left
