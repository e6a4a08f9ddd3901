"""Looking into a topic other than in its order: single records, by time, from the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from market_data_core.records import Bounds, Record
from market_data_pipeline.bus._kafka_heads import Admission, head_of, span_head
from market_data_pipeline.bus._kafka_link import Link
from market_data_pipeline.bus._kafka_reader import CERTAIN_S, NOT_COMING, record_of
from market_data_pipeline.bus._kafka_topics import Topics
from market_data_pipeline.bus._time_index import TimeIndex, may_hold

_BATCH = 500
_SLICE_S = 0.1
_BLOCK = 256
_NEAR = 64
_TAIL = 64
_SAMPLE = 8


class _Digest:
    """What is known of a partition from its first record on."""

    def __init__(self, first: int) -> None:
        self.index = TimeIndex()
        self.index.forget(first)
        self.admission = Admission()
        self.without_effect: set[int] = set()
        self.whole = first == 0
        self.received = 0
        self.marks: list[int] = []  # events before every 256th offset

    def add(self, message: Message) -> None:
        """Tell of the next message."""
        offset, head = message.offset() or 0, head_of(message)
        while self.whole and len(self.marks) * _BLOCK <= offset:
            self.marks.append(self.received)
        if not self.admission.admits(offset, head):
            self.without_effect.add(offset)
            self.index.add(offset, "", 0, 0, 0)
            return
        self.received += head.count
        span = span_head(head, message.value() or b"")
        self.index.add(offset, span.provider, span.min_ts, span.max_ts, span.count)


class Browser:
    """Blocking looks into any topic, one at a time; safe to use from several threads."""

    def __init__(self, link: Link, topics: Topics) -> None:
        self._link, self._topics = link, topics
        self._consumer: Consumer | None = None
        self._lock = threading.Lock()
        self._digests: dict[tuple[str, int], _Digest] = {}

    def close(self) -> None:
        """Leave the brokers."""
        with self._lock:
            if self._consumer:
                self._consumer.close()
                self._consumer = None

    def forget(self, name: str) -> None:
        """Forget what is known of a topic: there is another one of its name now."""
        with self._lock:
            self._digests = {at: d for at, d in self._digests.items() if at[0] != name}

    def record(self, name: str, partition: int, offset: int) -> Record | None:
        """The record at `offset`, None if there is none."""
        bounds = self._topics.bounds(name, partition)
        first, end = bounds.first, bounds.next
        if not first <= offset < end:
            return None
        with self._lock:
            for message in self._messages(name, partition, offset, offset + 1):
                return record_of(message, head_of(message))
        return None

    def source(self, name: str, partition: int) -> int:
        """Up to how many events of the source all are there, looked for from the end."""
        bounds = self._topics.bounds(name, partition)
        first, end = bounds.first, bounds.next
        size, to = _TAIL, end
        with self._lock:
            while to > first:
                begin = max(first, to - size)
                found = max(
                    (head_of(m).settled for m in self._messages(name, partition, begin, to)),
                    default=0,
                )
                if found:
                    return found
                size, to = 2 * size, begin
        return 0

    def keys(self, name: str, partition: int, records_max: int) -> list[str]:
        """The keys of the partition's latest records, oldest first."""
        bounds = self._topics.bounds(name, partition)
        first, end = bounds.first, bounds.next
        with self._lock:
            messages = self._messages(name, partition, max(first, end - records_max), end)
            return [head.key for head in map(head_of, messages) if head.key]

    def size(self, name: str, partition: int, bounds: Bounds) -> float:
        """About how many bytes a record of a non-empty partition has, from some of them."""
        first, end = bounds.first, bounds.next
        places = sorted({first, (first + end) // 2, max(first, end - _SAMPLE)})
        sizes: list[int] = []
        with self._lock:
            for place in places:
                until = min(end, place + _SAMPLE)
                sizes += [len(m) for m in self._messages(name, partition, place, until)]
        return sum(sizes) / max(1, len(sizes))

    def received(self, name: str, partition: int, offset: int) -> int | None:
        """Events with effect before `offset`, None if the log's beginning was not seen."""
        bounds = self._topics.bounds(name, partition)
        first, end = bounds.first, bounds.next
        with self._lock:
            known = self._digests.get((name, partition))
            if first and not (known and known.whole and known.index.next >= first):
                return None  # without reading all that is kept
            digest = self._digest(name, partition, first, min(offset, end))
            if not digest.whole:
                return None
            if offset >= digest.index.next:
                return digest.received
            block = offset // _BLOCK
            base = digest.marks[block]
            begin = block * _BLOCK
            if begin == offset:
                return base
            if begin < first:
                return None
            return base + sum(
                head_of(m).count
                for m in self._messages(name, partition, begin, offset)
                if m.offset() not in digest.without_effect
            )

    def scan(
        self, name: str, partition: int, provider: str, from_ts: int, to_ts: int
    ) -> list[Record]:
        """Records that may hold events of `provider` in the range, in order."""
        bounds = self._topics.bounds(name, partition)
        first, end = bounds.first, bounds.next
        with self._lock:
            digest = self._digest(name, partition, first, end)
            ranges = digest.index.find(provider, from_ts, to_ts)
            found = []
            for begin, last in _joined(ranges):
                for m in self._messages(name, partition, max(begin, first), last + 1):
                    head = head_of(m)
                    span = span_head(head, m.value() or b"")
                    told = span.provider, span.min_ts, span.max_ts, span.count
                    if m.offset() in digest.without_effect:
                        continue
                    if may_hold(*told, provider, from_ts, to_ts):
                        found.append(record_of(m, head))
            return found

    def _digest(self, name: str, partition: int, first: int, to: int) -> _Digest:
        """What is known of the partition, up to `to` at least."""
        digest = self._digests.get((name, partition))
        if digest is None or digest.index.next < first:  # it was trimmed before it was looked at
            digest = self._digests[name, partition] = _Digest(first)
        elif first:
            digest.index.forget(first)
            digest.without_effect = {o for o in digest.without_effect if o >= first}
        for message in self._messages(name, partition, digest.index.next, to):
            digest.add(message)
        return digest

    def _messages(self, name: str, partition: int, begin: int, end: int) -> Iterator[Message]:
        """The messages from offset `begin` up to `end`, which have to exist; under the lock."""
        if begin >= end:
            return
        if self._consumer is None:
            self._consumer = self._link.consumer(fetch_wait_max_ms="10")
        what = f"topic {name!r}"
        place = TopicPartition(self._topics.on_broker(name), partition, begin)
        self._consumer.incremental_assign([place])
        try:
            heard, ended = time.monotonic(), False
            while True:
                for message in self._come():
                    error = message.error()
                    if error and error.code() == KafkaError._PARTITION_EOF:
                        heard, ended = time.monotonic(), (message.offset() or 0) >= end
                    elif error and message.partition() == partition:
                        raise self._link.error(error, what)
                    elif not error:
                        heard, offset = time.monotonic(), message.offset() or 0
                        if offset < end:
                            yield message
                        if offset >= end - 1:
                            return
                silent_s = time.monotonic() - heard
                if ended and silent_s > CERTAIN_S:  # the last offsets before `end` hold nothing
                    return
                if silent_s > self._link.timeout_s:
                    raise self._link.silence(what, NOT_COMING)
        finally:
            self._consumer.incremental_unassign([place])

    def _come(self) -> list[Message]:
        if self._consumer is None:
            return []
        batch = self._consumer.consume(_BATCH, 0)
        if not batch:
            message = self._consumer.poll(_SLICE_S)
            batch = [message] if message is not None else []  # an empty one is false
        return batch


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges, those that are near each other as one."""
    if not ranges:
        return []
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(ranges)) if b[0] - a[1] > _NEAR]
    edges = [0, *cuts, len(ranges)]
    return [(ranges[a][0], ranges[b - 1][1]) for a, b in pairwise(edges)]
