"""Our side: the window engine alone, the whole path, and the figures of the live edge.

Each function is one run and times itself, so that starting and cleaning up stay outside the clock.
What it returns is checked against the expected answer like everybody else's.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contender import Contender, Figure, Result, answer_of
from benchmarks.workload import LATENESS_NS, PROVIDER, WINDOW_NS, Cache
from market_data_core.clock import SystemClock
from market_data_core.config import Settings, load_config
from market_data_core.contracts.provider import Item, Recording, Subscription
from market_data_core.contracts.store import Group
from market_data_core.events import EventBatch, Tick
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_pipeline.allocator import tune_memory
from market_data_pipeline.assembly import Summary
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.flow import Flow
from market_data_pipeline.providers.recording import open_recording
from market_data_pipeline.windows.assigner import FOREVER, WindowSpec
from market_data_pipeline.windows.collected import Collected
from market_data_pipeline.windows.stream import WindowStream

LIVE_S = float(os.environ.get("BENCH_LIVE_S", "20"))
_MEMORY_S = float(os.environ.get("BENCH_MEMORY_S", "60"))
_EDGE_EVENTS = 1_000_000
_BUSY, _QUIET = 40, 40


def engine_only(batches: Sequence[EventBatch]) -> Result:
    """The window engine over ready batches, to the last bar; nothing is stored."""
    stream = WindowStream(WindowSpec((WINDOW_NS,), LATENESS_NS, 10 * NS_PER_S))
    rows: list[tuple[Any, ...]] = []
    duplicates, spent = 0, 0.0

    def keep(collected: Collected) -> None:
        nonlocal duplicates
        duplicates += collected.deduplicated
        for bars in (closed.bars for closed in collected.bars):
            volume, notional = bars.volume.to_floats(), bars.notional.to_floats()
            prices = (bars.open, bars.high, bars.low, bars.close)
            rows.append((*(p.to_floats() for p in prices), volume, notional / volume, bars.count))

    began = time.perf_counter()
    for position, batch in enumerate(batches):
        stream.add(batch, position)
        if stream.due():
            keep(stream.collect())
    stream.advance(FOREVER)
    keep(stream.collect())
    spent = time.perf_counter() - began
    columns = [np.concatenate(parts).tolist() for parts in zip(*rows, strict=True)]
    return Result(spent, answer_of(zip(*columns, strict=True), duplicates))


class Batches:
    """Ready batches as a recording."""

    lane = "bench"

    def __init__(self, batches: Sequence[EventBatch]) -> None:
        self._batches = batches

    def read(self) -> Iterator[EventBatch]:
        return iter(self._batches)

    def presorted(self) -> Recording:
        return self


def settings_in(folder: str, synchronous: str = "normal", **overrides: object) -> Settings:
    return load_config(
        None,
        {
            "bus.embedded.path": f"{folder}/bus",
            "bus.embedded.synchronous": synchronous,
            "store.uri": f"sqlite:///{folder}/store.db?synchronous={synchronous}",
            **overrides,
        },
    )


async def recorded(settings: Settings, recording: Any) -> Result:
    async with open_backends(settings) as backends:
        flow = Flow(settings, backends)
        began = time.perf_counter()
        summary: Summary = await flow.record(recording, asyncio.Event())
        spent = time.perf_counter() - began
        frame = await backends.store.bars(interval="2s")
    names = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
    return Result(spent, answer_of(frame.select(names).iter_rows(), summary.counts.deduplicated))


def whole_path_columns(batches: Sequence[EventBatch], synchronous: str) -> Result:
    """Batches → durable embedded bus → engine → store, from the first event to the last commit.

    Args:
        batches: in arrival order.
        synchronous: SQLite's setting of that name for bus and store, ``NORMAL`` or ``FULL``.
    """
    tune_memory()  # as every long-running command does
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        settings = settings_in(folder, synchronous.lower())
        return asyncio.run(recorded(settings, Batches(batches)))


def whole_path_ndjson(path: Path) -> Result:
    """A file of single version-1 events → bus → engine → store, to the last commit.

    The pass that hashes the file (to find out whether it was carried before) is in the time.
    """
    tune_memory()
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        began = time.perf_counter()
        recording = open_recording([str(path)], spool_dir=Path(folder))
        opening = time.perf_counter() - began
        result = asyncio.run(recorded(settings_in(folder), recording))
        return Result(result.seconds + opening, result.answer)


class Feed:
    """Single ticks, as an asynchronous provider yields them; `rate` per second, 0 for all at once.

    A third of the symbols is quiet: one event every two seconds each.
    """

    name = PROVIDER

    def __init__(self, rate: int, seconds: float, events: int = 0) -> None:
        self._rate, self._seconds, self._events = rate, seconds, events

    async def stream(self, subscription: Subscription) -> AsyncIterator[Item]:
        busy = [f"BUSY{i:02d}" for i in range(_BUSY)]
        quiet = [f"QUIET{i:02d}" for i in range(_QUIET)]
        seq = 0
        began = time.time_ns()
        if self._events:
            for seq in range(self._events):
                yield Tick(busy[seq % _BUSY], began + seq * 1_000, 100.25, 3.0, seq)
            return
        period = NS_PER_S // self._rate
        while (now := time.time_ns()) < began + self._seconds * NS_PER_S:
            while began + seq * period <= now:
                slow = seq % (self._rate * 2 // _QUIET) == 0
                names = quiet if slow else busy
                yield Tick(names[seq % len(names)], time.time_ns(), 100.25, 3.0, seq)
                seq += 1
            await asyncio.sleep(0.0005)


class Watched:
    """A backend that notes when each call of one method has returned, and `of` its arguments."""

    def __init__(self, inner: Any, method: str, of: Callable[..., Any]) -> None:
        self._inner, self._method, self._of = inner, method, of
        self.calls: list[tuple[int, Any]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method:
            return found

        async def watched(*arguments: Any) -> Any:
            result = await found(*arguments)
            self.calls.append((time.time_ns(), self._of(*arguments)))
            return result

        return watched


def p99(values_ns: Sequence[float]) -> float:
    return float(np.percentile(np.array(values_ns), 99)) / NS_PER_MS


async def _produced(feed: Feed) -> tuple[float, list[tuple[int, Any]]]:
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        return await produced(settings_in(folder), feed)


async def produced(settings: Settings, feed: Feed) -> tuple[float, list[tuple[int, Any]]]:
    """Seconds until a feed is durable, and each append: when it returned (UTC ns), its entries."""
    async with open_backends(settings) as backends:
        bus = Watched(backends.bus, "append", lambda _, entries: entries)
        flow = Flow(settings, Backends(bus, backends.store, SystemClock()))
        began = time.perf_counter()
        await flow.produce({PROVIDER: feed}, (), asyncio.Event())
        return time.perf_counter() - began, bus.calls


def live_edge() -> list[Figure]:
    """One producer fed single events: its greatest rate, and the delay to durable at 10 k/s."""
    seconds, _ = asyncio.run(_produced(Feed(0, 0, _EDGE_EVENTS)))
    _, calls = asyncio.run(_produced(Feed(10_000, LIVE_S / 2)))
    delays: list[float] = []
    for done, entries in calls:
        for entry in entries:
            item = codec.decode(entry.payload)
            if isinstance(item, EventBatch):
                delays += (done - item.src_ts).tolist()
    return [
        Figure("single events into the bus", _EDGE_EVENTS / seconds, "events/s", ">= 400000"),
        Figure("event to durable at 10 k/s, p99", p99(delays), "ms", "<= 10"),
    ]


async def live(rate: int, seconds: float, **overrides: object) -> tuple[list[float], list[float]]:
    """Bar delays in ns, and resident bytes once a second."""
    resident: list[float] = []

    async def sample() -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
            await asyncio.sleep(1)

    tune_memory()
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        settings = settings_in(folder, **overrides)
        async with open_backends(settings) as backends:
            store = Watched(backends.store, "commit", _windows)
            flow = Flow(settings, Backends(backends.bus, store, SystemClock()))
            sampling = asyncio.create_task(sample())
            await flow.live({PROVIDER: Feed(rate, seconds)}, (), asyncio.Event())
            sampling.cancel()
    due = WINDOW_NS + LATENESS_NS
    delays = [float(done - ts - due) for done, starts in store.calls for ts in starts]
    return delays, resident


def _windows(groups: Sequence[Group], *_: object) -> list[int]:
    """Starts of the bars in a commit; holding on to the groups would look like a leak."""
    return [ts for group in groups for bars in group.bars for ts in bars.ts.tolist()]


def bar_latency() -> list[Figure]:
    """Delay from a window's end plus the lateness to its committed bar, live at 10 k events/s."""
    delays, _ = asyncio.run(live(10_000, LIVE_S))
    name = f"window end + lateness to committed bar, p99 of {len(delays)}"
    return [Figure(name, p99(delays), "ms", "<= 25")]


def memory() -> list[Figure]:
    """Resident size of the whole path at 50 k events/s, and its growth over the second half."""
    _, resident = asyncio.run(live(50_000, _MEMORY_S))
    half = len(resident) // 2
    growth = max(resident[half:]) - max(resident[: half + 1])
    return [
        Figure(f"resident at 50 k events/s, {_MEMORY_S:.0f} s", max(resident) / 1e6, "MB", "< 250"),
        Figure("growth in the second half", growth / 1e6, "MB", ""),
    ]


CONTENDERS = (
    Contender(
        "ours-engine", "engine", engine_only, lambda c: c.load().batches(), cores=1, ours=True
    ),
    *(
        Contender(
            f"ours-columns-{synchronous.lower()}",
            "columns",
            partial(whole_path_columns, synchronous=synchronous),
            lambda cache: cache.load().batches(),
            ours=True,
            remark=f"durable, SQLite synchronous={synchronous}",
        )
        for synchronous in ("NORMAL", "FULL")
    ),
    Contender(
        "ours-ndjson",
        "ndjson",
        whole_path_ndjson,
        Cache.write_ndjson,
        ours=True,
        remark="durable, SQLite synchronous=NORMAL",
    ),
    Contender("live-edge", "live", lambda _: live_edge(), rounds_max=1, ours=True),
    Contender("bar-latency", "live", lambda _: bar_latency(), rounds_max=1, ours=True),
    Contender("memory", "live", lambda _: memory(), rounds_max=1, ours=True),
)
