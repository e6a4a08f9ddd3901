"""``mdp verify``: stored bars against a batch query over the raw events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.archive.files import Archive
    from market_data_pipeline.verification import Report, Scope


def verify(
    from_: Annotated[
        str | None, typer.Option("--from", help="ISO time or date, UTC; first window start.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="ISO time or date, UTC, exclusive.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    symbol: Annotated[str | None, typer.Option(help="Only this symbol, in any case.")] = None,
    archive: Annotated[
        Path | None,
        typer.Option(help="Archive with what the log has forgotten; default archive.path."),
    ] = None,
    config: _output.ConfigOption = None,
) -> None:
    """Compute bars again in another way, and print how they differ from the stored ones: not."""
    start, end = _output.parse_range(from_, to)
    settings = _output.load_settings(config)
    wanted = (provider, symbol.strip().upper() if symbol else None, start, end)
    kept = _archive(archive, settings.archive.path)
    report = _output.run_async(_verify(settings, wanted, kept))
    _show(report)
    if report.differences:
        raise typer.Exit(1)


def _archive(named: Path | None, usual: Path) -> Archive | None:
    """The archive that was named, else the usual one if there is one."""
    from market_data_pipeline.archive.files import Archive
    from market_data_pipeline.archive.layout import read_identity

    if named is None and read_identity(usual) is None:
        return None
    return Archive(named or usual)


async def _verify(
    settings: Settings,
    wanted: tuple[str | None, str | None, int | None, int | None],
    archive: Archive | None,
) -> Report:
    from market_data_core.intervals import NS_PER_MS
    from market_data_pipeline.assembly import LETTERS_TOPIC
    from market_data_pipeline.backends import missing_store, open_backends
    from market_data_pipeline.bus import codec
    from market_data_pipeline.generations import Generations
    from market_data_pipeline.verification import CountedLog, Scope, verify

    absent = missing_store(settings)
    if absent:
        raise MdpError(absent)
    scope: Scope = Scope(*wanted)
    async with open_backends(settings, wait=False) as backends:
        live = Generations(backends.bus, settings.bus.events_topic, backends.clock)
        log = CountedLog(
            backends.bus,
            backends.store,
            codec,
            settings.bus.group,
            LETTERS_TOPIC,
            settings.micro_batch.max_future_ms * NS_PER_MS,
            await live.look(settings.bus.partitions),
            archive,
        )
        return await verify(backends.store, log, scope, list(settings.micro_batch.windows_ns))


def _read(report: Report) -> str:
    """How many events were read, and where."""
    if not report.from_archive:
        return f"{report.from_log:,} read from the log"
    archived = f"{report.from_archive:,} read from the archive"
    return f"{report.from_log:,} read from the log, {archived}" if report.from_log else archived


def _show(report: Report) -> None:
    from market_data_core.events import format_ts

    rate = (report.from_log + report.from_archive) / max(report.seconds, 1e-9)
    typer.echo(f"{'windows':<16} {report.windows:,} compared")
    typer.echo(f"{'events':<16} {_read(report)}, {rate:,.0f}/s")
    if report.open:
        typer.echo(f"{'open':<16} {report.open:,} windows that a lane or feed has not finished")
    for why, count in report.unverifiable.most_common():
        typer.echo(f"{'not verifiable':<16} {count:,} windows: {why}")
    if not report.differences:
        empty = not report.windows
        typer.echo("nothing to compare" if empty else "no difference")
        return
    rows = [
        (d.problem, d.provider, d.symbol, d.interval, format_ts(d.ts), d.column,
         None if d.stored is None else repr(d.stored),
         None if d.computed is None else repr(d.computed))
        for d in report.shown
    ]  # fmt: skip
    title = f"{report.differences:,} difference{'s' if report.differences > 1 else ''}"
    if len(rows) < report.differences:
        title += f", of which these are the first {len(rows)}"
    columns = ("problem", "provider", "symbol", "interval", "ts", "column", "stored", "computed")
    _output.show_table(columns, rows, title)
    if report.moved:
        typer.echo("bars were written meanwhile: stop the writers, or give --to, and verify again")
