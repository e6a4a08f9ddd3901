"""``mdp verify``: bars against a batch query over the raw events, signals against the bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline._verify_signals import SignalReport
    from market_data_pipeline.archive.files import Archive
    from market_data_pipeline.verification import Report, Scope

"""Nobody waits for the signals of a verification: a model may take its time."""


def verify(
    signals: Annotated[
        bool, typer.Option("--signals", help="Signals, against the stored bars.")
    ] = False,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="ISO time or date, UTC; first window start, for signals end."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="ISO time or date, UTC, exclusive.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    symbols: Annotated[
        str, typer.Option(help="Only these symbols, in any case, separated by commas.")
    ] = "",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="With --signals: those given by other versions of rules or models too."
        ),
    ] = False,
    archive: Annotated[
        Path | None,
        typer.Option(help="Archive with what the log has forgotten; default archive.path."),
    ] = None,
    config: _output.ConfigOption = None,
) -> None:
    """Compute bars again in another way, and print how they differ from the stored ones: not.

    With --signals: evaluate the stored bars again with the configured rules and models, and print
    how that differs from the stored signals.
    """
    from market_data_core.errors import UsageError
    from market_data_pipeline.verification import Scope

    if (signals and archive) or (strict and not signals):
        msg = "--strict goes with --signals, and --archive does not: signals come from stored bars"
        raise UsageError(msg)
    start, end = _output.parse_range(from_, to)
    settings = _output.load_settings(config)
    scope = Scope(provider, tuple(sorted(_output.symbols_of(symbols) or ())), start, end)
    if signals:
        told = _output.run_async(_verify_signals(settings, scope, strict))
        _show_signals(told)
        wrong = told.differences or told.unanswered
    else:
        kept = _archive(archive, settings.archive.path)
        report = _output.run_async(_verify(settings, scope, kept))
        _show(report)
        wrong = report.differences
    if wrong:
        raise typer.Exit(1)


def _archive(named: Path | None, usual: Path) -> Archive | None:
    """The archive that was named, else the usual one if there is one."""
    from market_data_pipeline.archive.files import Archive
    from market_data_pipeline.archive.layout import read_identity

    if named is None and read_identity(usual) is None:
        return None
    return Archive(named or usual)


async def _verify(settings: Settings, scope: Scope, archive: Archive | None) -> Report:
    from market_data_core.intervals import NS_PER_MS
    from market_data_pipeline.assembly import LETTERS_TOPIC
    from market_data_pipeline.backends import missing_store, open_backends
    from market_data_pipeline.bus import codec
    from market_data_pipeline.generations import Generations
    from market_data_pipeline.verification import CountedLog, verify

    absent = missing_store(settings)
    if absent:
        raise MdpError(absent)
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


async def _verify_signals(settings: Settings, scope: Scope, strict: bool) -> SignalReport:
    from market_data_pipeline._verify_signals import Reached, verify_signals
    from market_data_pipeline.backends import missing_store, open_backends
    from market_data_pipeline.positions import groups_of
    from market_data_pipeline.signals.assembly import patient_evaluator

    evaluator = patient_evaluator(settings)
    if evaluator is None:
        msg = "no adapter is enabled, so that there are no signals to compare with"
        raise MdpError(msg)
    absent = missing_store(settings)
    if absent:
        raise MdpError(absent)
    bus, windows = settings.bus, settings.micro_batch.windows_ns
    async with open_backends(settings, wait=False) as backends:
        info = await backends.bus.find_topic(bus.bars_topic)
        rows = await backends.store.status(groups_of(bus.group)["infer"], bus.bars_topic)
        reached = Reached(rows if info else (), info.partitions if info else 1)
        return await verify_signals(backends.store, evaluator, scope, windows, reached, strict)


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
    columns = ("problem", "provider", "symbol", "interval", "ts", "column", "stored", "computed")
    _output.show_table(columns, rows, _title(report.differences, len(rows)))
    if report.moved:
        typer.echo("bars were written meanwhile: stop the writers, or give --to, and verify again")


def _show_signals(report: SignalReport) -> None:
    from market_data_core.events import format_ts

    rate = report.bars / max(report.seconds, 1e-9)
    typer.echo(f"{'bars':<16} {report.bars:,} evaluated, {rate:,.0f}/s")
    typer.echo(f"{'signals':<16} {report.agree:,} agree")
    if report.retracted:
        typer.echo(f"{'retracted':<16} {report.retracted:,}")
    for why, count in report.apart.most_common():
        typer.echo(f"{'not compared':<16} {count:,}: {why}")
    for adapter, count in report.unanswered.items():
        typer.echo(f"{'no answer':<16} of {adapter} for {count:,} bars")
    if not report.differences:
        nothing = not report.bars or (not report.agree and report.apart)
        unknown = "what was compared agrees" if report.unanswered else "no difference"
        typer.echo("nothing to compare" if nothing else unknown)
        return
    rows = [
        (d.problem, d.provider, d.symbol, d.interval, format_ts(d.ts), d.name, d.column,
         None if d.stored is None else repr(d.stored),
         None if d.computed is None else repr(d.computed))
        for d in report.shown
    ]  # fmt: skip
    columns = (
        "problem", "provider", "symbol", "interval", "ts", "name", "column", "stored", "computed",
    )  # fmt: skip
    _output.show_table(columns, rows, _title(report.differences, len(rows)))
    if report.moved:
        typer.echo("bars or signals were written meanwhile: stop the writers, and verify again")


def _title(differences: int, shown: int) -> str:
    title = f"{differences:,} difference{'s' if differences > 1 else ''}"
    return title + (f", of which these are the first {shown}" if shown < differences else "")
