"""Runs as rows of ``job_runs``: what is written, how it is read back, and who wrote it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from market_data_core.errors import UsageError
from market_data_core.redaction import redact, redact_value

if TYPE_CHECKING:
    import polars as pl

JobMode = Literal["live", "backfill"]
JobStatus = Literal["running", "success", "failure", "cancelled"]

STATUSES: tuple[JobStatus, ...] = ("running", "success", "failure", "cancelled")
TEXT_MAX = 2_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PROC = Path("/proc")


class JobRun(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``job_runs``: one run of a long-lived command.

    Attributes:
        id: 16 hexadecimal digits, chosen at the start.
        dataset_name: what was read, "" where it has no name.
        provider: the feed's name; several are joined by commas.
        config_fingerprint: of the settings, see :func:`compute_config_fingerprint`.
        rows_failed: rows that could not be written.
        symbols: those that were asked for; none means all.
        min_ts: the first time in what was written, UTC; None where that is not known.
        max_ts: the last one.
        error_message: why it failed, without secrets; "" if it did not.
        metadata: what the run says about itself, with `heartbeat` (UTC, ISO 8601), `heartbeat_s`
            (its period), `host`, `pid` and `member`.
        completed_at: None while it runs; of a run that was lost, its last heartbeat.
        elapsed_ms: None while it runs.
    """

    id: str
    job_name: str
    dataset_name: str
    provider: str
    mode: JobMode
    status: JobStatus
    config_fingerprint: str
    pipeline_version: str
    rows_written: int
    rows_failed: int
    symbols: list[str]
    min_ts: datetime | None
    max_ts: datetime | None
    error_message: str
    metadata: dict[str, Any]
    started_at: datetime
    completed_at: datetime | None
    elapsed_ms: int | None

    @property
    def heartbeat(self) -> datetime:
        """When it was last known to run; its start if it does not say."""
        try:
            heartbeat = datetime.fromisoformat(str(self.metadata.get("heartbeat")))
            return max(heartbeat, self.started_at)
        except (ValueError, TypeError):
            return self.started_at

    @property
    def heartbeat_s(self) -> float:
        """Seconds between its heartbeats; 0 if it does not say."""
        period = self.metadata.get("heartbeat_s")
        return float(period) if isinstance(period, int | float) else 0.0


@dataclass(frozen=True, slots=True)
class JobSummary:
    """The runs of one job, provider and mode that began within some time.

    Attributes:
        runs: how many; the next four, one for each status, add up to it.
        rows_written: sum over them; `rows_failed` likewise.
        elapsed_ms_avg: mean over those that have ended, None if none has.
        last_started_at: when the last one began, UTC.
    """

    job_name: str
    provider: str
    mode: JobMode
    runs: int
    running: int
    success: int
    failure: int
    cancelled: int
    rows_written: int
    rows_failed: int
    elapsed_ms_avg: float | None
    last_started_at: datetime


def summaries(runs: Sequence[JobRun]) -> list[JobSummary]:
    """One for each job, provider and mode, in that order."""
    groups: dict[tuple[str, str, JobMode], list[JobRun]] = {}
    for run in runs:
        groups.setdefault((run.job_name, run.provider, run.mode), []).append(run)
    return [_summary(groups[key]) for key in sorted(groups)]


def _summary(runs: Sequence[JobRun]) -> JobSummary:
    count = Counter(run.status for run in runs)
    spent = [run.elapsed_ms for run in runs if run.elapsed_ms is not None]
    return JobSummary(
        job_name=runs[0].job_name,
        provider=runs[0].provider,
        mode=runs[0].mode,
        runs=len(runs),
        running=count["running"],
        success=count["success"],
        failure=count["failure"],
        cancelled=count["cancelled"],
        rows_written=sum(run.rows_written for run in runs),
        rows_failed=sum(run.rows_failed for run in runs),
        elapsed_ms_avg=sum(spent) / len(spent) if spent else None,
        last_started_at=max(run.started_at for run in runs),
    )


def metadata_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` as it comes back from a column of JSON, secrets masked.

    Raises:
        UsageError: JSON cannot hold it.
    """
    try:
        text = msgspec.json.encode(given)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"metadata cannot be kept as JSON: {error}"
        raise UsageError(msg) from error
    if b"\\u0000" in text:
        msg = "metadata holds a text with NUL, which no database keeps; take it out"
        raise UsageError(msg)
    plain = msgspec.json.decode(text)
    return cast("dict[str, Any]", redact_value("", plain))


def time_of(ns: int) -> datetime:
    """UTC nanoseconds as a time, rounded down to the microsecond."""
    return _EPOCH + timedelta(microseconds=ns // 1_000)


def ns_of(time: datetime) -> int:
    """The time in UTC nanoseconds."""
    since = time - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1_000


def iso(time: datetime) -> str:
    """The time as it stands in metadata and messages."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain_text(text: str, length_max: int = TEXT_MAX) -> str:
    """`text` as every database can hold it: no secrets, no NUL, no half characters, not endless."""
    text = redact(text).replace("\0", "\ufffd").encode(errors="replace").decode()
    return text if len(text) <= length_max else f"{text[: length_max - 1]}…"


def runs_of(frame: pl.DataFrame) -> Iterator[JobRun]:
    """The rows of a frame of ``job_runs``, in their order."""
    for row in frame.iter_rows(named=True):
        row["symbols"] = msgspec.json.decode(row["symbols"])
        row["metadata"] = msgspec.json.decode(row["metadata"])
        yield JobRun(**row)


# ---- whose they are ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this or another machine.

    Attributes:
        world: where its id means something: the machine's present boot and the namespace; "" if
            that cannot be told.
        born: when it began, in ticks since boot; an id is given again, this with it is not.
    """

    host: str
    pid: int
    world: str
    born: int

    def stamp(self) -> dict[str, Any]:
        """What a run's metadata says of it."""
        return {
            "host": self.host,
            "pid": self.pid,
            "member": f"{self.host}-{self.pid}",
            "world": self.world,
            "born": self.born,
        }


def this_process() -> Process:
    """The process that asks."""
    pid = os.getpid()
    found = _state_and_birth(pid)
    return Process(socket.gethostname(), pid, _world(), found[1] if found else 0)


def is_gone(run: JobRun) -> bool:
    """Whether the process of `run` has certainly ended; False if it cannot be told from here."""
    world, pid, born = (run.metadata.get(name) for name in ("world", "pid", "born"))
    if not isinstance(pid, int) or pid < 1 or not world or world != _world():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's, which is alive
        pass
    found = _state_and_birth(pid)
    return found is not None and (found[0] in "ZX" or bool(born and found[1] != born))


@cache
def _world() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _state_and_birth(pid: int) -> tuple[str, int] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
        fields = text.rpartition(")")[2].split()  # the name before may hold anything
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
