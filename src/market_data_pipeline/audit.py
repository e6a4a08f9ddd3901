"""The row in ``job_runs`` that every long-running command leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal, TypeVar

from market_data_core.config import Settings
from market_data_pipeline.assembly import Progress, Summary
from market_data_pipeline.backends import Backends
from market_data_pipeline.patience import StoppedWaiting
from market_data_store.jobs import (
    JobMode,
    JobRunTracker,
    TrackedRun,
    compute_config_fingerprint,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """What a command is about to do.

    Attributes:
        name: the command's own: ``run``, ``produce``, ``micro-batch``.
        provider: the feed's name, several joined by commas, "" if it serves whatever comes.
        dataset: name of what is read, if it has an end.
        symbols: none means all.
        rows: what counts as a row that was written: a bar or a signal that was inserted or
            updated, or an event that was appended to the bus.
    """

    name: str
    mode: JobMode
    provider: str = ""
    dataset: str = ""
    symbols: tuple[str, ...] = ()
    rows: Literal["bars", "events", "signals"] = "bars"


async def audited(
    work: Awaitable[T],
    job: Job,
    settings: Settings,
    backends: Backends,
    progress: Progress,
    stop: asyncio.Event,
) -> T:
    """The result of `work`, whose course and outcome are recorded beside it.

    A feed that is stopped has done what it was asked to: that is a success. A recording that is
    stopped is cancelled, since there may be more of it; so is what still waited for its bus.

    Raises:
        StoppedWaiting: it was stopped before there was a bus to work on.
    """
    run = JobRunTracker(backends.store, backends.clock).run(
        job.name,
        provider=job.provider,
        mode=job.mode,
        dataset_name=job.dataset,
        symbols=job.symbols,
        config_fingerprint=compute_config_fingerprint(settings),
        observe=lambda run: _tell(run, job, progress),
    )
    async with run:
        try:
            done = await work
        except StoppedWaiting:
            await run.finish("cancelled")
            raise
        if isinstance(done, Summary) and not done.counts.holds():
            run.fail("the conservation equation does not hold")
        elif job.mode == "backfill" and stop.is_set():
            run.cancel()
    return done


def _tell(run: TrackedRun, job: Job, progress: Progress) -> None:
    if job.rows == "events":
        run.progress(rows_written=progress.produced)
        return
    if job.rows == "signals":
        counts = progress.signalled.signals
        run.progress(rows_written=counts.inserted + counts.updated)
        return
    written = progress.written
    first, last = progress.span or (None, None)
    run.progress(
        rows_written=written.inserted + written.updated,
        rows_failed=written.bad,
        min_ts=first,
        max_ts=last,
        metadata={"events": progress.received},
    )
