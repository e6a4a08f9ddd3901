"""Reading a topic on from given positions, with one consumer that keeps what it fetched ahead."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from operator import attrgetter

from confluent_kafka import KafkaError, Message, TopicPartition

from market_data_core.errors import LogLostError, MdpError, TransientError
from market_data_core.records import Record
from market_data_pipeline.bus._kafka_heads import FOREIGN, Admission, Head, head_of
from market_data_pipeline.bus._kafka_link import Link
from market_data_pipeline.bus._kafka_topics import EARLIEST, LATEST, Topics

_NS_PER_MS = 1_000_000
_BATCH = 1000
_SLICE_S = 0.1
_AHEAD_MIN = 1 << 20
_NOT_ENDED = -1, 0.0
_TOGETHER_S = 0.002
"""Partitions that are written together come one by one within this."""
_HELD_MAX = 16 << 20
"""Bytes of a partition that are held before it is paused: a pause throws away what the client has
fetched of it, so it is for the neighbours of a partition that never gives anything."""
_BEFORE = 32
_FAIR_S = 1.0
NOT_COMING = "records that are there do not come"
_new = tuple.__new__
_PARTITION, _OFFSET = attrgetter("partition"), attrgetter("offset")
_HEADERS = Message.headers
CERTAIN_S = 0.3
"""Of what does not come for so long after the end was told: there is nothing."""


def record_of(message: Message, head: Head) -> Record:
    """A message as a record."""
    appended_ns = message.timestamp()[1] * _NS_PER_MS
    payload = message.value() or b""
    fields = (message.partition(), message.offset(), payload, appended_ns, head.count)
    return _new(Record, fields)  # in half the time of Record(...)


class _Part:
    """A partition as it is read.

    Attributes:
        start: position from which `runs` are complete.
        runs: records that follow each other, and their bytes.
        fetched: offset behind what has come from the broker.
        target: there is something up to here; it may be nothing but marks of the broker's own.
        ended: where the broker said that the partition ends, and when.
        size: bytes in `runs`.
        paused: whether it is not fetched for the time being.
        hole: offset before which the log has none; where a message showed it, it is believed only
            when it comes a second time.
        doubted: whether messages are ignored until it is fetched again.
    """

    def __init__(self, start: int, fetched: int, target: int) -> None:
        self.start, self.fetched, self.target = start, fetched, target
        self.runs: deque[tuple[list[Record], int]] = deque()
        self.ended = _NOT_ENDED
        self.size = 0
        self.paused = False
        self.hole = -1
        self.doubted = False
        self.admission = Admission()

    @property
    def behind(self) -> bool:
        """Whether there is something that has yet to come."""
        if self.runs or self.fetched >= self.target:
            return False
        end, at = self.ended
        return end < self.target or time.monotonic() < at + CERTAIN_S

    def put(self, message: Message) -> None:
        offset = message.offset() or 0
        if (self.doubted or offset != self.fetched) and not self._is_next(offset):
            return
        self.fetched, self.ended, self.hole = offset + 1, _NOT_ENDED, -1
        head = head_of(message)
        if (head is FOREIGN or self.admission.admits(offset, head)) and offset >= self.start:
            record = record_of(message, head)
            self._keep([record], len(record.payload))

    def put_all(self, records: list[Record]) -> bool:
        """Take records of others that follow each other; False, and none is taken, if not."""
        first, last = records[0].offset, records[-1].offset
        whole = last - first + 1 == len(records)
        if self.doubted or not whole or first != self.fetched or first < self.start:
            return False
        self.fetched, self.ended, self.hole = last + 1, _NOT_ENDED, -1
        self._keep(records, _bytes(records))
        return True

    def _is_next(self, offset: int) -> bool:
        """Whether a message that does not follow the last one is to be believed."""
        if self.doubted or offset < self.fetched:
            return False
        if self.hole < 0 or offset < self.hole:
            self.hole, self.doubted = offset, True
            return False
        return True

    def _keep(self, records: list[Record], size: int) -> None:
        self.runs.append((records, size))
        self.size += size

    def _next_run(self) -> list[Record]:
        records, size = self.runs.popleft()
        self.size -= size
        return records

    def _put_back(self, records: list[Record]) -> None:
        if records:
            size = _bytes(records)
            self.runs.appendleft((records, size))
            self.size += size

    def skip_to(self, position: int) -> None:
        while self.runs and self.runs[0][0][0].offset < position:
            records = self._next_run()
            self._put_back(records[bisect_left(records, position, key=_OFFSET) :])
        self.start = position

    def give(self, share: int) -> list[Record]:
        """The next records, of at most `share` bytes, but at least one."""
        if self.runs[0][1] > share:
            found = self._next_run()
            sums = accumulate(len(record.payload) for record in found)
            count = max(1, next(i for i, size in enumerate(sums) if size > share))
            self._put_back(found[count:])
            del found[count:]
        else:
            found = []
            while self.runs and (share := share - self.runs[0][1]) >= 0:
                found += self._next_run()
        self.start = found[-1].offset + 1
        return found


def _bytes(records: list[Record]) -> int:
    return sum([len(payload) for _, _, payload, _, _ in records])


class Reader:
    """Blocking reads of one topic; used by one thread at a time.

    Args:
        link: makes the consumer.
        topics: tells where partitions begin and end.
        name: of the topic.
    """

    def __init__(self, link: Link, topics: Topics, name: str) -> None:
        self._link, self._topics, self._name = link, topics, name
        self._topic = topics.on_broker(name)
        self._what = f"topic {name!r}"
        self._consumer = link.consumer()
        self._parts: dict[int, _Part] = {}

    def stands_at(self, positions: Mapping[int, int]) -> int:
        """How many of the positions this reader would not have to look up."""
        return sum(self._is_at(p, position) for p, position in positions.items())

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()

    def read(
        self,
        positions: Mapping[int, int],
        max_bytes: int,
        timeout_s: float,
        stopped: Callable[[], bool],
    ) -> dict[int, list[Record]]:
        """Records at or behind the positions; see :meth:`market_data_core.contracts.bus.Bus.poll`.

        Args:
            positions: by partition, at least one.
            max_bytes: of all payloads; one record of a partition comes in any case.
            timeout_s: wait so long for something to come.
            stopped: asked now and then whether nobody waits for the answer any more.

        Raises:
            LogLostError: a position lies before what is kept, or behind the end.
            TransientError: the brokers do not answer.
        """
        deadline = time.monotonic() + timeout_s
        share = max(1, max_bytes // len(positions))
        self._stand(positions)
        wanted = {p: self._parts[p] for p in positions}
        low = _HELD_MAX // 2
        self._pause([p for p, part in wanted.items() if part.paused and part.size < low], False)
        ahead = max(max_bytes, _AHEAD_MIN)
        if not self._wait(wanted, ahead, deadline, stopped):
            return {}
        return {p: part.give(share) for p, part in wanted.items() if part.runs}

    def _wait(
        self, wanted: dict[int, _Part], ahead: int, deadline: float, stopped: Callable[[], bool]
    ) -> bool:
        """Whether something has come; if not, all partitions were read to their end."""
        behind_until = time.monotonic() + self._link.timeout_s
        fair_until = time.monotonic() + _FAIR_S
        pause_s = 0.0
        while not stopped():
            self._take(wanted, ahead, pause_s)
            behind = any(part.behind for part in wanted.values())
            found = any(part.runs for part in wanted.values())
            now = time.monotonic()
            if found and (not behind or now >= fair_until):
                return True
            if not behind and now >= deadline:
                self._look_for_ends(wanted)
                behind = any(part.behind for part in wanted.values())
                if not behind:
                    return False
                behind_until = now + self._link.timeout_s
            if not behind:
                behind_until = now + self._link.timeout_s
            elif now >= behind_until:
                raise self._link.silence(self._what, NOT_COMING)
            pause_s = _SLICE_S if behind else max(0.0, min(_SLICE_S, deadline - now))
        return False

    # ---- positions -------------------------------------------------------------------------

    def _is_at(self, partition: int, position: int) -> bool:
        part = self._parts.get(partition)
        return part is not None and part.start <= position <= part.fetched

    def _stand(self, positions: Mapping[int, int]) -> None:
        """Go to positions where we are not yet."""
        moved = {p: position for p, position in positions.items() if not self._is_at(p, position)}
        for p in positions.keys() - moved.keys():
            self._parts[p].skip_to(positions[p])
        if not moved:
            return
        firsts = self._topics.offsets(self._name, moved, EARLIEST)
        ends = self._topics.offsets(self._name, moved, LATEST)
        for p, position in moved.items():
            if not firsts[p] <= position <= ends[p]:
                msg = (
                    f"topic {self._name!r}, partition {p}: position {position} is outside of what "
                    f"is kept, {firsts[p]} to {ends[p]}"
                )
                raise LogLostError(msg)
        for p, position in moved.items():
            # a few records before it tell what of those behind it has no effect
            begin = max(firsts[p], position - _BEFORE)
            self._detach([p])
            self._attach(p, _Part(position, begin, ends[p]))

    def _attach(self, p: int, part: _Part) -> None:
        self._parts[p] = part
        place = TopicPartition(self._topic, p, part.fetched)
        self._consumer.incremental_assign([place])
        self._consumer.resume([place])

    def _detach(self, partitions: Iterable[int]) -> None:
        places = [TopicPartition(self._topic, p) for p in partitions if self._parts.pop(p, None)]
        if places:
            self._consumer.incremental_unassign(places)

    def _pause(self, partitions: list[int], paused: bool) -> None:
        if not partitions:
            return
        places = [TopicPartition(self._topic, p) for p in partitions]
        (self._consumer.pause if paused else self._consumer.resume)(places)
        for p in partitions:
            self._parts[p].paused = paused

    def _look_for_ends(self, wanted: dict[int, _Part]) -> None:
        ends = self._topics.offsets(self._name, wanted, LATEST)
        for p, end in ends.items():
            part = wanted[p]
            if part.fetched > end:
                msg = (
                    f"topic {self._name!r}, partition {p}: the log ends at {end}, before what was "
                    f"read up to {part.fetched}"
                )
                raise LogLostError(msg)
            part.target = end

    # ---- messages --------------------------------------------------------------------------

    def _take(self, wanted: dict[int, _Part], ahead: int, timeout_s: float) -> None:
        """What has come meanwhile; if nothing has, wait for the first."""
        batch = self._consumer.consume(_BATCH, 0)
        if not batch and timeout_s:
            message = self._consumer.poll(timeout_s)
            batch = [message] if message is not None else []  # an empty one is false
            if batch:
                time.sleep(_TOGETHER_S)
        taken = 0
        while batch:
            others = batch if any(map(_HEADERS, batch)) else self._take_foreign(batch)
            for message in others:
                if message.error():
                    self._note(message, wanted)
                elif part := self._parts.get(message.partition() or 0):
                    part.put(message)
            taken += sum(map(len, batch))
            self._settle()
            batch = self._consumer.consume(_BATCH, 0) if taken < ahead else []

    def _take_foreign(self, batch: list[Message]) -> list[Message]:
        """Messages of others, of which there may be a million a second; returns what is left.

        The partitions' runs are taken whole where nothing is missing in them.
        """
        good = [message for message in batch if message.error() is None]
        records = [record_of(message, FOREIGN) for message in good]
        records.sort(key=_PARTITION)
        left, begin = set(), 0
        while begin < len(records):
            p = records[begin].partition
            end = bisect_right(records, p, begin, key=_PARTITION)
            part = self._parts.get(p)
            if part and not part.put_all(records[begin:end]):
                left.add(p)
            begin = end
        if not left and len(good) == len(batch):
            return []
        return [m for m in batch if m.error() is not None or m.partition() in left]

    def _settle(self) -> None:
        doubted = [(p, part) for p, part in self._parts.items() if part.doubted]
        for p, part in doubted:
            self._detach([p])
            part.doubted = False
            self._attach(p, part)
        full = [p for p, part in self._parts.items() if part.size >= _HELD_MAX and not part.paused]
        self._pause(full, True)

    def _note(self, message: Message, wanted: dict[int, _Part]) -> None:
        """An error, or the end of a partition."""
        error = message.error()
        p = message.partition()
        part = self._parts.get(p) if p is not None else None
        if error is None:
            return
        if error.code() == KafkaError._PARTITION_EOF:
            if part:
                part.ended = message.offset() or 0, time.monotonic()
            return
        translated: MdpError = self._link.error(error, self._what)
        if part is not None and p is not None:
            self._detach([p])
            if p not in wanted:
                return
        if part is not None or not isinstance(translated, TransientError):
            raise translated
        # of the connections: the client goes on trying, and whoever waits too long is told
