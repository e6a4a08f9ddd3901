"""One run, and the task beside it that keeps its row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import structlog
from msgspec.structs import replace

from market_data_core.clock import Clock
from market_data_core.errors import MdpError, TransientError, UsageError
from market_data_store import metrics
from market_data_store._job_rows import JobRun, JobStatus, iso, metadata_of, plain_text, time_of
from market_data_store._query import When, moment

log = structlog.get_logger("jobs")

_PAUSE_MIN_S, _PAUSE_MAX_S = 0.05, 2.0
_CANCELLED = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)


class TrackedRun:
    """One run while it lasts: an async context, made by :meth:`JobRunTracker.run`.

    Its row is written by a task of its own, at the start, with every heartbeat and at the end.
    None of this raises, and nothing but the end is waited for.

    Args:
        row: as it is to begin.
        write: stores a row; safe to do again.
        sweep: looks for runs that were lost, after the row is written for the first time and then
            every `sweep_s` seconds.
        observe: told before every writing, so that it may call :meth:`progress`.
        clock: tells the time.
        heartbeat_s: pause between two heartbeats.
        sweep_s: as above.
        finish_s: for so long the end is tried to be written.
    """

    def __init__(
        self,
        row: JobRun,
        *,
        write: Callable[[JobRun], Awaitable[object]],
        sweep: Callable[[], Awaitable[object]],
        observe: Callable[[TrackedRun], None] | None,
        clock: Clock,
        heartbeat_s: float,
        sweep_s: float,
        finish_s: float,
    ) -> None:
        self._row = row
        self._write, self._sweep, self._observe = write, sweep, observe
        self._clock = clock
        self._heartbeat_s, self._sweep_s, self._finish_s = heartbeat_s, sweep_s, finish_s
        self._began = time.monotonic()
        self._swept_at = float("-inf")
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outcome: tuple[JobStatus, str] | None = None
        self._failing = False

    @property
    def id(self) -> str:
        """The id of its row."""
        return self._row.id

    @property
    def row(self) -> JobRun:
        """Its row as it is to be written next."""
        return self._row

    def progress(
        self,
        *,
        rows_written: int | None = None,
        rows_failed: int | None = None,
        min_ts: When | None = None,
        max_ts: When | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """How far it has come; goes into the row with the next heartbeat.

        Args:
            rows_written: since its start, not since the last call; None leaves what is known.
            rows_failed: likewise.
            min_ts: earliest time written: a datetime with its zone, ISO 8601 text, or UTC ns. The
                row keeps the earliest of all calls.
            max_ts: likewise, the latest.
            metadata: joins what is there.

        Raises:
            UsageError: a count is negative, a time is none, or JSON cannot hold the metadata.
        """
        row = self._row
        counts = {"rows_written": rows_written, "rows_failed": rows_failed}
        for name, value in counts.items():
            if value is not None and (not isinstance(value, int) or value < 0):
                msg = f"{name} is {value!r}; give a whole number that is not negative"
                raise UsageError(msg)
        changed: dict[str, Any] = {n: value for n, value in counts.items() if value is not None}
        for name, given, least in (("min_ts", min_ts, min), ("max_ts", max_ts, max)):
            if given is not None:
                known: datetime | None = getattr(row, name)
                at = time_of(moment(name, given))
                changed[name] = at if known is None else least(known, at)
        if metadata is not None:
            changed["metadata"] = {**row.metadata, **metadata_of(metadata)}
        self._row = replace(row, **changed)

    def fail(self, why: str) -> None:
        """Let it end in failure although nothing is raised."""
        self._outcome = "failure", why

    def cancel(self) -> None:
        """Let it end as cancelled although nothing is raised."""
        self._outcome = "cancelled", ""

    async def __aenter__(self) -> Self:
        """Begin; the row is written soon."""
        if self._task is not None:
            msg = f"run {self.id} has begun before; make another one with run()"
            raise UsageError(msg)
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it: success, failure, or cancelled if the work was."""
        if isinstance(error, _CANCELLED):
            await self.finish("cancelled")
        elif error is not None:
            told = str(error) if isinstance(error, MdpError) else f"{type(error).__name__}: {error}"
            await self.finish("failure", told)
        else:
            await self.finish(*(self._outcome or ("success", "")))

    async def finish(self, status: JobStatus = "success", error_message: str = "") -> None:
        """End it; waits, for a bounded time, until that is stored. No effect if it has ended."""
        if self._task is None or self._ending.is_set():
            return
        self._refresh()
        row, now = self._row, time_of(self._clock.now_ns())
        self._row = replace(
            row,
            status=status,
            error_message=plain_text(error_message),
            completed_at=max(row.started_at, now),  # the clock may have been set back
            elapsed_ms=int((time.monotonic() - self._began) * 1e3),
        )
        count_end(self._row)
        self._ending.set()
        try:
            done, _ = await asyncio.wait({self._task}, timeout=self._finish_s)
            if not done:
                log.warning("the end of this run could not be recorded", run=self.id, status=status)
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        pause_s = _PAUSE_MIN_S
        while True:
            ended = self._ending.is_set()
            if await self._done(self._store()):
                if ended:
                    return
                pause_s = _PAUSE_MIN_S
                if time.monotonic() >= self._swept_at + self._sweep_s and await self._done(
                    self._sweep()
                ):
                    self._swept_at = time.monotonic()
                await self._rest(self._heartbeat_s)
            else:
                await (asyncio.sleep(pause_s) if ended else self._rest(pause_s))
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _rest(self, seconds: float) -> None:
        """Until the end comes, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return

    async def _store(self) -> None:
        if not self._ending.is_set():
            self._refresh()
        await self._write(self._row)

    async def _done(self, work: Awaitable[object]) -> bool:
        """Whether `work` succeeds; whatever it raises is told once and tried again."""
        try:
            await work
        except Exception as error:  # the audit must not hurt the work
            metrics.STORE_JOB_AUDIT_ERRORS.labels(metrics.error_type(error)).inc()
            if not self._failing:
                tell = log.warning if isinstance(error, TransientError) else log.error
                tell("the record of this run is late", run=self.id, error=plain_text(str(error)))
            self._failing = True
            return False
        self._failing = False
        return True

    def _refresh(self) -> None:
        """Take over what there is to tell, and the time."""
        if self._observe is not None:
            try:
                self._observe(self)
            except Exception as error:  # likewise
                told = plain_text(f"{type(error).__name__}: {error}")
                log.warning("progress cannot be told any more", run=self.id, error=told)
                self._observe = None
        heartbeat = iso(time_of(self._clock.now_ns()))
        self._row = replace(self._row, metadata={**self._row.metadata, "heartbeat": heartbeat})


def count_end(row: JobRun) -> None:
    """Count a run that has ended."""
    labels = (row.job_name, row.provider, row.mode, row.status)
    metrics.STORE_JOB_RUNS.labels(*labels).inc()
