"""The exported matrix holds, bit for bit, what a model saw while the market was live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from market_data_core.config import Settings, load_config
from market_data_core.contracts.provider import Item, Subscription
from market_data_core.contracts.store import Tables
from market_data_core.events import EventBatch, format_ts, make_batch
from market_data_core.tables import BARS, Select
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.cli import app
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.flow import Flow
from market_data_pipeline.inference.guard import Said
from market_data_pipeline.providers.recording import RecordingOptions, open_recording
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.rows import SelectedRows

if TYPE_CHECKING:
    from tests.servers.postgres import Server

S = 10**9
START = 1_761_314_400 * S
ENOUGH_S = 50
CONFIG = """
version: 1
bus: {partitions: 4}
micro_batch: {windows: [2s, 10s], commit_interval_ms: 20, lease_ms: 600}
telemetry: {metrics_port: 0}
features:
  session_gap: 12s
  index: AA
  windows:
    - {name: vwap_1m, horizon: 60s}
    - {name: beta_40s, horizon: 40s}
    - {name: excess_btc, feature: excess, horizon: 20s, parameters: {index: BTCUSDT}}
inference: {adapters: {rules: {enabled: false}}}
"""
INTERVALS = ("2s", "10s")
Seen = dict[tuple[str, int], NDArray[np.float64]]
"""Symbol and start of the bar, UTC ns -> the features that were seen last."""


class Capturing:
    """A guard that never says anything, and remembers what it was shown."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.name, self.version, self.cooldown_ns = "capturing", "1", 0
        self.names: tuple[str, ...] = ("nothing",)
        self.standby = ""
        self.seen: dict[str, Seen] = {interval: {} for interval in INTERVALS}
        self.again = self.sent = 0
        self._columns = columns

    def columns(self, _: str) -> Mapping[str, int]:
        return dict.fromkeys(self._columns, 0)

    async def evaluate(self, rows: SelectedRows) -> Said:
        values = np.column_stack([rows.value(name) for name in self._columns])
        names = [rows.symbols[code] for code in rows.codes]
        seen = self.seen[rows.interval]
        for symbol, start, row in zip(names, rows.starts.tolist(), values, strict=True):
            self.again += (symbol, start) in seen
            seen[symbol, start] = row
        return Said([], self.names)

    def close(self) -> None:
        """Nothing is held."""


class Feed:
    """A live feed that sends some batches, each when all before it has been seen, and ends."""

    name = "rec"

    def __init__(self, batches: Sequence[EventBatch], store: Tables, guard: Capturing) -> None:
        self._batches, self._store, self._guard = batches, store, guard
        self.flow: Flow | None = None
        self.before = 0

    async def stream(self, _: Subscription) -> AsyncIterator[Item]:
        assert self.flow is not None
        sent = self.before
        for batch in self._batches:
            yield batch
            sent += len(batch)
            while self.flow.progress.counts.received < sent or not await self._seen():
                await asyncio.sleep(0.002)

    async def _seen(self) -> bool:
        """Whether every bar that is stored has been evaluated at least once."""
        frame = await self._store.select(Select(BARS))
        return len(frame) == sum(map(len, self._guard.seen.values()))


def generated() -> EventBatch:
    """Five minutes of some symbols, of which one trades seldom."""
    rng = np.random.default_rng(7)
    n = 4_000
    ts = START + np.sort(rng.integers(0, 300 * S, n))
    share = [0.3, 0.25, 0.2, 0.14, 0.1, 0.01]
    names = rng.choice(["AA", "BB", "CC", "DD", "EE", "FF"], n, p=share)
    price = np.round(100 * np.exp(np.cumsum(rng.normal(0, 1e-4, n))), 2)
    size = rng.integers(0, 50, n).astype(float)
    return make_batch("rec", names.tolist(), ts, range(n), price, size)


def recorded(folder: Path, spool: Path) -> EventBatch:
    """Some minutes of two symbols of an exchange."""
    files = [str(folder / "binance" / f"spot_{s}usdt_20240808.ndjson.gz") for s in ("btc", "eth")]
    options = RecordingOptions()
    recording = open_recording(
        files, name="rec", options=options, spool_dir=spool, disorder_ns=10 * S
    )
    first = next(iter(recording.read()))
    assert isinstance(first, EventBatch)
    return first


def on_the_wire(events: EventBatch, parts: int, batches: int) -> list[list[EventBatch]]:
    """The events as they come: some are late, so that bars have to be restated, or too late."""
    rng = np.random.default_rng(1)
    delay = np.where(rng.random(len(events)) < 0.02, rng.integers(1 * S, 12 * S, len(events)), 0)
    order = np.argsort(events.src_ts + delay, kind="stable")
    pieces = iter(np.array_split(order, parts * batches))
    return [[events.take(next(pieces)) for _ in range(batches)] for _ in range(parts)]


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    if request.param == "postgres":
        server: Server = request.getfixturevalue("postgres")
        monkeypatch.setenv("MDP_STORE_URI", server.new_schema())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    Path("configs").mkdir()
    Path("configs/streaming.yaml").write_text(CONFIG)
    return load_config()


def columns_of(settings: Settings) -> list[str]:
    return list(catalog(settings.features, settings.micro_batch.windows_ns[0]))


def fresh(settings: Settings, guard: Capturing) -> Evaluator:
    """What a worker that has just been started evaluates with."""
    features = settings.features
    return Evaluator(partial(catalog, features), [guard], features.session_gap_ns, "")


async def live(
    settings: Settings,
    backends: Backends,
    guard: Capturing,
    part: Sequence[EventBatch],
    evaluator: Evaluator | None,
) -> None:
    """A live run of a part of the events, to its end."""
    feed, flow = Feed(part, backends.store, guard), Flow(settings, backends)
    feed.flow, feed.before = flow, guard.sent
    done = await flow.live({"rec": feed}, (), asyncio.Event(), evaluator)
    guard.sent += sum(map(len, part))
    assert done.counts.holds()
    assert done.counts.received == guard.sent


async def one_worker(settings: Settings, parts: list[list[EventBatch]], guard: Capturing) -> None:
    """Everything in one process, stopped and started again between the parts."""
    for part in parts:
        async with open_backends(settings) as backends, asyncio.timeout(ENOUGH_S):
            await live(settings, backends, guard, part, fresh(settings, guard))


async def two_workers(settings: Settings, parts: list[list[EventBatch]], guard: Capturing) -> None:
    """Two at once; between the parts one of them goes, and another one comes."""
    async with open_backends(settings) as backends, asyncio.timeout(ENOUGH_S):
        workers = [Worker(settings, backends, guard), Worker(settings, backends, guard)]
        for part in parts:
            await live(settings, backends, guard, part, None)
            workers.append(Worker(settings, backends, guard))
            await workers.pop(0).end()
        for worker in workers:
            await worker.end()
        await Worker(settings, backends, guard).end()


class Worker:
    """A worker of inference on its own."""

    def __init__(self, settings: Settings, backends: Backends, guard: Capturing) -> None:
        self._stop = asyncio.Event()
        work = Flow(settings, backends).infer(self._stop, fresh(settings, guard), drain=True)
        self._task = asyncio.create_task(work)

    async def end(self) -> None:
        """Let it finish what there is."""
        self._stop.set()
        await self._task


def exported(*arguments: str) -> pl.DataFrame:
    """What ``mdp features export`` writes."""
    result = CliRunner().invoke(app, ["features", "export", *arguments, "-o", "m.parquet"])
    assert result.exit_code == 0, (result.output, result.exception)
    return pl.read_parquet("m.parquet")


def bits(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The numbers' bits; there is one NaN."""
    return np.where(np.isnan(values), np.nan, values).view(np.int64)


@pytest.mark.parametrize(
    ("source", "workers", "settings"),
    [
        ("recorded", 1, "sqlite"),
        ("generated", 1, "sqlite"),
        ("generated", 2, "sqlite"),
        ("generated", 2, "postgres"),
    ],
    indirect=["settings"],
)
def test_what_is_exported_is_what_was_seen(
    source: str, workers: int, settings: Settings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if source == "recorded":
        events = recorded(request.getfixturevalue("recorded_data"), tmp_path)
    else:
        events = generated()
    columns = columns_of(settings)
    guard = Capturing(columns)
    run = one_worker if workers == 1 else two_workers
    asyncio.run(run(settings, on_the_wire(events, parts=3, batches=12), guard))

    assert guard.again > 10  # bars were restated after they had been seen
    for interval, seen in guard.seen.items():
        asked = ("--interval", interval, "--columns", ",".join(columns), "--label", "20s")
        frame = exported(*asked)
        keys = list(zip(frame["symbol"], frame["ts"].to_physical(), strict=True))
        assert set(keys) == set(seen)
        assert len(keys) > 60
        served = np.stack([seen[key] for key in keys])
        for place, name in enumerate(columns):
            trained = frame[name].fill_null(float("nan")).to_numpy()
            differ = np.flatnonzero(bits(trained) != bits(served[:, place]))
            assert not len(differ), (name, [keys[row] for row in differ[:5]])
        middle = sorted(frame["ts"].to_physical())[len(frame) // 2]
        part = exported(*asked, "--from", format_ts(middle))
        assert part.equals(frame.filter(frame["ts"].to_physical() >= middle))
