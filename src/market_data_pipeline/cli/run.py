"""``mdp run``, ``mdp stream produce``, ``mdp stream micro-batch`` and ``mdp stream infer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from market_data_core.config import Settings
    from market_data_core.contracts.provider import LiveProvider
    from market_data_pipeline.assembly import Summary
    from market_data_pipeline.audit import Job
    from market_data_pipeline.flow import Flow
    from market_data_pipeline.providers._formats.options import FormatName, TimeUnit
    from market_data_pipeline.signals.settings import Signalled

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration; default ./configs/streaming.yaml."),
]
Provider = Annotated[
    list[str] | None, typer.Option("--provider", help="Live provider to run; may be repeated.")
]
Symbols = Annotated[str, typer.Option(help="Only these symbols, separated by commas.")]
For = Annotated[str, typer.Option("--for", help="Stop after this time, such as 30s.")]
Window = Annotated[str, typer.Option(help="Window lengths, such as 1s,1m,5m.")]


def run(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Recordings, or an archive; '-' reads standard input."),
    ] = None,
    config: Config = None,
    provider: Provider = None,
    name: Annotated[str, typer.Option("--as", help="Name of the recorded feed.")] = "",
    symbols: Symbols = "",
    window: Window = "",
    duration: For = "",
    column: Annotated[
        list[str] | None,
        typer.Option(help="CSV or Parquet: which column holds what, such as price=my_px."),
    ] = None,
    symbol: Annotated[str, typer.Option(help="Symbol of a file without symbol column.")] = "",
    interval: Annotated[str, typer.Option(help="Interval of a file of bars.")] = "",
    time_unit: Annotated[str, typer.Option(help="Unit of numeric times: s, ms, us, ns.")] = "auto",
    file_format: Annotated[str, typer.Option("--format", help="Format of the files.")] = "auto",
) -> None:
    """Everything in one process: from a feed, or from recorded FILES, to bars and signals.

    Without FILES the configured providers run until Ctrl-C. With FILES the run ends with them,
    prints what it did, and fails if the conservation equation does not hold. A second run of the
    same files changes no row.
    """
    settings = _settings(config, window)
    chosen = _list(symbols)
    if not files:
        _live(settings, tuple(provider or ()), chosen, duration)
        return
    from market_data_core.errors import UsageError
    from market_data_pipeline.providers.recording import RecordingOptions

    if provider or duration:
        msg = "--provider and --for are for live feeds; with files give neither"
        raise UsageError(msg)
    options = RecordingOptions(
        columns=_columns(column or []),
        time_unit=cast("TimeUnit", time_unit),  # the class checks them
        symbol=symbol or None,
        interval=interval or None,
        format=cast("FormatName", file_format),
        symbols=chosen,
    )
    if len(files) == 1 and Path(files[0]).is_dir():
        from market_data_pipeline.cli.replay import Asked, carry_kept

        if options != RecordingOptions(symbols=chosen):
            msg = f"{files[0]} is a folder: an archive speaks for itself, give --symbols or --as"
            raise UsageError(msg)
        upper = tuple(symbol.upper() for symbol in chosen)
        carry_kept(settings, Asked(symbols=upper, name=name or None), Path(files[0]))
        return
    _recorded(settings, files, name or None, options)


def produce(
    config: Config = None,
    provider: Provider = None,
    symbols: Symbols = "",
    window: Window = "",
    duration: For = "",
) -> None:
    """Carry live feeds into the bus until Ctrl-C.

    Give the micro-batchers' window lengths here too: marks of progress are written when one of
    them can close.
    """
    settings = _settings(config, window)
    providers = _open(settings, tuple(provider or ()), duration)

    chosen = _list(symbols)

    async def work(flow: Flow, stop: asyncio.Event) -> int:
        return await flow.produce(providers, chosen, stop)

    from market_data_pipeline.audit import Job
    from market_data_pipeline.cli import _session

    job = Job("produce", "live", _names(providers), symbols=chosen, rows="events")
    produced = _session.execute(settings, work, "produce", job)
    typer.echo(f"{produced:,} events written to {settings.bus.events_topic}")


def micro_batch(config: Config = None, window: Window = "") -> None:
    """Cut the bus's events into windows and store their bars until Ctrl-C."""
    settings = _settings(config, window)

    async def work(flow: Flow, stop: asyncio.Event) -> Summary:
        return await flow.micro_batch(stop)

    from market_data_pipeline.audit import Job

    _finish(settings, work, "micro-batch", Job("micro-batch", "live"))


def infer(
    config: Config = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="rules, sklearn or onnx; default: those enabled."),
    ] = None,
    window: Window = "",
) -> None:
    """Turn the bus's closed bars into features and signals until Ctrl-C.

    Any number of these share the partitions. Give the micro-batchers' window lengths here too: a
    rule without an interval is for the smallest one.
    """
    from market_data_core.errors import UsageError
    from market_data_pipeline.audit import Job
    from market_data_pipeline.cli import _session
    from market_data_pipeline.signals.assembly import evaluator_of

    settings = _settings(config, window)
    kinds = tuple(dict.fromkeys(adapter or ()))
    evaluator = evaluator_of(settings, kinds)
    if evaluator is None:
        msg = "no adapter is enabled; name one (--adapter rules) or enable it in the configuration"
        raise UsageError(msg)

    async def work(flow: Flow, stop: asyncio.Event) -> Signalled:
        return await flow.infer(stop, evaluator, kinds)

    done = _session.execute(settings, work, "infer", Job("infer", "live", rows="signals"))
    for name, value in _session.signal_lines(done).items():
        typer.echo(f"{name:<14} {value}")


def _live(
    settings: Settings, kinds: tuple[str, ...], symbols: tuple[str, ...], duration: str
) -> None:
    providers = _open(settings, kinds, duration)

    from market_data_pipeline.audit import Job
    from market_data_pipeline.signals.assembly import evaluator_of

    evaluator = evaluator_of(settings)

    async def work(flow: Flow, stop: asyncio.Event) -> Summary:
        return await flow.live(providers, symbols, stop, evaluator)

    _finish(settings, work, "live", Job("run", "live", _names(providers), symbols=symbols))


def _recorded(settings: Settings, files: list[str], name: str | None, options: Any) -> None:
    from market_data_pipeline.assembly import window_spec
    from market_data_pipeline.audit import Job
    from market_data_pipeline.cli import _session
    from market_data_pipeline.providers.recording import open_recording
    from market_data_pipeline.signals.assembly import patient_evaluator

    spec = window_spec(settings)
    recording = open_recording(
        files,
        name=name,
        options=options,
        spool_dir=_session.home() / "spool",
        disorder_ns=spec.allow_late_ns + spec.revise_horizon_ns,
    )

    evaluator = patient_evaluator(settings)

    async def work(flow: Flow, stop: asyncio.Event) -> Summary:
        return await flow.record(recording, stop, evaluator=evaluator)

    dataset = name or ", ".join(Path(file).name for file in files)
    job = Job("run", "backfill", name or _session.RECORDING, dataset, options.symbols)
    _finish(settings, work, _session.RECORDING, job)


def _finish(
    settings: Settings,
    work: Callable[[Flow, asyncio.Event], Awaitable[Summary]],
    title: str,
    job: Job,
) -> None:
    from market_data_pipeline.cli import _session

    summary = _session.execute(settings, work, title, job)
    _session.report(settings, summary)
    if not summary.counts.holds():
        raise typer.Exit(1)


def _open(settings: Settings, kinds: tuple[str, ...], duration: str) -> Any:
    from market_data_core.errors import UsageError
    from market_data_core.intervals import NS_PER_S, parse_interval
    from market_data_pipeline.flow import open_providers

    limit_s = parse_interval(duration) / NS_PER_S if duration else None
    providers = open_providers(settings, kinds, limit_s)
    if not providers:
        msg = (
            "no provider is enabled; name one (--provider synthetic), give files, or enable one "
            "under producers: in the configuration"
        )
        raise UsageError(msg)
    return providers


def _names(providers: dict[str, LiveProvider]) -> str:
    return ",".join(provider.name for provider in providers.values())


def _settings(config: Path | None, window: str) -> Settings:
    from market_data_core.config import load_config

    overrides = {"micro_batch.windows": _list(window)} if window else {}
    return load_config(config, overrides)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _columns(pairs: list[str]) -> dict[str, str]:
    from market_data_core.errors import UsageError

    found = {}
    for pair in pairs:
        role, sign, column = pair.partition("=")
        if not sign or not role:
            msg = f"--column {pair!r} is not of the form role=column, such as price=my_px"
            raise UsageError(msg)
        found[role.strip()] = column.strip()
    return found
