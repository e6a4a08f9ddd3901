"""Wall-clock time as an argument, so that nothing has to wait in a test."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Source of "now"."""

    def now_ns(self) -> int:
        """UTC wall-clock time, nanoseconds since 1970."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        """UTC wall-clock time, nanoseconds since 1970."""
        return time.time_ns()


class ManualClock:
    """A clock that stands still until it is moved (tests, simulations)."""

    def __init__(self, now_ns: int) -> None:
        self.time_ns = now_ns

    def now_ns(self) -> int:
        """The time it was set to."""
        return self.time_ns

    def advance(self, by_ns: int) -> None:
        """Move forward by `by_ns` nanoseconds."""
        self.time_ns += by_ns
