"""``mdp doctor``: is everything there that a run needs, and in order."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_core.contracts.bus import Bus
    from market_data_core.contracts.store import Gap

State = Literal["ok", "warn", "fail"]

_PYTHON_MIN = (3, 11)
_SQLITE_MIN = (3, 35)
_PACKAGES = (
    "msgspec", "numpy", "polars", "prometheus_client", "pydantic", "rich", "structlog", "xxhash",
    "yaml",
)  # fmt: skip
_FREE_WARN, _FREE_FAIL = 2 << 30, 100 << 20
_MEMORY_WARN = 1 << 30
_YEARS = range(2024, 2100)


@dataclass(frozen=True, slots=True)
class _Check:
    """One line of the diagnosis; `text` says what was found, and what to do about it."""

    name: str
    state: State
    text: str


def doctor(config: _output.ConfigOption = None) -> None:
    """Check the machine, the configuration, bus and store; no file is created.

    Fails if any check fails.
    """
    failed = 0
    for check in _checks(config):
        typer.echo(f"{check.state:<5} {check.name:<14} {check.text}")
        failed += check.state == "fail"
    if failed:
        raise typer.Exit(1)


def _checks(config: Path | None) -> Iterator[_Check]:
    yield _python()
    yield from _packages()
    yield _clock()
    yield from _machine()
    try:
        settings = _output.load_settings(config)
    except MdpError as error:
        yield _Check("configuration", "fail", str(error))
        return
    uri = settings.redacted()["store"]["uri"]
    yield _Check("configuration", "ok", f"bus {settings.bus.type}, store {uri}")
    yield _inference(settings)
    yield from _folders(settings)
    yield _port(settings)
    yield from _output.run_async(_backends(settings))


def _python() -> _Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _PYTHON_MIN:
        return _Check("python", "fail", f"{found}; install 3.11 or newer")
    return _Check("python", "ok", found)


def _packages() -> Iterator[_Check]:
    import importlib

    broken = []
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            broken.append(f"{name} ({error})")
    if broken:
        text = f"cannot be imported: {', '.join(broken)}; install the package again"
        yield _Check("packages", "fail", text)
    else:
        yield _Check("packages", "ok", f"all {len(_PACKAGES)} can be imported")
    # by name: SQL databases are the business of bus and store, this only asks for the version
    version: tuple[int, ...] = importlib.import_module("sqlite3").sqlite_version_info
    text = ".".join(map(str, version))
    if version < _SQLITE_MIN:
        yield _Check("sqlite", "fail", f"{text}; a Python with SQLite 3.35 or newer is needed")
    else:
        yield _Check("sqlite", "ok", text)


def _clock() -> _Check:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    if now.year not in _YEARS:
        return _Check("clock", "fail", f"{now:%Y-%m-%d} cannot be; set the machine's clock")
    return _Check("clock", "ok", f"{now:%Y-%m-%dT%H:%M:%SZ}")


def _machine() -> Iterator[_Check]:
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield _Check("cpu", "ok", f"{cores} cores")
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        yield _Check("memory", "warn", "cannot be told on this system")
        return
    if memory < _MEMORY_WARN:
        yield _Check("memory", "warn", f"{_size(memory)}; 1 GB or more is advisable")
    else:
        yield _Check("memory", "ok", _size(memory))


def _inference(settings: Settings) -> _Check:
    """Features, rules and models, loaded as inference does it."""
    from market_data_pipeline.signals.assembly import evaluator_of

    try:
        evaluator = evaluator_of(settings)
        if evaluator is None:
            return _Check("inference", "ok", "no adapter is enabled: bars give no signals")
        for length in settings.micro_batch.windows_ns:
            evaluator.needs(length)  # features are made when they are needed
    except MdpError as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())
        return _Check("inference", "fail", text)
    told = []
    for guard in evaluator.guards:
        count, what = len(guard.names), "rule" if guard.name == "rules" else "signal"
        told.append(f"{guard.name} with {count} {what}{'' if count == 1 else 's'}")
    return _Check("inference", "ok", f"enabled: {', '.join(told)}")


def _folders(settings: Settings) -> Iterator[_Check]:
    """Folders that the embedded backends write to, and the space there."""
    import os
    import shutil

    from market_data_pipeline.backends import store_file

    file = store_file(settings)
    folders = {"store": file.parent} if file is not None else {}
    if settings.bus.type == "embedded":
        folders["bus"] = Path(settings.bus.embedded.path)
    for whose, folder in folders.items():
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            text = f"{folder} cannot be written; change its permissions, or set MDP_HOME"
            yield _Check(f"{whose} folder", "fail", text)
            continue
        text = f"{folder}{'' if there == folder else ' (not yet made)'}"
        yield _Check(f"{whose} folder", "ok", text)
        free = shutil.disk_usage(there).free
        state: State = "fail" if free < _FREE_FAIL else "warn" if free < _FREE_WARN else "ok"
        advice = "" if state == "ok" else "; make room, or lower bus.retention"
        yield _Check(f"{whose} disk", state, f"{_size(free)} free at {there}{advice}")


def _port(settings: Settings) -> _Check:
    import socket

    host, port = settings.telemetry.metrics_host, settings.telemetry.metrics_port
    if not port:
        return _Check("metrics port", "ok", "metrics are not served")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            text = f"{host}:{port}: {error.strerror or error}; the next free port will be used"
            return _Check("metrics port", "warn", text)
    return _Check("metrics port", "ok", f"{host}:{port} is free")


async def _backends(settings: Settings) -> list[_Check]:
    bus = await _guarded("bus", lambda: _bus(settings))
    store = await _guarded("store", lambda: _store(settings))
    return [*bus, *store]


async def _guarded(name: str, check: Callable[[], Awaitable[list[_Check]]]) -> list[_Check]:
    try:
        return await check()
    except MdpError as error:
        return [_Check(name, "fail", str(error))]


async def _bus(settings: Settings) -> list[_Check]:
    from market_data_pipeline.backends import open_bus

    found = []
    if settings.bus.type == "embedded":
        files = sorted(Path(settings.bus.embedded.path).glob("*.db"))
        empty = ", ".join(str(file) for file in files if not file.stat().st_size)
        if empty:
            text = f"empty: {empty}; if it was a log, what it held is lost"
            found = [_Check("bus files", "warn", text)]
    bus = open_bus(settings)
    try:
        topics = await bus.topics()
        if not topics:
            return [*found, _Check("bus", "ok", "no topics yet")]
        for topic in topics:
            for number in range(topic.partitions):
                await _ends(bus, topic.name, number)
        names = ", ".join(topic.name for topic in topics[:5])
        more = f" and {len(topics) - 5} more" if len(topics) > 5 else ""
        text = f"{len(topics)} topics can be read: {names}{more}"
        return [*found, _Check("bus", "ok", text), *await _generations(bus, settings)]
    finally:
        await bus.close()


async def _generations(bus: Bus, settings: Settings) -> list[_Check]:
    """Whether the topics of the live feeds have the partitions that the registry tells."""
    from market_data_core.clock import SystemClock
    from market_data_core.events import format_ts
    from market_data_pipeline.generations import Generations

    clock, name = SystemClock(), settings.bus.events_topic
    timeline = await Generations(bus, name, clock).look(settings.bus.partitions)
    if len(timeline.generations) == 1:
        return []  # its topic is among those that can be read
    newest, told = timeline.newest, []
    for generation in timeline.generations:
        info = await bus.find_topic(generation.topic)
        told.append(f"{generation.topic} with {generation.partitions} partitions")
        if info is None and generation.from_ts <= clock.now_ns():
            text = f"topic {generation.topic} is missing; restore it from a backup"
            return [_Check("generations", "fail", text)]
        if info is not None and info.partitions != newest.partitions and generation is newest:
            text = (
                f"topic {info.name} has {info.partitions} partitions instead of "
                f"{newest.partitions}: run mdp stream repartition --partitions {info.partitions}"
            )
            return [_Check("generations", "fail", text)]
    begun = newest.from_ts <= clock.now_ns()
    since = f"the newest {'since' if begun else 'from'} {format_ts(newest.from_ts)}"
    return [_Check("generations", "ok", f"{', '.join(told)}; {since}")]


async def _ends(bus: Bus, topic: str, partition: int) -> None:
    """Read the first and the last record of a partition; mdp verify reads all the others.

    Raises:
        MdpError: they cannot be read, or are not what was written.
    """
    bounds = await bus.bounds(topic, partition)
    for offset in {bounds.first, bounds.next - 1} if bounds.next > bounds.first else ():
        found = await bus.poll(topic, {partition: offset}, 1, 0)
        for record in found.get(partition, ())[:1]:  # the last place may hold nothing of effect
            if record.checksum != await bus.checksum(topic, partition, record.offset):
                msg = (
                    f"{topic}, partition {partition}, record {record.offset} is not what was "
                    "written; restore the topic from a backup"
                )
                raise MdpError(msg)


async def _store(settings: Settings) -> list[_Check]:
    from market_data_pipeline.backends import missing_store, open_store
    from market_data_pipeline.cli.conservation import read_counts

    if missing_store(settings):
        return [_Check("store", "ok", "no store yet; the first run makes one")]
    store = open_store(settings)
    try:
        behind = await store.schema_behind()
        if behind:
            text = f"its schema lacks {behind} steps of this release's; the next run takes them"
            return [_Check("store", "warn", text)]
        terms = await read_counts(store, settings.bus.group)
        gaps = [gap for gap in await store.gaps() if gap.state == "open"]
    finally:
        await store.close()
    found = [_Check("store", "ok", "opens, and its schema is this release's")]
    broken = [f"{topic} {number}" for topic, number, counts in terms if not counts.holds()]
    if broken:
        text = f"does not hold for {', '.join(broken)}; run mdp conservation, then mdp verify"
        found.append(_Check("conservation", "fail", text))
    else:
        found.append(_Check("conservation", "ok", f"holds for all {len(terms)} partitions"))
    return [*found, _gaps(gaps)]


def _gaps(gaps: Sequence[Gap]) -> _Check:
    from market_data_core.events import format_ts

    if not gaps:
        return _Check("gaps", "ok", "none is open")
    last = max(gaps, key=lambda gap: (gap.to_ts, gap.from_ts))
    span = f"{format_ts(last.from_ts)} to {format_ts(last.to_ts)}"
    cause = last.cause.replace("_", " ")
    text = (
        f"{len(gaps)} open, the latest of {last.provider}, {span} ({cause}); "
        "bars with the state 'gap' lack events, see docs/how-to/recover-from-a-lost-log.md"
    )
    return _Check("gaps", "warn", text)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
