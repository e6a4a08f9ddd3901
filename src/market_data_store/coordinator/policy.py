"""When to try again, when to give up, and when to leave a store alone for a while."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from market_data_core.errors import MdpError, TransientError, UsageError

Verdict = Literal["transient", "permanent", "unknown"]
CircuitState = Literal["closed", "open", "half_open"]

# Classes and codes of PostgreSQL's appendix A. 25006: the server is read-only for now, as a
# standby is during a failover. 28: credentials that an operator can put right.
_TRANSIENT = ("08", "28", "40001", "40P01", "53", "55P03", "57", "58", "25006")
_PERMANENT = ("0A", "22", "23", "42")

# The exceptions of PEP 249 have no common module; drivers share their names.
_DBAPI: dict[str, Verdict] = {
    "OperationalError": "transient",
    "InterfaceError": "transient",
    "DataError": "permanent",
    "IntegrityError": "permanent",
    "ProgrammingError": "permanent",
    "NotSupportedError": "permanent",
}


def classify(error: BaseException) -> Verdict:
    """Whether writing the same rows again can help.

    By, in this order: our own error types, ``error.sqlstate``, the DB-API's error types, and
    Python's: OSError and TimeoutError are transient, ValueError and TypeError permanent.
    """
    if isinstance(error, TransientError):
        return "transient"
    if isinstance(error, MdpError):
        return "permanent"
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str) and sqlstate:
        if sqlstate.startswith(_TRANSIENT):
            return "transient"
        return "permanent" if sqlstate.startswith(_PERMANENT) else "unknown"
    if isinstance(error, OSError):  # TimeoutError is one
        return "transient"
    for kind in type(error).__mro__:
        if kind.__name__ in _DBAPI:
            return _DBAPI[kind.__name__]
    return "permanent" if isinstance(error, ValueError | TypeError) else "unknown"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a failed write is tried again.

    Attributes:
        max_attempts: attempts before the breaker is opened (transient errors) or the rows are
            given up (errors of unknown kind).
        initial_backoff_ms: pause after the first failure.
        max_backoff_ms: longest pause.
        multiplier: by which each pause is longer than the one before.
        jitter: whether to wait a random part of the pause, at least half of it, so that
            writers that failed together do not come back together.

    Raises:
        UsageError: a value that makes no sense.
    """

    max_attempts: int = 5
    initial_backoff_ms: float = 50.0
    max_backoff_ms: float = 2000.0
    multiplier: float = 2.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            msg = f"RetryPolicy: max_attempts is {self.max_attempts}; give at least 1"
            raise UsageError(msg)
        if not 0 <= self.initial_backoff_ms <= self.max_backoff_ms:
            msg = (
                f"RetryPolicy: initial_backoff_ms is {self.initial_backoff_ms} and max_backoff_ms "
                f"{self.max_backoff_ms}; give 0 <= initial_backoff_ms <= max_backoff_ms"
            )
            raise UsageError(msg)
        if self.multiplier < 1:
            msg = f"RetryPolicy: multiplier is {self.multiplier}; give at least 1"
            raise UsageError(msg)

    def backoff_s(self, failures: int) -> float:
        """Seconds to wait after `failures` (1, 2, …) failures in a row."""
        try:
            pause_ms = self.initial_backoff_ms * self.multiplier ** (failures - 1)
        except OverflowError:
            pause_ms = self.max_backoff_ms
        pause_s = min(pause_ms, self.max_backoff_ms) / 1000
        return pause_s * random.uniform(0.5, 1.0) if self.jitter else pause_s  # noqa: S311


class CircuitBreaker:
    """Lets writes through until too many fail, then one at a time until one succeeds.

    - ``closed``: everything may pass. `failure_threshold` failures in a row open it.
    - ``open``: nothing passes. It becomes half-open after `recovery_timeout`, or as soon as the
      probe says that the store answers again.
    - ``half_open``: exactly one write may pass. Its success closes the breaker, its failure
      opens it again.

    Belongs to one event loop; several coordinators of that loop may share one.

    Args:
        failure_threshold: failures in a row, over all who use the breaker.
        recovery_timeout: longest time without a try, in seconds.
        probe: asks the store cheaply whether it answers; raises if it does not. Whoever runs the
            breaker calls it while the breaker is open. None: a coordinator takes its sink's
            ``ping``, if it has one.
        probe_interval: seconds between two calls of the probe, and its time limit if that is
            longer than one second.
        monotonic: tells the time, in seconds.

    Raises:
        UsageError: a value that makes no sense.
    """

    def __init__(
        self,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        *,
        probe: Callable[[], Awaitable[object]] | None = None,
        probe_interval: float = 0.5,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if failure_threshold < 1 or recovery_timeout < 0 or probe_interval <= 0:
            msg = (
                f"CircuitBreaker: failure_threshold {failure_threshold}, recovery_timeout "
                f"{recovery_timeout}, probe_interval {probe_interval}; give at least 1, at least "
                "0 and more than 0"
            )
            raise UsageError(msg)
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self.probe = probe
        self.probe_interval = probe_interval
        self._monotonic = monotonic
        self._state: CircuitState = "closed"
        self._failures = 0
        self._opened_at = 0.0
        self._probing = False
        self._waiters: set[asyncio.Future[None]] = set()
        self._listeners: list[Callable[[CircuitState], None]] = []

    @property
    def state(self) -> CircuitState:
        """What it is now."""
        if self._state == "open" and self.recovers_in_s() <= 0:
            self.half_open()
        return self._state

    def recovers_in_s(self) -> float:
        """Seconds until an open breaker becomes half-open by itself."""
        return self._opened_at + self.recovery_timeout - self._monotonic()

    def listen(self, listener: Callable[[CircuitState], None]) -> Callable[[], None]:
        """Call `listener` at every change, until what is returned is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def allow(self) -> bool:
        """Whether a write may pass now.

        Whoever is let through has to report how it went: with :meth:`record_success`,
        :meth:`record_failure` or :meth:`release`.
        """
        state = self.state
        if state == "half_open" and not self._probing:
            self._probing = True
            return True
        return state == "closed"

    async def admit(self) -> None:
        """Wait until :meth:`allow` lets this write through."""
        while not self.allow():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            timeout = max(self.recovers_in_s(), 0.001) if self._state == "open" else None
            try:
                await asyncio.wait([waiter], timeout=timeout)
            finally:
                self._waiters.discard(waiter)

    def record_success(self) -> None:
        """A write succeeded, or the store answered it: the store works."""
        self._failures = 0
        self._probing = False
        self._turn("closed")

    def record_failure(self) -> None:
        """A write failed for a reason that may lie in the store."""
        self._failures += 1
        if self._state == "half_open" or self._failures >= self.failure_threshold:
            self.trip()

    def trip(self) -> None:
        """Open, whatever the count."""
        self._probing = False
        if self._state != "open":
            self._opened_at = self._monotonic()
            self._turn("open")

    def half_open(self) -> None:
        """Let one write try now; no effect unless open."""
        if self._state == "open":
            self._probing = False
            self._turn("half_open")

    def release(self) -> None:
        """A write that was let through said nothing about the store; another may try."""
        if self._probing:
            self._probing = False
            self._wake()

    def _turn(self, state: CircuitState) -> None:
        if self._state != state:
            self._state = state
            self._wake()
            for listener in list(self._listeners):
                listener(state)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
