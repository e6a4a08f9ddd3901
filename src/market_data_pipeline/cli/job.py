"""``mdp job``: what ran, how it went, and what hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from market_data_core.errors import MdpError, UsageError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from market_data_store.jobs import JobRun, JobRunTracker

T = TypeVar("T")

job_app = typer.Typer(
    help="Runs: what they did, how they ended, which of them hang.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_TABLE_ROWS = 50
_SHOWN = (
    "id", "job_name", "dataset_name", "provider", "mode", "status", "rows_written", "rows_failed",
    "started_at", "elapsed_ms",
)  # fmt: skip
_STUCK = ("id", "job_name", "provider", "host", "pid", "started_at", "heartbeat", "silent_s")
_SUMMARY = (
    "job_name", "provider", "mode", "runs", "running", "success", "failure", "cancelled",
    "rows_written", "rows_failed", "elapsed_ms_avg", "last_started_at",
)  # fmt: skip
_NUMBERS = (
    "rows_written", "rows_failed", "elapsed_ms", "elapsed_ms_avg", "pid", "silent_s", "runs",
    "running", "success", "failure", "cancelled",
)  # fmt: skip
_WHAT_TO_DO = """\
The next start of any run marks those that are lost as failed. A process that lives all the same is
stopped, asleep or cut off from the store, and its row is right again once it goes on.
"""

Form = Annotated[Literal["table", "json", "csv"], typer.Option("--format", help="Output format.")]


@job_app.command("list")
def list_runs(
    status: Annotated[
        Literal["running", "success", "failure", "cancelled"] | None,
        typer.Option(help="Only those with this status."),
    ] = None,
    job: Annotated[str | None, typer.Option(help="Only this job, such as run.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the last N; 50 for the table, else all.")
    ] = None,
    form: Form = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Runs, newest start first."""
    _output.check_limit(limit)
    limit = limit or (_TABLE_ROWS if form == "table" else None)
    found, absent = _read(config, lambda jobs: jobs.list(status=status, job_name=job, limit=limit))
    nothing = "no such runs" if status or job else "no runs yet"
    _write([_row(run) for run in found or ()], _columns(), form, _SHOWN, nothing, absent)


@job_app.command()
def inspect(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Id, or how it begins.")],
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", help="Output format.")
    ] = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Everything about one run."""
    run, absent = _read(config, lambda jobs: jobs.get(run_id))
    if run is None:
        raise MdpError(absent)
    row = _row(run)
    if form == "json":
        import msgspec

        _output.write_lines([msgspec.json.encode(row)])
        return
    for name, value in _flat(row).items():
        typer.echo(f"{name:<18} {_output.cell_text(value)}".rstrip())


@job_app.command()
def stuck(
    older: Annotated[
        str, typer.Option(help="Without a heartbeat for so long; four of its own at least.")
    ] = "60s",
    form: Form = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Runs that call themselves running and give no sign of life."""
    from market_data_core.clock import SystemClock
    from market_data_core.intervals import NS_PER_S, parse_interval

    try:
        older_s = parse_interval(older) / NS_PER_S
    except UsageError as error:
        msg = f"--older: {error}"
        raise UsageError(msg) from error
    found, absent = _read(config, lambda jobs: jobs.stuck(older_s))
    now_s = SystemClock().now_ns() / NS_PER_S
    rows = [
        {
            "id": run.id,
            "job_name": run.job_name,
            "provider": run.provider,
            "host": run.metadata.get("host"),
            "pid": run.metadata.get("pid"),
            "started_at": _plain(run.started_at),
            "heartbeat": _plain(run.heartbeat),
            "silent_s": round(now_s - run.heartbeat.timestamp()),
        }
        for run in found or ()
    ]
    _write(rows, _STUCK, form, _STUCK, "no run is stuck", absent)
    if rows and form == "table":
        typer.echo(_WHAT_TO_DO, nl=False)


@job_app.command()
def summary(
    hours: Annotated[float, typer.Option(help="Runs that began within so many hours.")] = 24,
    form: Form = "table",
    config: _output.ConfigOption = None,
) -> None:
    """How often each job ran of late, how it ended, and what it wrote."""
    if not 0 < hours < float("inf"):
        msg = f"--hours {hours:g} must be a number above 0"
        raise UsageError(msg)
    found, absent = _read(config, lambda jobs: jobs.summary(hours))
    rows = [{name: _plain(getattr(line, name)) for name in _SUMMARY} for line in found or ()]
    nothing = f"no run began within the last {hours:g} hours"
    _write(rows, _SUMMARY, form, _SUMMARY, nothing, absent)


def _read(
    config: Path | None, ask: Callable[[JobRunTracker], Awaitable[T]]
) -> tuple[T | None, str]:
    """What the store answers; None and a sentence that says why if there is no store yet."""
    from market_data_pipeline.backends import missing_store
    from market_data_store.jobs import JobRunTracker

    settings = _output.load_settings(config)
    absent = missing_store(settings)
    if absent:
        return None, absent

    async def read() -> T:
        async with JobRunTracker(settings.store.uri) as jobs:
            return await ask(jobs)

    return _output.run_async(read()), ""


def _write(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    form: str,
    shown: Sequence[str],
    nothing: str,
    absent: str,
) -> None:
    """Rows in the wanted format, a table with the columns `shown`; or `nothing`.

    Raises:
        MdpError: there is no store: `absent` says so.
    """
    if form != "table":
        given = [_flat(row) for row in rows] if form == "csv" else rows
        _output.write_rows(given, columns, form)
    elif rows:
        cells = [[row[name] for name in shown] for row in rows]
        _output.show_table(shown, cells, right=_NUMBERS)
    elif not absent:
        typer.echo(nothing)
    if absent:
        raise MdpError(absent)


def _columns() -> list[str]:
    from market_data_core.tables import JOB_RUNS

    return [column.name for column in JOB_RUNS.columns]


def _row(run: JobRun) -> dict[str, Any]:
    """The columns of a run; times as text, JSON as it is."""
    return {name: _plain(getattr(run, name)) for name in _columns()}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with JSON as text."""
    import msgspec

    return {
        name: msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value
        for name, value in row.items()
    }


def _plain(value: object) -> object:
    from datetime import UTC, datetime

    if not isinstance(value, datetime):
        return value
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
