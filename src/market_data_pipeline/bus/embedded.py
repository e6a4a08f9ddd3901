"""The embedded bus: each topic is one SQLite file, shared by any number of processes.

Appends are durable against the death of every process (``synchronous=NORMAL``), against power
loss too with ``FULL``. The write-ahead log is folded back by a thread of its own, so that no
append waits for a disk flush.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from market_data_core.clock import Clock, SystemClock
from market_data_core.config import EmbeddedBusSettings
from market_data_core.errors import LogLostError
from market_data_core.records import Bounds, Entry, Place, Record, TopicInfo
from market_data_core.registry import Backend
from market_data_pipeline.bus._topic_file import TopicFile, exists
from market_data_pipeline.bus._topics import (
    Doing,
    Losses,
    NoTopicError,
    check_name,
    check_partitions,
    is_name,
)

T = TypeVar("T")

_WATCH_MIN_S, _WATCH_MAX_S = 0.001, 0.005
_FOLD_EVERY_S = 0.25


class EmbeddedBus:
    """Implements :class:`market_data_core.contracts.bus.Bus` on files in one folder."""

    def __init__(
        self,
        path: Path,
        synchronous: Literal["normal", "full"] = "normal",
        clock: Clock | None = None,
    ) -> None:
        self._path = path
        self._synchronous = synchronous
        self._clock = clock or SystemClock()
        self._files: dict[str, TopicFile] = {}
        self._losses = Losses()
        self._writer = ThreadPoolExecutor(1, "bus-write")
        self._reader = ThreadPoolExecutor(1, "bus-read")
        self._appended = asyncio.Event()
        self._folding: asyncio.Task[None] | None = None
        self._closed = False

    async def create_topic(self, name: str, partitions: int) -> TopicInfo:
        """The topic, created if it does not exist."""
        self._look(name)
        topic = self._open(name, partitions)
        check_partitions(topic.info, partitions)
        self._losses.forget(name)
        return topic.info

    async def find_topic(self, name: str) -> TopicInfo | None:
        """The topic, or None if it does not exist."""
        self._look(name)
        try:
            return self._open(name).info
        except NoTopicError:
            return None

    async def topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        there = {p.name.removesuffix(".db") for p in self._path.glob("*.db")}
        names = sorted(there.union(self._files))  # files that are gone are let go of
        found = [await self.find_topic(name) for name in names if is_name(name)]
        return [info for info in found if info]

    async def drop_topic(self, name: str) -> None:
        """Remove a topic and all it holds.

        Raises:
            DamagedFileError: what stands in its place is not a readable log; it stays.
        """
        await self.find_topic(name)
        self._forget(name)
        # closing a file looks after its log by name: it must not meet the next one of the name
        for pool in (self._writer, self._reader):
            await self._in(pool, lambda: None)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._file(name)}{suffix}").unlink(missing_ok=True)
        self._losses.forget(name)

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        """Append all entries in one transaction."""
        with self._using(topic, "append") as file:
            await self._in(self._writer, lambda: file.append(entries, self._clock.now_ns()))
        self._appended.set()
        if self._folding is None:
            self._folding = asyncio.create_task(self._fold())

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """What the partition holds now."""
        file = self._open(topic)
        return await self._in(self._reader, lambda: file.bounds(partition))

    async def received(self, topic: str, partition: int, offset: int) -> int | None:
        """Events appended before `offset`; None if what was there is no longer kept."""
        file = self._open(topic)
        return await self._in(self._reader, lambda: file.received(partition, offset))

    async def source(self, topic: str, partition: int) -> int:
        """The greatest source position appended."""
        file = self._open(topic)
        return await self._in(self._reader, lambda: file.source(partition))

    async def position_at(self, topic: str, partition: int, append_ns: int) -> int:
        """Offset of the first record appended at `append_ns` or later, else the end."""
        file = self._open(topic)
        return await self._in(self._reader, lambda: file.position_at(partition, append_ns))

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        """Records from each partition's position on; waits up to `timeout_s` for some."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + timeout_s, _WATCH_MIN_S
        with self._using(topic, "poll") as file:
            while True:
                self._appended.clear()
                version = file.version()
                found = await self._in(self._reader, lambda: file.read(positions, max_bytes))
                if found:
                    return found
                while file.version() == version and not self._appended.is_set():
                    left = deadline - loop.time()
                    if left <= 0:
                        return {}
                    try:  # our own appends wake us; those of other processes are looked for
                        async with asyncio.timeout(min(pause, left)):
                            await self._appended.wait()
                    except TimeoutError:
                        pause = min(pause * 1.5, _WATCH_MAX_S)

    async def checksum(self, topic: str, partition: int, offset: int) -> int | None:
        """CRC-32 of the record at `offset`, None if there is no such record."""
        file = self._open(topic)
        return await self._in(self._reader, lambda: file.checksum(partition, offset))

    async def scan(
        self, topic: str, partition: int, provider: str, from_ts: int, to_ts: int
    ) -> list[Record]:
        """Records that may hold events of `provider` in the range, in order."""
        file = self._open(topic)
        return await self._in(self._reader, lambda: file.scan(partition, provider, from_ts, to_ts))

    async def trim(
        self, topic: str, partition: int, before: int, older_than_ns: int, max_bytes: int
    ) -> bool:
        """Forget records below offset `before` that are old or too many."""
        file = self._open(topic)
        return await self._in(
            self._writer, lambda: file.trim(partition, before, older_than_ns, max_bytes)
        )

    async def assignment(self, topic: str, group: str, member: str) -> None:
        """None: members share the partitions by what the store tells."""

    async def acknowledge(
        self, topic: str, group: str, member: str, places: Mapping[int, Place]
    ) -> None:
        """Nothing: no tool but ours looks into the files, and ours ask the store."""

    async def leave(self, topic: str, group: str, member: str) -> None:
        """Nothing to give up."""

    async def close(self) -> None:
        """Close all files; no error if called twice."""
        self._closed = True
        if self._folding:
            self._folding.cancel()
            await asyncio.gather(self._folding, return_exceptions=True)
            self._folding = None
        self._writer.shutdown()
        self._reader.shutdown()
        for topic in self._files.values():
            topic.close()
        self._files.clear()

    async def _fold(self) -> None:
        while True:
            await asyncio.sleep(_FOLD_EVERY_S)
            for topic in list(self._files.values()):
                await asyncio.to_thread(topic.fold)

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _file(self, name: str) -> Path:
        check_name(name)
        return self._path / f"{name}.db"

    @contextmanager
    def _using(self, name: str, doing: Doing) -> Iterator[TopicFile]:
        """The topic, to append to or to poll; one whose file is gone is an error, once."""
        with self._losses.told(name, doing):
            file = self._open(name)
            try:
                yield file
            except LogLostError:
                self._look(name)
                raise

    def _look(self, name: str) -> None:
        """Forget a file that was removed or replaced."""
        known = self._files.get(name)
        if known and not known.is_same:
            self._forget(name)
            self._losses.note(name)

    def _forget(self, name: str) -> None:
        topic = self._files.pop(name, None)
        if topic:
            topic.forget()
            # behind what is under way in either thread
            self._writer.submit(lambda: self._reader.submit(topic.close))

    def _open(self, name: str, partitions: int | None = None) -> TopicFile:
        if self._closed:
            msg = "the bus is closed"
            raise RuntimeError(msg)
        if name not in self._files:
            file = self._file(name)
            if partitions is None and not exists(file):
                raise NoTopicError(name)
            self._files[name] = TopicFile(file, name, partitions, self._synchronous)
        return self._files[name]


def _open(settings: Any, clock: Clock) -> EmbeddedBus:
    embedded = settings.embedded
    return EmbeddedBus(Path(embedded.path), embedded.synchronous, clock)


BACKEND = Backend(
    "embedded", "SQLite files in one folder; needs no server.", EmbeddedBusSettings, _open
)
