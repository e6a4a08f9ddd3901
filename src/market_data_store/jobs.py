"""The audit of runs: each leaves a row that says what it was, how far it came and how it ended."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from msgspec.structs import replace

from market_data_core.clock import Clock, SystemClock
from market_data_core.contracts.store import Store
from market_data_core.errors import UsageError
from market_data_core.intervals import NS_PER_S
from market_data_core.registry import DISTRIBUTION
from market_data_core.tables import JOB_RUNS, Select
from market_data_store._access import StoreAccess
from market_data_store._fingerprint import compute_config_fingerprint
from market_data_store._job_rows import (
    STATUSES,
    JobMode,
    JobRun,
    JobStatus,
    JobSummary,
    is_gone,
    iso,
    metadata_of,
    ns_of,
    plain_text,
    runs_of,
    summaries,
    this_process,
    time_of,
)
from market_data_store._job_run import TrackedRun, count_end
from market_data_store._query import When, count, moment

__all__ = [
    "LOST_AFTER_S",
    "STATUSES",
    "JobMode",
    "JobRun",
    "JobRunTracker",
    "JobStatus",
    "JobSummary",
    "TrackedRun",
    "compute_config_fingerprint",
]

LOST_AFTER_S = 60.0
"""A run is taken for lost when its heartbeat is older than this."""

_MODES: tuple[JobMode, ...] = ("live", "backfill")
_HEARTBEAT_S, _HEARTBEATS_MISSED = 5.0, 4
_FINISH_S = 5.0
_NAME_MAX = 200
_ID_CHARS = 16
_HOUR_NS, _DAY_NS = 3_600 * NS_PER_S, 86_400 * NS_PER_S
_LOOK_BACK_DAYS = (1, 30, 365)
_SCAN_ROWS = 10_000
_NAMED_MAX = 5


class JobRunTracker(StoreAccess):
    """Writes and reads ``job_runs``.

    ::

        async with tracker.run("import", provider="vendor", mode="backfill") as run:
            run.progress(rows_written=…)

    Args:
        store: an open store, which stays its owner's to close, or the URI of one, which is opened
            when it is needed.
        clock: tells the time.
        heartbeat_s: pause between two heartbeats of a run.
        lost_after_s: a run is taken for lost when its heartbeat is older than this, and than four
            of its own periods.
        finish_s: for so long a run's end is tried to be written.
    """

    def __init__(
        self,
        store: Store | str,
        clock: Clock | None = None,
        *,
        heartbeat_s: float = _HEARTBEAT_S,
        lost_after_s: float = LOST_AFTER_S,
        finish_s: float = _FINISH_S,
    ) -> None:
        super().__init__(store)
        self._clock = clock or SystemClock()
        self._heartbeat_s, self._lost_after_s = heartbeat_s, lost_after_s
        self._finish_s = finish_s

    def run(
        self,
        job_name: str,
        *,
        provider: str,
        mode: JobMode,
        dataset_name: str = "",
        symbols: Sequence[str] = (),
        config_fingerprint: str = "",
        metadata: Mapping[str, Any] | None = None,
        observe: Callable[[TrackedRun], None] | None = None,
    ) -> TrackedRun:
        """A run: an async context that ends in success, failure (with the error) or cancelled.

        Entering does not wait for the store. While it lasts, a task writes its heartbeat, and runs
        that were lost are marked (:meth:`mark_lost`), first at its start. A store that cannot be
        used makes all this late, and hurts nothing else.

        Args:
            job_name: such as ``run``; a label of a metric, so of a bounded set, as `provider` is.
            provider: the feed's name, several joined by commas, "" for none in particular.
            mode: ``live`` or ``backfill``.
            dataset_name: of what is read.
            symbols: what was asked for; none means all.
            config_fingerprint: see :func:`compute_config_fingerprint`.
            metadata: anything JSON can hold; secrets in it are masked.
            observe: called with the run before each writing, to tell its progress.

        Raises:
            UsageError: an argument makes no sense.
        """
        _check(job_name, mode, symbols)
        given = metadata_of(metadata or {})
        own = {**this_process().stamp(), "heartbeat_s": self._heartbeat_s}
        row = JobRun(
            id=uuid.uuid4().hex[:_ID_CHARS],
            job_name=plain_text(job_name, _NAME_MAX),
            dataset_name=plain_text(dataset_name, _NAME_MAX),
            provider=plain_text(provider, _NAME_MAX),
            mode=mode,
            status="running",
            config_fingerprint=config_fingerprint,
            pipeline_version=_version(),
            rows_written=0,
            rows_failed=0,
            symbols=[plain_text(symbol, _NAME_MAX) for symbol in symbols],
            min_ts=None,
            max_ts=None,
            error_message="",
            metadata={**given, **own},
            started_at=time_of(self._clock.now_ns()),
            completed_at=None,
            elapsed_ms=None,
        )
        return TrackedRun(
            row,
            write=self._write,
            sweep=self.mark_lost,
            observe=observe,
            clock=self._clock,
            heartbeat_s=self._heartbeat_s,
            sweep_s=self._lost_after_s,
            finish_s=self._finish_s,
        )

    async def start(
        self,
        job_name: str,
        *,
        provider: str,
        mode: JobMode,
        dataset_name: str = "",
        symbols: Sequence[str] = (),
        config_fingerprint: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> TrackedRun:
        """As :meth:`run`, begun already; the caller ends it with :meth:`TrackedRun.finish`.

        Raises:
            UsageError: an argument makes no sense.
        """
        run = self.run(
            job_name,
            provider=provider,
            mode=mode,
            dataset_name=dataset_name,
            symbols=symbols,
            config_fingerprint=config_fingerprint,
            metadata=metadata,
        )
        return await run.__aenter__()

    async def _write(self, row: JobRun) -> None:
        """Unconditionally: nobody knows better than the run itself how it is."""
        await self._upsert(JOB_RUNS, [row])

    async def mark_lost(self) -> Sequence[JobRun]:
        """Set runs that were lost to ``failure``; returns them as they are now.

        Lost is a run whose heartbeat is too old, or whose process, on this machine, has ended. One
        that ends at the same moment keeps its own outcome, and one that was only asleep says with
        its next heartbeat that it is running.

        Raises:
            TransientError: the store cannot be used now; some may be marked.
        """
        marked = []
        for run in await self._running():
            gone = is_gone(run)
            if not (gone or self._is_silent(run, self._lost_after_s)):
                continue
            why = f"no heartbeat since {iso(run.heartbeat)}"
            if gone:
                why += f"; process {run.metadata['pid']} on {run.metadata['host']} has ended"
            elapsed = run.heartbeat - run.started_at
            ended = replace(
                run,
                status="failure",
                error_message=why,
                completed_at=run.heartbeat,
                elapsed_ms=int(elapsed.total_seconds() * 1e3),
            )
            if await (await self._ready()).replace(JOB_RUNS, run, ended):
                count_end(ended)
                marked.append(ended)
        return marked

    async def stuck(self, older_s: float | None = None) -> Sequence[JobRun]:
        """Runs that call themselves running and whose heartbeat is too old, newest start first.

        Args:
            older_s: seconds; None for the tracker's `lost_after_s`. Four of a run's own heartbeats
                at least.

        Raises:
            TransientError: the store cannot be used now.
        """
        limit_s = self._lost_after_s if older_s is None else older_s
        return [run for run in await self._running() if self._is_silent(run, limit_s)]

    async def list(
        self,
        *,
        status: JobStatus | None = None,
        job_name: str | None = None,
        limit: int | None = None,
    ) -> Sequence[JobRun]:
        """Runs, newest start first.

        Args:
            status: only those with it.
            job_name: only those of this job.
            limit: at most so many; None for all.

        Raises:
            UsageError: there is no such status, or the limit is not positive.
            TransientError: the store cannot be used now.
        """
        if status is not None and status not in STATUSES:
            msg = f"status is {status!r}; give one of {', '.join(map(repr, STATUSES))}"
            raise UsageError(msg)
        wanted = {"status": status, "job_name": job_name}
        where = {name: [value] for name, value in wanted.items() if value is not None}
        if limit is None:
            return await self._runs(Select(JOB_RUNS, where))
        count("limit", limit)
        now_ns = self._clock.now_ns()
        for days in _LOOK_BACK_DAYS:  # what is newest is found by the index on the start
            found = await self._runs(Select(JOB_RUNS, where, start=now_ns - days * _DAY_NS))
            if len(found) >= limit:
                return found[:limit]
        return (await self._runs(Select(JOB_RUNS, where)))[:limit]

    async def get(self, run_id: str) -> JobRun:
        """The run with this id, or with the only id that begins so.

        Raises:
            UsageError: there is none, or several begin so.
            TransientError: the store cannot be used now.
        """
        exact = await self._runs(Select(JOB_RUNS, {"id": [run_id]}))
        if exact:
            return exact[0]
        found = []
        if run_id:
            async for frame in self._scan(Select(JOB_RUNS), _SCAN_ROWS):
                found += [i for i in frame["id"].to_list() if i.startswith(run_id)]
        if not found:
            msg = f"no run has an id that begins with {run_id!r}; mdp job list shows them"
            raise UsageError(msg)
        if len(found) > 1:
            more = ", …" if len(found) > _NAMED_MAX else ""
            named = ", ".join(found[:_NAMED_MAX]) + more
            msg = f"{len(found)} runs have an id that begins with {run_id!r}: {named}; type more"
            raise UsageError(msg)
        return (await self._runs(Select(JOB_RUNS, {"id": found})))[0]

    async def summary(self, hours: float = 24) -> Sequence[JobSummary]:
        """What began within the last `hours`, by job, provider and mode.

        Raises:
            UsageError: `hours` is not positive.
            TransientError: the store cannot be used now.
        """
        if not 0 < hours < float("inf"):
            msg = f"hours is {hours!r}; give a number above 0"
            raise UsageError(msg)
        since_ns = self._clock.now_ns() - int(hours * _HOUR_NS)
        return summaries(await self._runs(Select(JOB_RUNS, start=since_ns)))

    async def cleanup(self, before: When) -> int:
        """Delete runs that began before `before`; returns how many.

        One that still lives is written again, by itself, with its next heartbeat.

        Args:
            before: a datetime with its zone, a day (midnight UTC), ISO 8601 text, or UTC ns.

        Raises:
            UsageError: it is no time.
            TransientError: the store cannot be used now; some may be deleted.
        """
        return await (await self._ready()).retain(JOB_RUNS, moment("before", before))

    def _is_silent(self, run: JobRun, limit_s: float) -> bool:
        limit_s = max(limit_s, _HEARTBEATS_MISSED * run.heartbeat_s)
        return self._clock.now_ns() - ns_of(run.heartbeat) > limit_s * NS_PER_S

    async def _running(self) -> Sequence[JobRun]:
        return await self._runs(Select(JOB_RUNS, {"status": ["running"]}))

    async def _runs(self, what: Select) -> Sequence[JobRun]:
        """Newest start first."""
        found = runs_of(await self._select(what))
        return sorted(found, key=lambda run: (run.started_at, run.id), reverse=True)


def _check(job_name: str, mode: str, symbols: Sequence[str]) -> None:
    if mode not in _MODES:
        msg = f"mode is {mode!r}; give one of {', '.join(map(repr, _MODES))}"
        raise UsageError(msg)
    if not job_name:
        msg = "job_name is empty; give the run's job a name"
        raise UsageError(msg)
    if isinstance(symbols, str):
        msg = f"symbols is {symbols!r}; give a list of symbols"
        raise UsageError(msg)


@cache
def _version() -> str:
    """The release, or "" where the packages are used without having been installed."""
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ""
