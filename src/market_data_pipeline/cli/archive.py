"""``mdp stream archive``: the log's events as Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    import asyncio

    from market_data_pipeline.archive.settings import Archived
    from market_data_pipeline.flow import Flow


def archive(
    config: _output.ConfigOption = None,
    path: Annotated[
        Path | None, typer.Option(help="Folder of the files; default archive.path.")
    ] = None,
    lanes: Annotated[
        bool, typer.Option("--lanes", help="Recordings' topics too, not the live one alone.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Up to what the log holds now, then exit.")
    ] = False,
    duration: Annotated[str, typer.Option("--for", help="Stop after this time, such as 30s.")] = "",
) -> None:
    """Write every event of the log to Parquet files, exactly once, until Ctrl-C.

    Any number of processes share the work; they have to see the same folder.
    """
    from market_data_core.config import load_config
    from market_data_core.intervals import NS_PER_S, parse_interval
    from market_data_pipeline.audit import Job
    from market_data_pipeline.cli import _session

    settings = load_config(config)
    root = path or settings.archive.path
    limit_s = parse_interval(duration) / NS_PER_S if duration else None

    async def work(flow: Flow, stop: asyncio.Event) -> Archived:
        if limit_s is not None:
            import asyncio

            asyncio.get_running_loop().call_later(limit_s, stop.set)
        return await flow.archive(stop, root, once=once, lanes=lanes)

    done = _session.execute(settings, work, "archive", Job("archive", "live", rows="events"))
    typer.echo(f"{'events':<14} {done.events:,}")
    typer.echo(f"{'set aside':<14} {done.set_aside:,}")
    typer.echo(f"{'files':<14} {done.files:,}, {done.size:,} bytes")
    typer.echo(f"{'archive':<14} {root}")
