"""What ``mdp features`` is made of: columns by name, where bars come from, files of the matrix."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import polars as pl

from market_data_core import registry
from market_data_core._suggest import did_you_mean
from market_data_core.config import BAR_COLUMNS, Settings, load_config
from market_data_core.contracts.feature import Feature
from market_data_core.contracts.store import Tables
from market_data_core.errors import ConfigError, MdpError, UsageError
from market_data_core.events import SRC_TS_MAX, SRC_TS_MIN
from market_data_core.intervals import format_interval
from market_data_pipeline.archive.files import Selection
from market_data_pipeline.archive.recording import archive_recording
from market_data_pipeline.backends import missing_store, open_backends, open_bus
from market_data_pipeline.cli import _session
from market_data_pipeline.cli.replay import Asked
from market_data_pipeline.feature_export import Matrix, matrix_frames
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.flow import Flow
from market_data_pipeline.labels import parse_label
from market_data_pipeline.signals.assembly import evaluator_of
from market_data_store.frames import json_lines, with_iso_times
from market_data_store.transfer import replacing, write_parquet

if TYPE_CHECKING:
    from market_data_pipeline.cli.features import Form

_ALL = "all"


def described(settings: Settings) -> list[dict[str, Any]]:
    """Every column: its name, family, span, greatest number of bars, and what it is."""
    interval_ns = settings.micro_batch.windows_ns[0]
    found = catalog(settings.features, interval_ns)
    families = registry.backends("feature")
    configured = {window.name: window.family for window in settings.features.windows}
    rows = []
    for name in found:
        own = configured.get(name, name)
        family = max((f for f in families if f"{own}_".startswith(f"{f}_")), key=len)
        row: dict[str, Any] = {"name": name, "family": family, "span": "", "bars": None}
        row["summary"] = registry.backend("feature", family).summary
        try:
            span = found[name].span
        except ConfigError as error:  # the window is too short for these bars
            rows.append(row | {"summary": str(error)})
            continue
        text = f"{span.bars} bars" if span.horizon_ns is None else format_interval(span.horizon_ns)
        rows.append(row | {"span": text, "bars": span.depth(interval_ns)})
    return rows


def matrix(
    settings: Settings, asked: Asked, interval_ns: int, columns: str, labels: Sequence[str]
) -> Matrix:
    """What to compute.

    Args:
        settings: the configuration.
        asked: of which bars.
        interval_ns: their length.
        columns: names of features separated by commas, ``all``, or none for the default.
        labels: how far ahead each one looks.

    Raises:
        ConfigError: features, rules or models are wrong.
        UsageError: there is no such column, or a label is none.
    """
    parsed = [parse_label(text, interval_ns) for text in dict.fromkeys(labels)]
    return Matrix(
        interval_ns,
        _features(settings, interval_ns, columns),
        parsed,
        settings.features.session_gap_ns,
        asked.provider,
        asked.symbols,
        asked.start,
        asked.end,
    )


def _features(settings: Settings, interval_ns: int, columns: str) -> dict[str, Feature]:
    found = catalog(settings.features, interval_ns)
    named = [part.strip() for part in columns.split(",") if part.strip()]
    if named and named != [_ALL]:
        for name in named:
            if name not in found and name not in BAR_COLUMNS:
                msg = f"--columns {name!r}: no such feature; {did_you_mean(name, tuple(found))}"
                raise UsageError(msg)
        return {name: found[name] for name in named if name not in BAR_COLUMNS}
    configured = [window.name for window in settings.features.windows]
    fitting = {}
    for name in found if named else configured:
        try:
            fitting[name] = found[name]
        except ConfigError as error:
            sys.stderr.write(f"left out: {error}\n")
    if not named:
        evaluator = evaluator_of(settings)
        needs = evaluator.needs(interval_ns) if evaluator else None
        fitting |= needs.features if needs else {}
    return fitting


@asynccontextmanager
async def stored(settings: Settings) -> AsyncIterator[Tables]:
    """The configured store, for reading.

    Raises:
        MdpError: there is none yet.
    """
    absent = missing_store(settings)
    if absent:
        raise MdpError(absent)
    async with open_backends(settings, wait=False) as backends:
        yield backends.store


@asynccontextmanager
async def archived(
    settings: Settings, config: Path | None, root: Path, what: Matrix
) -> AsyncIterator[Tables]:
    """A store of its own, gone afterwards, with the bars of an archive's events.

    These are all of the events before the end, since features look at the bars before the start.

    Args:
        settings: the configuration; its bus knows what the live run has set aside.
        config: where it is from.
        root: the archive's folder.
        what: the bars.

    Raises:
        UsageError: there is no archive, or nothing in it of what is asked.
    """
    end = SRC_TS_MAX if what.end is None else what.end
    indices = what.needs.indices if what.symbols else ()  # of all symbols they are among them
    wanted = Selection(SRC_TS_MIN, end, what.provider, (*what.symbols, *indices))
    bus = open_bus(settings)
    try:
        recording = await archive_recording(bus, root, wanted)
    finally:
        await bus.close()
    spool = _session.home() / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=spool) as folder:
        own = {
            "bus.type": "embedded",
            "bus.embedded.path": f"{folder}/bus",
            "store.uri": f"sqlite:///{folder}/store.db",
            "micro_batch.windows": [format_interval(what.interval_ns)],
        }
        alone = load_config(config, own)
        async with open_backends(alone) as backends:
            await Flow(alone, backends).record(recording, asyncio.Event())
            yield backends.store


async def write(
    source: AbstractAsyncContextManager[Tables], what: Matrix, form: Form, output: Path | None
) -> int:
    """Write the matrix to a file, which appears when it is whole, or to standard output.

    Returns:
        How many rows there are.

    Raises:
        MdpError: there are none.
        UsageError: the file cannot be written.
    """
    async with source as store, aclosing(matrix_frames(store, what)) as frames:
        first = await anext(frames, None)
        if first is None:
            msg = (
                f"no bars of {format_interval(what.interval_ns)} for what is asked; "
                "mdp bars SYMBOL shows what there is"
            )
            raise MdpError(msg)
        every = _chained(first, frames)
        if output is not None:
            with replacing(output) as part:
                if form == "parquet":
                    return await write_parquet(every, part)
                with part.open("wb") as file:
                    return await _write_text(every, form, file)
        sys.stdout.flush()
        if form != "parquet":
            return await _write_text(every, form, sys.stdout.buffer)
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            rows = await write_parquet(every, part)
            with part.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            return rows


async def _chained(
    first: pl.DataFrame, frames: AsyncIterator[pl.DataFrame]
) -> AsyncIterator[pl.DataFrame]:
    yield first
    async for frame in frames:
        yield frame


async def _write_text(frames: AsyncIterator[pl.DataFrame], form: Form, file: IO[bytes]) -> int:
    rows = 0
    async for frame in frames:
        if form == "csv":
            file.write(with_iso_times(frame).write_csv(include_header=not rows).encode())
        else:
            file.write((b",\n " if rows else b"[") + b",\n ".join(json_lines(frame, ())))
        rows += len(frame)
    if form == "json":
        file.write(b"]\n")
    file.flush()
    return rows
