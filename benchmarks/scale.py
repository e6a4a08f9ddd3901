"""One worker and two, each on a processor core of its own, over the same single JSON events.

The bus is embedded, so that no server needs a core. Workers are started and have shared out the
partitions before the clock starts; until then they are kept from reading.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender, Figure
from benchmarks.ours import settings_in
from benchmarks.servers import PARTITIONS, TOPIC, Messages, messages
from market_data_core.config import Settings
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Record
from market_data_pipeline.allocator import tune_memory
from market_data_pipeline.backends import Backends, open_backends
from market_data_pipeline.flow import Flow
from market_data_pipeline.windows.checkpoint import Counts, decode_checkpoint

_LOOK_S = 0.005
_APPEND = 5_000
_GO = "go"
_PATIENCE_S = 120.0


class _Gated:
    """A bus that gives nothing to read before the file is there."""

    def __init__(self, inner: Any, gate: Path) -> None:
        self._inner, self._gate, self._open = inner, gate, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        self._open = self._open or self._gate.exists()
        if topic == TOPIC and not self._open:
            await asyncio.sleep(_LOOK_S)
            return {}
        found: dict[int, list[Record]] = await self._inner.poll(
            topic, positions, max_bytes, timeout_s
        )
        return found


def _settings(folder: str) -> Settings:
    return settings_in(folder, **{"bus.partitions": PARTITIONS})


async def _work(folder: str) -> None:
    """A worker's process."""
    settings = _settings(folder)
    async with open_backends(settings) as backends:
        gated = replace(backends, bus=_Gated(backends.bus, Path(folder, _GO)))
        await Flow(settings, gated).micro_batch(asyncio.Event())


async def _owners(backends: Backends) -> list[str]:
    return [row.owner for row in await backends.store.status("mdp-consumers", TOPIC)]


async def _counts(backends: Backends) -> Counts:
    total = Counts()
    for row in await backends.store.status("mdp-consumers", TOPIC):
        if row.checkpoint:
            total.add(decode_checkpoint(row.checkpoint).counts)
    return total


async def _until(holds: Any) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)


async def _seconds(folder: str, prepared: Messages, workers: int) -> float:
    """From the first event that a worker reads to the last bar's commit."""
    with ExitStack() as running:
        async with open_backends(_settings(folder)) as backends:
            await backends.bus.create_topic(TOPIC, PARTITIONS)
            entries = [
                Entry(partition_of(symbol, PARTITIONS), data, 1, symbol=symbol)
                for symbol, data in prepared.rows
            ]
            for begin in range(0, len(entries), _APPEND):
                await backends.bus.append(TOPIC, entries[begin : begin + _APPEND])
            cores = sorted(os.sched_getaffinity(0))
            for number in range(workers):
                command = [sys.executable, "-m", "benchmarks.scale", folder]
                worker = running.enter_context(subprocess.Popen(command))  # noqa: ASYNC220
                running.callback(worker.kill)
                os.sched_setaffinity(worker.pid, {cores[number % len(cores)]})

            async def shared() -> bool:
                owners = await _owners(backends)
                each = [owners.count(owner) for owner in set(owners) - {""}]
                return each == [PARTITIONS // workers] * workers

            async def done() -> bool:
                counts = await _counts(backends)
                return counts.stored + counts.deduplicated >= prepared.events

            await _until(shared)
            began = time.perf_counter()
            Path(folder, _GO).touch()
            await _until(done)
            return time.perf_counter() - began


def scaling(prepared: Messages) -> list[Figure]:
    """Rates of one worker and of two, and how many times as fast two are."""
    rates = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory(dir=".cache") as folder:
            rates.append(prepared.events / asyncio.run(_seconds(folder, prepared, workers)) / 1e6)
    return [
        Figure("one worker on one core", rates[0], "M/s"),
        Figure("two workers on a core each", rates[1], "M/s"),
        Figure("two workers, times one", rates[1] / rates[0], "", ">= 1.6"),
    ]


CONTENDERS = (
    Contender("workers", "scale", scaling, messages, rounds_max=1, ours=True),
)  # fmt: skip

if __name__ == "__main__":
    tune_memory()
    asyncio.run(_work(sys.argv[1]))
