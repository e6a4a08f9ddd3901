"""What every long-running command shares: backends, signals, live progress, the report."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from market_data_core.config import Settings
from market_data_core.intervals import format_interval
from market_data_pipeline.allocator import tune_memory
from market_data_pipeline.assembly import Summary
from market_data_pipeline.audit import Job, audited
from market_data_pipeline.backends import open_backends
from market_data_pipeline.flow import Flow
from market_data_pipeline.patience import StoppedWaiting
from market_data_pipeline.signals.settings import Signalled
from market_data_pipeline.telemetry import configure_logging, serve_metrics

T = TypeVar("T")

RECORDING = "recording"
"""Title of a run that ends by itself."""

_REFRESH_S = 0.25
_STOPPED_AT_ONCE = 130


def home() -> Path:
    """The folder for the program's own files."""
    return Path(os.environ.get("MDP_HOME") or ".mdp")


def execute(
    settings: Settings,
    work: Callable[[Flow, asyncio.Event], Awaitable[T]],
    title: str,
    job: Job,
) -> T:
    """Run `work` on the configured backends; the store's ``job_runs`` tell of it as `job`.

    The first Ctrl-C (or SIGTERM) asks it to end, a second one ends the process at once: what was
    acknowledged is durable in either case. Who is asked to end while the bus or the store is
    still waited for has nothing to end: the program exits with 0.
    """
    import_module("polars")  # now rather than when the store is first read, in the middle of work
    tune_memory()
    telemetry = settings.telemetry
    configure_logging(telemetry.log_level, telemetry.log_json)
    if telemetry.metrics_port:
        announce = title != RECORDING  # which is short: who looks at its metrics knows the port
        serve_metrics(telemetry.metrics_port, telemetry.metrics_host, announce)
    try:
        return asyncio.run(_execute(settings, work, title, job))
    except StoppedWaiting as error:
        sys.stderr.write(f"stopped while waiting, nothing is lost: {error}\n")
        raise typer.Exit from None


async def _execute(
    settings: Settings,
    work: Callable[[Flow, asyncio.Event], Awaitable[T]],
    title: str,
    job: Job,
) -> T:
    stop, console = asyncio.Event(), Console(stderr=True)

    def ask() -> None:
        if stop.is_set():
            if console.is_terminal:  # which the live progress has left without a cursor
                console.show_cursor()
            os._exit(_STOPPED_AT_ONCE)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    async with open_backends(settings, stop=stop) as backends:
        flow = Flow(settings, backends)
        showing = asyncio.create_task(_show(flow, title, console))
        try:
            return await audited(work(flow, stop), job, settings, backends, flow.progress, stop)
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing


async def _show(flow: Flow, title: str, console: Console) -> None:
    """Live progress on a terminal; nothing elsewhere."""
    if not console.is_terminal:
        return
    began, before, at = time.monotonic(), 0, time.monotonic()
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            now, events = time.monotonic(), flow.progress.counts.received
            rate = (events - before) / max(now - at, 1e-9)
            before, at = events, now
            live.update(_panel(flow, title, rate, now - began), refresh=True)
            await asyncio.sleep(_REFRESH_S)


def _panel(flow: Flow, title: str, rate: float, seconds: float) -> Table:
    p = flow.progress
    table = Table(title=f"mdp {title}, {seconds:.0f} s{'  ' + p.note if p.note else ''}")
    bars = p.written.inserted + p.written.updated + p.written.unchanged
    columns = {
        "events/s": f"{max(rate, 0):,.0f}",
        "events": f"{p.counts.received:,}",
        "open windows": f"{p.open_windows:,}",
        "bars": f"{bars:,}",
        "unread": f"{max(0, p.produced - p.counts.received):,}",
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    table.add_row(*columns.values())
    return table


def signal_lines(done: Signalled) -> dict[str, str]:
    """What was made of bars, by the lines' titles."""
    counts = done.signals
    lines = {}
    if done.left:
        lines["left"] = f"{done.left:,} bars to live inference, which gives this feed's signals"
    if done.live:
        lines["live feed"] = f"{done.live:,} bars evaluated as its own, by the rules of their time"
    return {
        **lines,
        "evaluated": f"{done.bars:,} bars",
        "signals": f"{counts.inserted:,} inserted, {counts.updated:,} updated, "
        f"{counts.unchanged:,} unchanged, {done.retracted:,} retracted",
    }


def report(settings: Settings, summary: Summary) -> None:
    """Print what a run did; the conservation equation comes last."""
    counts, written = summary.counts, summary.written
    if summary.repeated:
        typer.echo("These inputs were carried to the end before: no row changed.")
    received = counts.received if summary.repeated else summary.received
    rate = f", {received / summary.seconds:,.0f} events/s" if summary.seconds else ""
    lines = {
        "events in": f"{received:,}{rate}",
        "bars": f"{written.inserted:,} inserted, {written.updated:,} updated, "
        f"{written.unchanged:,} unchanged",
        "duplicates": f"{counts.deduplicated:,}",
        "late": f"{counts.late:,}",
        "dead-lettered": f"{counts.dead_lettered:,}",
        **(signal_lines(summary.signalled) if summary.signalled else {}),
        "windows": ", ".join(format_interval(n) for n in settings.micro_batch.windows_ns),
        "store": settings.redacted()["store"]["uri"],
    }
    if written.kept:
        lines["kept"] = f"{written.kept:,} stored bars were made of more events and stay"
    if written.bad:
        lines["unwritable"] = f"{written.bad:,} bars; see mdp dlq list"
    for name, value in lines.items():
        typer.echo(f"{name:<14} {value}")
    sign = "=" if counts.holds() else "≠"
    typer.echo(
        f"{'conservation':<14} {counts.received:,} received {sign} {counts.stored:,} stored + "
        f"{counts.open:,} open + {counts.deduplicated:,} deduplicated + {counts.late:,} late + "
        f"{counts.dead_lettered:,} dead-lettered"
        + (f" + {counts.lost:,} lost" if counts.lost else "")
    )
    if not counts.holds():
        sys.stderr.write("error: the conservation equation does not hold; run mdp doctor\n")
