"""Parts of the queue, and waiting for what was in them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SHARED = 0
"""Number of the lane whose items have no key."""

_OPEN_END = 2**63


@dataclass(slots=True)
class Batch(Generic[T]):
    """Items that were taken together; ``start`` is the number of the first in its lane."""

    lane: Lane[T]
    start: int
    items: list[T]
    rows: int


@dataclass(slots=True, eq=False)
class Lane(Generic[T]):
    """A first-in-first-out part of the queue.

    Attributes:
        taken: items that have left it; with those inside it numbers the items.
        rows: of the items inside.
        sized: whether an item inside may stand for several rows.
        due: items numbered below this are to be written without waiting for a full batch.
        linger: fires when the items inside have waited long enough.
        in_flight: first number of each batch that is being written.
    """

    number: int
    items: deque[T] = field(default_factory=deque)
    taken: int = 0
    rows: int = 0
    sized: bool = False
    due: int = 0
    linger: asyncio.TimerHandle | None = None
    in_flight: set[int] = field(default_factory=set)

    @property
    def arrived(self) -> int:
        """Items that ever came in."""
        return self.taken + len(self.items)

    @property
    def finished(self) -> int:
        """Up to this number everything has left and is dealt with."""
        return min(self.in_flight, default=self.taken)


class Barrier:
    """Resolves when all items that came in between its creation and :meth:`close` are dealt with.

    Attributes:
        dropped: whether one of them was dropped by overflow.
    """

    def __init__(self, lanes: Sequence[Lane[Any]], start: Sequence[int]) -> None:
        self._lanes = lanes
        self._start = start
        self._target = [_OPEN_END] * len(lanes)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.dropped = False
        self._closed = False

    def close(self) -> None:
        """What comes in from now on is not waited for; no effect the second time."""
        if not self._closed:
            self._closed = True
            self._target = [lane.arrived for lane in self._lanes]

    def check(self) -> bool:
        """Whether it is resolved, resolving it if it can be."""
        if not self.done.done() and all(
            lane.finished >= target for lane, target in zip(self._lanes, self._target, strict=True)
        ):
            self.done.set_result(None)
        return self.done.done()

    def note_dropped(self, lane: Lane[Any], number: int) -> None:
        """An item has left by overflow."""
        at = lane.number
        self.dropped |= self._start[at] <= number < self._target[at]
