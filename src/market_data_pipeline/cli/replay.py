"""``mdp stream replay``: what is kept of a feed, through the windows once more."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    import asyncio

    from market_data_core.config import Settings
    from market_data_core.contracts.provider import Recording
    from market_data_core.datasets import DatasetSettings
    from market_data_pipeline.assembly import Summary
    from market_data_pipeline.flow import Flow

_SPEED = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)x")
_TICK = "tick"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be replayed; times in UTC ns, None for no bound."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()
    interval: str = _TICK
    start: int | None = None
    end: int | None = None
    name: str | None = None


def replay(
    dataset: Annotated[
        str | None, typer.Option(help="Name of a dataset in configs/datasets.yaml.")
    ] = None,
    archive: Annotated[bool, typer.Option("--archive", help="Events of the archive.")] = False,
    path: Annotated[
        Path | None, typer.Option(help="The archive's folder; default archive.path.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only this feed.")] = None,
    symbols: Annotated[str, typer.Option(help="Only these symbols, separated by commas.")] = "",
    from_: Annotated[str | None, typer.Option("--from", help="ISO time or date, UTC.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="ISO time or date, UTC, exclusive.")
    ] = None,
    speed: Annotated[
        str, typer.Option(help="10x: ten times as fast as it happened; max: as fast as it goes.")
    ] = "max",
    name: Annotated[
        str, typer.Option("--as", help="Name of the replayed feed; default its own.")
    ] = "",
    window: Annotated[str, typer.Option(help="Window lengths, such as 1s,1m,5m.")] = "",
    datasets: Annotated[Path, typer.Option(help="File that names the datasets.")] = Path(
        "configs/datasets.yaml"
    ),
    config: _output.ConfigOption = None,
) -> None:
    """Carry kept events, or bars, into the bus as a lane and through the windows to the store.

    Replaying twice changes no row. One that was broken off goes on where it stood.
    """
    from market_data_core.config import load_config
    from market_data_core.datasets import find_dataset
    from market_data_core.errors import UsageError

    if (dataset is None) == (not archive):
        msg = "say what to replay: --dataset NAME, or --archive"
        raise UsageError(msg)
    chosen = tuple(s.strip().upper() for s in symbols.split(",") if s.strip())
    start, end = _output.parse_range(from_, to)
    known = find_dataset(dataset, datasets) if dataset else None
    asked = asked_for(known, provider, chosen, start, end, name or None)
    factor = _factor(speed)
    windows = [part.strip() for part in window.split(",") if part.strip()]
    settings = load_config(config, {"micro_batch.windows": windows} if windows else {})
    carry_kept(settings, asked, path or settings.archive.path, factor, dataset or "")


def carry_kept(
    settings: Settings, asked: Asked, root: Path, factor: float | None = None, dataset: str = ""
) -> None:
    """Carry what is asked for to its last bar, and print what was done.

    Args:
        settings: the configuration.
        asked: what to carry.
        root: the archive's folder.
        factor: how many times faster than it happened; None for as fast as it goes.
        dataset: its name; the archive's folder by default.

    Raises:
        UsageError: there is nothing of what is asked.
    """
    with ExitStack() as stack:
        recording = _output.run_async(_recording(settings, asked, root, factor, stack))
        _carry(settings, recording, factor, asked, dataset or str(root))


def _factor(speed: str) -> float | None:
    """How many times faster than it happened; None for as fast as it goes.

    Raises:
        UsageError: it is neither ``max`` nor a number and ``x``.
    """
    from market_data_core.errors import UsageError

    if speed == "max":
        return None
    found = _SPEED.fullmatch(speed.strip())
    if found is None or not float(found[1]):
        msg = f"--speed {speed!r}: write max, or how many times faster: 1x, 10x, 0.5x"
        raise UsageError(msg)
    return float(found[1])


def asked_for(
    dataset: DatasetSettings | None,
    provider: str | None,
    symbols: tuple[str, ...],
    start: int | None,
    end: int | None,
    name: str | None,
) -> Asked:
    """What the options say, and the dataset where they are silent.

    Raises:
        UsageError: they contradict one another.
    """
    from market_data_core.errors import UsageError

    if dataset is None:
        return Asked(provider, symbols, _TICK, start, end, name)
    if provider not in (None, dataset.provider):
        msg = f"--provider {provider!r}: the dataset is of {dataset.provider!r}"
        raise UsageError(msg)
    strange = [s for s in symbols if dataset.symbols and s not in dataset.symbols]
    if strange:
        msg = f"--symbols {strange[0]}: the dataset has {', '.join(dataset.symbols)}"
        raise UsageError(msg)
    begin = dataset.from_ts if start is None else start
    until = dataset.to_ts if end is None else end
    if begin is not None and until is not None and begin >= until:
        msg = (
            "nothing lies between --from and --to; the dataset's own take the place of one left out"
        )
        raise UsageError(msg)
    chosen = symbols or dataset.symbols
    return Asked(dataset.provider, chosen, dataset.interval, begin, until, name)


async def _recording(
    settings: Settings, asked: Asked, root: Path, factor: float | None, stack: ExitStack
) -> Recording:
    """What is to be replayed; files that it needs last as long as `stack`.

    Raises:
        UsageError: there is nothing.
    """
    import tempfile

    from market_data_core.events import SRC_TS_MAX, SRC_TS_MIN
    from market_data_pipeline.archive.files import Selection
    from market_data_pipeline.archive.recording import archive_recording, bars_recording
    from market_data_pipeline.backends import open_backends
    from market_data_pipeline.cli import _session

    start = SRC_TS_MIN if asked.start is None else asked.start
    end = SRC_TS_MAX if asked.end is None else asked.end
    wanted = Selection(start, end, asked.provider, asked.symbols)
    async with open_backends(settings) as backends:
        if asked.interval == _TICK:
            paced = factor is not None
            return await archive_recording(backends.bus, root, wanted, asked.name, paced)
        spool = _session.home() / "spool"
        spool.mkdir(parents=True, exist_ok=True)
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=spool))
        return await bars_recording(
            backends.store, wanted, asked.interval, asked.name, Path(folder)
        )


def _carry(
    settings: Settings, recording: Recording, factor: float | None, asked: Asked, dataset: str
) -> None:
    from market_data_pipeline.audit import Job
    from market_data_pipeline.cli import _session
    from market_data_pipeline.signals.assembly import patient_evaluator

    evaluator = patient_evaluator(settings)

    async def work(flow: Flow, stop: asyncio.Event) -> Summary:
        return await flow.record(recording, stop, factor, evaluator)

    feed = asked.name or asked.provider or ""
    job = Job("replay", "backfill", feed, dataset, asked.symbols)
    summary = _session.execute(settings, work, _session.RECORDING, job)
    _session.report(settings, summary)
    if not summary.counts.holds():
        raise typer.Exit(1)
