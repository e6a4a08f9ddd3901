"""The bus on Kafka: what may block runs in threads, and every wait has an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import structlog

from market_data_core.config import BusSettings
from market_data_core.errors import LogLostError, MdpError, TransientError, UsageError
from market_data_core.records import Bounds, Entry, Place, Record, TopicInfo
from market_data_core.redaction import redact
from market_data_pipeline.bus._kafka_appender import Appender, Known
from market_data_pipeline.bus._kafka_browser import Browser
from market_data_pipeline.bus._kafka_link import Link
from market_data_pipeline.bus._kafka_member import Member
from market_data_pipeline.bus._kafka_reader import Reader
from market_data_pipeline.bus._kafka_topics import LATEST, Topics
from market_data_pipeline.bus._kafka_trimmer import Trimmer
from market_data_pipeline.bus._topics import (
    WHILE_IN_USE,
    Doing,
    Losses,
    NoTopicError,
    check_name,
    check_partition,
    check_partitions,
)

T = TypeVar("T")
log = structlog.get_logger("kafka")

_THREADS_MAX = 128
_KEYS_BACK = 2000
_OVERHEAD = 1024
_IDLE_READERS_MAX = 4


def _tell_failure(preparing: Future[None]) -> None:
    error = None if preparing.cancelled() else preparing.exception()
    if error:
        log.warning("no producer could be made ready", error=redact(str(error)))


class KafkaBus:
    """Implements :class:`market_data_core.contracts.bus.Bus` on the brokers of a cluster."""

    def __init__(self, settings: BusSettings) -> None:
        self._link = Link(settings.kafka, settings.group)
        self._events = settings.events_topic
        self._topics = Topics(self._link, settings.retention.hours)
        self._browser = Browser(self._link, self._topics)
        self._trimmer = Trimmer(self._topics, self._browser)
        self._appender = Appender(self._link)
        self._threads = ThreadPoolExecutor(_THREADS_MAX, "kafka")
        self._infos: dict[str, TopicInfo] = {}
        self._doubted: set[str] = set()
        self._losses = Losses()
        self._known: dict[str, Known] = {}
        self._idle: dict[str, list[Reader]] = {}
        self._members: dict[tuple[str, str, str], Member] = {}
        self._order = asyncio.Lock()
        self._pool = threading.Lock()
        self._closed = threading.Event()

    # ---- topics ----------------------------------------------------------------------------

    async def create_topic(self, name: str, partitions: int) -> TopicInfo:
        """The topic, created if it does not exist."""
        check_name(name)
        info = await self._in_thread(lambda: self._topics.create(name, partitions))
        self._remember(name, info)
        check_partitions(info, partitions)
        self._losses.forget(name)
        preparing = self._threads.submit(self._appender.prepare, self._topics.on_broker(name))
        preparing.add_done_callback(_tell_failure)
        return info

    async def find_topic(self, name: str) -> TopicInfo | None:
        """The topic, or None if it does not exist."""
        check_name(name)
        info = await self._in_thread(lambda: self._topics.find(name))
        self._remember(name, info)
        return info

    async def topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        return await self._in_thread(self._topics.all)

    async def drop_topic(self, name: str) -> None:
        """Remove a topic and all it holds."""
        check_name(name)
        await self._in_thread(lambda: self._topics.drop(name))
        self._remember(name, None)
        self._losses.forget(name)

    def _remember(self, name: str, info: TopicInfo | None) -> None:
        """Take note of a topic; of another one of its name nothing is known any more."""
        known = self._infos.pop(name, None)
        self._doubted.discard(name)
        if info:
            self._infos[name] = info
        if known and known != info:
            self._losses.note(name)
            self._known.pop(name, None)
            self._browser.forget(name)
            with self._pool:
                idle = self._idle.pop(name, [])
            for reader in idle:
                self._threads.submit(reader.close)

    async def _info(self, name: str, *partitions: int, doing: Doing | None = None) -> TopicInfo:
        """The topic, which has to have the partitions, and to be the one it was for `doing`."""
        info = None if name in self._doubted else self._infos.get(name)
        if info is None:
            info = await self.find_topic(name)
        if doing:
            self._losses.tell(name, doing)
        if info is None:
            raise NoTopicError(name)
        for partition in partitions:
            check_partition(info, partition)
        return info

    @asynccontextmanager
    async def _telling(self, name: str, doing: Doing) -> AsyncIterator[None]:
        """Append or poll within it: a topic that turns out to be gone is a lost log, once."""
        with self._losses.told(name, doing):
            try:
                yield
            except (LogLostError, NoTopicError) as error:
                lost = name in self._infos
                with suppress(MdpError):
                    await self.find_topic(name)
                if lost and isinstance(error, NoTopicError):
                    msg = f"topic {name!r} {WHILE_IN_USE}"
                    raise LogLostError(msg) from error
                raise

    # ---- appending -------------------------------------------------------------------------

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        """Append all entries; returns when every replica in sync has them."""
        try:
            async with self._telling(topic, "append"):
                await self._append(topic, entries)
        except LogLostError:
            self._appender.forget(entries)
            raise

    async def _append(self, topic: str, entries: Sequence[Entry]) -> None:
        what = f"topic {topic!r}"
        async with self._order:  # what was asked for first is in line first
            info = await self._info(topic, *{e.partition for e in entries}, doing="append")
            known = self._known.setdefault(topic, Known())
            on_broker = self._topics.on_broker(topic)
            append = self._appender.begun(on_broker, entries)
            await self._check_sizes(topic, entries, known)
            if append is None:
                await self._look_up(info, entries, known)
                append = self._appender.begin(on_broker, entries, known.new_of(entries))
            await self._in_thread(lambda: self._appender.send(append, what))
        try:
            await self._appender.confirmed(append, what)
        except TransientError:
            self._doubted.add(topic)  # it may have been dropped
            raise
        except UsageError:
            known.message_bytes_max = None  # the topic may take less than it did
            raise
        known.appended(entries)

    async def _check_sizes(self, topic: str, entries: Sequence[Entry], known: Known) -> None:
        """Refuse what the brokers would refuse, before anything of it is sent."""
        largest = max((len(e.payload) for e in entries), default=0) + _OVERHEAD
        most = known.message_bytes_max
        if most is None or largest > most:
            most = await self._in_thread(lambda: self._topics.message_bytes_max(topic))
            known.message_bytes_max = most
        if largest > most:
            msg = (
                f"topic {topic!r}: a message of {largest} bytes is larger than {most}; raise "
                "bus.kafka.message_max_bytes, and max.message.bytes of the topic"
            )
            raise UsageError(msg)

    async def _look_up(self, info: TopicInfo, entries: Sequence[Entry], known: Known) -> None:
        """Learn what the topic holds, as far as the entries have to be compared with it."""
        name, every = info.name, range(info.partitions)
        if not known.looked:
            ends = await self._in_thread(lambda: self._topics.offsets(name, every, LATEST))
            if not any(ends.values()):
                known.primed, known.sources = True, dict.fromkeys(every, 0)
            known.looked = True
        if not known.primed and any(e.key for e in entries):
            for p in every:
                for key in await self._in_thread(
                    lambda p=p: self._browser.keys(name, p, _KEYS_BACK)  # type: ignore[misc]
                ):
                    known.learn(key)
            known.primed = True
        for p in {e.partition for e in entries if e.source}.difference(known.sources):
            known.sources[p] = await self.source(name, p)

    # ---- reading ---------------------------------------------------------------------------

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """What the partition holds now."""
        await self._info(topic, partition)
        return await self._in_thread(lambda: self._topics.bounds(topic, partition))

    async def received(self, topic: str, partition: int, offset: int) -> int | None:
        """Events before `offset`; reads all that this client has not read yet."""
        await self._info(topic, partition)
        return await self._in_thread(lambda: self._browser.received(topic, partition, offset))

    async def source(self, topic: str, partition: int) -> int:
        """Up to how many events of the source all are there, looked for from the end."""
        await self._info(topic, partition)
        return await self._in_thread(lambda: self._browser.source(topic, partition))

    async def position_at(self, topic: str, partition: int, append_ns: int) -> int:
        """Offset of the first record appended at `append_ns` or later, else the end."""
        await self._info(topic, partition)
        return await self._in_thread(lambda: self._topics.position_at(topic, partition, append_ns))

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        """Records from each partition's position on; waits up to `timeout_s` for some."""
        async with self._telling(topic, "poll"):
            info = await self._info(topic, *positions, doing="poll")
            if not positions:
                await asyncio.sleep(timeout_s)
                return {}
            return await self._read(info, positions, max_bytes, timeout_s)

    async def _read(
        self, info: TopicInfo, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        abandoned = threading.Event()

        def stopped() -> bool:
            return abandoned.is_set() or self._closed.is_set()

        def read() -> dict[int, list[Record]]:
            reader = self._reader(info.name, positions)
            try:
                found = reader.read(positions, max_bytes, timeout_s, stopped)
            except BaseException:
                reader.close()
                raise
            self._put_back(info, reader)
            return found

        try:
            found = await self._in_thread(read)
        finally:
            abandoned.set()
        self._require_open()
        return found

    def _reader(self, topic: str, positions: Mapping[int, int]) -> Reader:
        """The idle reader that stands best for the positions, or a new one."""
        with self._pool:
            idle = self._idle.get(topic)
            if idle:
                best = max(idle, key=lambda reader: reader.stands_at(positions))
                idle.remove(best)
                return best
        return Reader(self._link, self._topics, topic)

    def _put_back(self, info: TopicInfo, reader: Reader) -> None:
        with self._pool:
            idle = self._idle.setdefault(info.name, [])
            same = self._infos.get(info.name) == info and not self._closed.is_set()
            keep = same and len(idle) < _IDLE_READERS_MAX
            if keep:
                idle.append(reader)
        if not keep:
            reader.close()

    async def checksum(self, topic: str, partition: int, offset: int) -> int | None:
        """CRC-32 of the record at `offset`, None if there is no such record."""
        await self._info(topic, partition)
        found = await self._in_thread(lambda: self._browser.record(topic, partition, offset))
        return found.checksum if found else None

    async def scan(
        self, topic: str, partition: int, provider: str, from_ts: int, to_ts: int
    ) -> list[Record]:
        """Records that may hold events of `provider`; reads all that were not read yet."""
        await self._info(topic, partition)
        return await self._in_thread(
            lambda: self._browser.scan(topic, partition, provider, from_ts, to_ts)
        )

    async def trim(
        self, topic: str, partition: int, before: int, older_than_ns: int, max_bytes: int
    ) -> bool:
        """Forget records below offset `before` that are old or too many."""
        info = await self._info(topic, partition)
        return await self._in_thread(
            lambda: self._trimmer.trim(info, partition, before, older_than_ns, max_bytes)
        )

    # ---- groups ----------------------------------------------------------------------------

    async def assignment(self, topic: str, group: str, member: str) -> frozenset[int]:
        """What the group's cooperative-sticky protocol gives to the member; joins at first."""
        await self._info(topic)
        at = topic, group, member
        joined = self._members.get(at)
        if joined is None:
            place = self._topics.on_broker(topic), self._group_on(topic, group)
            joined = self._members[at] = Member(self._link, *place)
            await self._in_thread(joined.wait)
        return joined.partitions()

    async def acknowledge(
        self, topic: str, group: str, member: str, places: Mapping[int, Place]
    ) -> None:
        """Commit where the group resumes as its offsets, for Kafka's tools.

        One that is no member now tells nothing. The administrative call for it goes through the
        group's coordinator, and librdkafka aborts the process if the connection ends just then
        (https://github.com/confluentinc/librdkafka/issues/4605).
        """
        joined = self._members.get((topic, group, member))
        if joined:
            joined.commit(places)

    def _group_on(self, topic: str, group: str) -> str:
        """The group on the brokers: one of its own for each topic derived from the live one.

        Members of one group that read different topics are shared out by one of them, which
        learns of a topic that was just made too late; and each lane would shake up the live one.
        """
        derived = topic.startswith((f"{self._events}.", f"{self._events}-"))
        return f"{group}.{topic}" if derived else group

    async def leave(self, topic: str, group: str, member: str) -> None:
        """Leave the group; a member with a name that stays keeps its partitions for a while."""
        joined = self._members.pop((topic, group, member), None)
        if joined:
            await self._in_thread(joined.leave)

    # ---- closing ---------------------------------------------------------------------------

    async def close(self) -> None:
        """Leave all groups and the brokers; no error if called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        idle = [reader for readers in self._idle.values() for reader in readers]
        self._idle.clear()
        work = [member.leave for member in self._members.values()]
        work += [reader.close for reader in idle]
        work += [self._appender.close, self._browser.close, self._topics.close]
        loop = asyncio.get_running_loop()
        ending = [loop.run_in_executor(self._threads, each) for each in work]
        await asyncio.wait(ending, timeout=3 * self._link.timeout_s)
        self._threads.shutdown(wait=False)

    def _require_open(self) -> None:
        if self._closed.is_set():
            msg = "the bus is closed"
            raise RuntimeError(msg)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
