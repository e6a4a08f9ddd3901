"""The archiver: a consumer that writes every event of the log to Parquet, exactly once.

Any number of archivers share the partitions, as micro-batchers do, in a consumer group of their
own. See :mod:`market_data_pipeline.archive.shelf` for what makes it exactly once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from market_data_core.clock import Clock
from market_data_core.contracts.bus import Bus, Codec
from market_data_core.contracts.store import Commits, Positions
from market_data_core.intervals import NS_PER_MS
from market_data_core.records import TopicInfo
from market_data_pipeline.archive.checkpoint import GROUP_SUFFIX, reached
from market_data_pipeline.archive.observe import ArchiveObserver
from market_data_pipeline.archive.settings import Archived, ArchiverSettings
from market_data_pipeline.archive.shelf import Shelf
from market_data_pipeline.archive.topic import TopicArchiver
from market_data_pipeline.assembly import LETTERS_TOPIC, Assembly
from market_data_pipeline.bus import codec
from market_data_pipeline.patience import patient
from market_data_store.sinks.groups import CoordinatedCommits

_LOOK_S = 1.0
_POLL_BYTES = 4 << 20
_COORDINATOR = "archive"
_LANE = re.compile(r"[0-9a-f]{16}")
_GENERATION = re.compile(r"-g\d+$")


class Archiver:
    """One process's share of the archive.

    Args:
        bus: where events come from.
        store: where positions are.
        codec: how payloads are read.
        shelf: where files go.
        commits: where positions are given.
        settings: how it behaves.
        clock: wall-clock time.
        topics: name of each topic to archive, and its partitions should it have to be made.
        lanes_of: topic whose lanes are archived too, "" for none.

    Attributes:
        done: what was written so far.
    """

    def __init__(
        self,
        bus: Bus,
        store: Positions,
        codec: Codec,
        shelf: Shelf,
        commits: Commits,
        settings: ArchiverSettings,
        clock: Clock,
        topics: Mapping[str, int],
        lanes_of: str = "",
    ) -> None:
        self._bus, self._store, self._codec, self._shelf = bus, store, codec, shelf
        self._commits, self._settings, self._clock = commits, settings, clock
        self._topics, self._lanes_of = topics, lanes_of
        self._observer = ArchiveObserver(settings.group, settings.member)
        self._held: dict[str, int] = {}
        self._ended: set[str] = set()
        self.done = Archived()

    async def run(self, stop: asyncio.Event, once: bool = False) -> Archived:
        """Archive until `stop` is set; what was read is written first.

        Args:
            stop: ends the work.
            once: end by itself once what is there now is archived.

        Raises:
            UsageError: the positions in the store belong to another archive.
        """
        tasks: dict[str, asyncio.Task[None]] = {}
        stopping = asyncio.create_task(stop.wait())
        try:
            async with self._commits:
                await self._run(stop, stopping, tasks, once)
                await asyncio.gather(*tasks.values())
        finally:
            stopping.cancel()
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(stopping, *tasks.values(), return_exceptions=True)
        return self.done

    async def _run(
        self,
        stop: asyncio.Event,
        stopping: asyncio.Task[bool],
        tasks: dict[str, asyncio.Task[None]],
        once: bool,
    ) -> None:
        while not stop.is_set():
            for info in await patient(self._find, stop=stop):
                if info.name not in tasks:
                    work = self._topic(info).run(stop, once)
                    tasks[info.name] = asyncio.create_task(work)
            if once:
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
                return
            await asyncio.wait(
                {stopping, *tasks.values()},
                timeout=_LOOK_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for name, task in list(tasks.items()):
                if task.done() and not stop.is_set():
                    del tasks[name]
                    self._ended.add(name)
                    task.result()

    def _topic(self, info: TopicInfo) -> TopicArchiver:
        return TopicArchiver(
            self._bus,
            self._store,
            self._codec,
            self._shelf,
            self._commits,
            info,
            self._settings,
            self._clock,
            self._observer,
            self.done,
            self._held,
        )

    async def _find(self) -> list[TopicInfo]:
        """The topics to work on: those named, their generations, and lanes not complete yet."""
        found = []
        for name, partitions in self._topics.items():
            known = await self._bus.find_topic(name)
            found.append(known or await self._bus.create_topic(name, partitions))
        for info in await self._bus.topics():
            if _GENERATION.sub("", info.name) in self._topics.keys() - {info.name}:
                found.append(info)
            prefix, _, lane = info.name.rpartition(".")
            if prefix != self._lanes_of or not _LANE.fullmatch(lane) or info.name in self._ended:
                continue
            rows = await self._store.status(self._settings.group, info.name)
            if reached(rows, None, info.partitions):
                self._ended.add(info.name)
            else:
                found.append(info)
        return found


def archiver_of(parts: Assembly, root: Path, lanes: bool) -> Archiver:
    """The archiver of one process on its configured backends.

    Args:
        parts: the process's parts.
        root: the archive's folder.
        lanes: whether recordings' topics are archived too.

    Raises:
        UsageError: the folder cannot be used.
    """
    settings, bus = parts.settings.archive, parts.settings.bus
    behaviour = ArchiverSettings(
        group=f"{bus.group}{GROUP_SUFFIX}",
        member=parts.member,
        lease_ns=parts.settings.micro_batch.lease_ms * NS_PER_MS,
        poll_bytes=_POLL_BYTES,
        file_bytes_max=settings.file_bytes_max,
        file_seconds_max=settings.file_seconds_max,
        memory_bytes_max=settings.memory_bytes_max,
    )
    return Archiver(
        parts.bus,
        parts.store,
        codec,
        Shelf(root),
        CoordinatedCommits(parts.store, _COORDINATOR),
        behaviour,
        parts.clock,
        {bus.events_topic: bus.partitions, LETTERS_TOPIC: 1},
        bus.events_topic if lanes else "",
    )
