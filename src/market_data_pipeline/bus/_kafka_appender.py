"""Appending: one idempotent producer, whose unconfirmed messages stay in line and in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from market_data_core.errors import TransientError
from market_data_core.records import Entry
from market_data_core.redaction import redact
from market_data_pipeline.bus._kafka_heads import header_of, settled_by
from market_data_pipeline.bus._kafka_link import Link

log = structlog.get_logger("kafka")

_POLL_S, _DROP_POLLS = 0.2, 20
_ROOM_S = 0.002
_HEARD_S = 1.0
_KEYS_MAX = 1 << 18
_GIVEN_UP_MAX = 256


class Known:
    """What this client knows a topic to hold already.

    Attributes:
        message_bytes_max: most bytes of a message that the topic takes; None before it was asked.
        looked: whether it was looked at whether the topic holds anything.
        primed: whether the keys at the topic's end were looked up.
        sources: by partition, up to how many events of the source it has all of its own.
    """

    def __init__(self) -> None:
        self.message_bytes_max: int | None = None
        self.looked = self.primed = False
        self.sources: dict[int, int] = {}
        self._keys: OrderedDict[str, None] = OrderedDict()

    def learn(self, key: str) -> None:
        """Remember a key; the oldest are forgotten where there are too many."""
        self._keys[key] = None
        if len(self._keys) > _KEYS_MAX:
            self._keys.popitem(last=False)

    def new_of(self, entries: Sequence[Entry]) -> list[int]:
        """Which of the entries the topic does not hold yet."""
        found, keys = [], set[str]()
        for i, e in enumerate(entries):
            if 0 < e.source <= self.sources.get(e.partition, 0):
                continue
            if e.key:
                if e.key in self._keys or e.key in keys:
                    continue
                keys.add(e.key)
            found.append(i)
        return found

    def appended(self, entries: Sequence[Entry]) -> None:
        """Take note of what the topic holds now."""
        for e in entries:
            if e.key:
                self.learn(e.key)
            if e.source > self.sources.get(e.partition, 0):
                self.sources[e.partition] = e.source


class Append:
    """Entries on their way, until all of them are confirmed.

    Args:
        topic: as the brokers call it.
        entries: what was to be appended; held, so that the same sequence is known again.
        left: which of them have to be sent.
    """

    def __init__(self, topic: str, entries: Sequence[Entry], left: list[int]) -> None:
        self.topic, self.entries = topic, entries
        self._items = tuple(entries)
        settled = settled_by([self._items[i] for i in left])
        self._settled = dict(zip(left, settled, strict=True))
        self.done = asyncio.Event()
        self.error: KafkaError | None = None
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._todo, self._failed = left, list[int]()
        self._sent = self._open = 0
        if not left:
            self.done.set()

    def is_of(self, topic: str, entries: Sequence[Entry]) -> bool:
        """Whether it appends just this, and not something new in a list that is used again."""
        return self.topic == topic and self._items == tuple(entries)

    @property
    def settled(self) -> bool:
        """Whether all entries are confirmed."""
        return self.done.is_set() and not self._failed and self._sent == len(self._todo)

    def send(self, producer: Producer, patience_s: float) -> None:
        """Hand what is left to the producer; blocks while its queue is full.

        Raises:
            BufferError: it stayed full.
            KafkaException: an entry cannot be sent at all.
        """
        with self._lock:
            if self._failed and not self._open:  # of an earlier try; what came through stays
                self._todo = sorted(self._failed) + self._todo[self._sent :]
                self._failed, self._sent, self.error = [], 0, None
            if self._sent < len(self._todo):
                self.done.clear()
        deadline = time.monotonic() + patience_s
        while self._sent < len(self._todo):
            index = self._todo[self._sent]
            e = self._items[index]
            with self._lock:
                self._open += 1
            try:
                producer.produce(
                    self.topic,
                    e.payload,
                    e.symbol or None,
                    e.partition,
                    on_delivery=partial(self._delivered, index),
                    headers=header_of(e, self._settled[index]),
                )
            except (BufferError, KafkaException) as error:
                with self._lock:
                    self._open -= 1
                if isinstance(error, KafkaException) or time.monotonic() > deadline:
                    raise
                time.sleep(_ROOM_S)
            else:
                self._sent += 1
        with self._lock:
            self._look()

    def _delivered(self, index: int, error: KafkaError | None, _: Message) -> None:
        with self._lock:
            self._open -= 1
            if error:
                self._failed.append(index)
                self.error = self.error or error
            self._look()

    def _look(self) -> None:
        if not self._open and self._sent == len(self._todo):
            with suppress(RuntimeError):  # the loop may be closed: nobody waits any more
                self._loop.call_soon_threadsafe(self.done.set)


class Appender:
    """Sends appends of any topics in the order in which they are given.

    An append that is not confirmed in time is still in line: whoever asks again with the same
    sequence waits for it again, and nothing is sent twice.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._producer: Producer | None = None
        self._polling: threading.Thread | None = None
        self._ending = threading.Event()
        self._sending = threading.Lock()
        self._begun: OrderedDict[int, Append] = OrderedDict()

    def begun(self, topic: str, entries: Sequence[Entry]) -> Append | None:
        """The append of this very sequence if it was begun and is not finished."""
        found = self._begun.get(id(entries))
        return found if found and found.is_of(topic, entries) else None

    def begin(self, topic: str, entries: Sequence[Entry], left: list[int]) -> Append:
        """A new append, of those of the entries whose indices are in `left`."""
        append = Append(topic, entries, left)
        self._begun[id(entries)] = append
        while len(self._begun) > _GIVEN_UP_MAX and next(iter(self._begun.values())).settled:
            self._begun.popitem(last=False)
        return append

    def send(self, append: Append, what: str) -> None:
        """Put what is left of an append in line; blocking, one after the other.

        Raises:
            LogLostError: the topic is gone, or has fewer partitions.
            TransientError: there is no room in the line.
            UsageError: an entry is too large.
        """
        try:
            with self._sending:
                append.send(self._started(append.topic), self._link.timeout_s)
        except BufferError as error:
            msg = f"{what}: too much is waiting to be confirmed"
            raise TransientError(msg) from error
        except KafkaException as error:
            raise self._link.error(error.args[0], what) from error

    def forget(self, entries: Sequence[Entry]) -> None:
        """Send the whole sequence if it is given again: what of it was confirmed is lost."""
        self._begun.pop(id(entries), None)

    async def confirmed(self, append: Append, what: str) -> None:
        """Return when the log has all of an append.

        Raises:
            LogLostError: the topic is gone, or has fewer partitions.
            TransientError: not in time.
            UsageError: the log refuses it.
        """
        try:
            async with asyncio.timeout(self._link.timeout_s):
                await append.done.wait()
        except TimeoutError:
            late = f"not confirmed within {self._link.timeout_s:g} s"
            raise self._link.silence(what, late) from None
        if append.error:
            raise self._link.error(append.error, what)
        self._begun.pop(id(append.entries), None)

    def prepare(self, topic: str) -> None:
        """Have a producer ready for a topic before there is anything to send; blocking."""
        with self._sending:
            if not self._ending.is_set():
                self._started(topic)

    def _started(self, topic: str) -> Producer:
        if self._producer:
            return self._producer
        producer = self._link.producer()
        # It asks for its id when it is made and whenever it has heard of the cluster, else half a
        # second later; the first answer tells it of the broker that it then asks.
        with suppress(KafkaException):
            for _ in range(2):
                producer.list_topics(topic, timeout=_HEARD_S)
        self._polling = threading.Thread(
            target=self._poll, args=[producer], name="kafka-append", daemon=True
        )
        self._polling.start()
        self._producer = producer
        return producer

    def _poll(self, producer: Producer) -> None:
        """Have confirmations told, until the end; or until the brokers and it have fallen out."""
        while not self._ending.is_set():
            try:
                producer.poll(_POLL_S)
            except KafkaException as error:
                log.warning("a new producer has to go on", error=redact(error.args[0].str()))
                with self._sending:
                    self._producer = None
                _drop(producer)
                return

    def close(self) -> None:
        """Wait a little for what is in line, then drop it: nobody was told that it is safe."""
        with self._sending:
            self._ending.set()
            producer, self._producer = self._producer, None
        if producer is None or self._polling is None:
            return
        if self._waiting():
            producer.flush(self._link.timeout_s)
        self._polling.join()
        _drop(producer)

    def _waiting(self) -> bool:
        return any(not append.settled for append in self._begun.values())


def _drop(producer: Producer) -> None:
    """Tell what was not confirmed that it is not going to be."""
    producer.purge()
    for _ in range(_DROP_POLLS):
        with suppress(KafkaException):
            producer.poll(_POLL_S / _DROP_POLLS)
        if not len(producer):
            return
