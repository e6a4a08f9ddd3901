"""A topic on Redis: its keys, and what a client knows of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from market_data_core.records import Record, TopicInfo
from market_data_pipeline.bus._redis_entries import Cursor, Pending
from market_data_pipeline.bus._time_index import TimeIndex

_FIRST_ENTRIES, _ENTRIES_MAX = 16, 10_000
_GROWTH = 4
_ENTRY_BYTES_MIN = 64.0
_CURSORS_MAX = 64
_RECENT_MAX, _LATEST_MAX = 10_000, 4_000


@dataclass(slots=True)
class Topic:
    """A topic and one client's place in it.

    Attributes:
        info: the topic.
        key: the topic's name with the prefix of all keys.
        entry_bytes: size of large entries as read lately; 0 if nothing was read.
        entries: how many came in the latest answer.
        cursors: (partition, position) -> where somebody's last poll ended.
        holes: partition -> positions before which records are missing, as somebody was told.
        recent: partition -> positions of the records that were read last.
        latest: of those with events, where a group is at work; fewer.
        indexes: partition -> its entries by time, as far as they were looked at.
        groups: group with a member at work here -> partition -> its pending records.
        relayed: id up to which the inbox was emptied.
        checked_at: when the log's identity is to be checked next.
        firsts: partition -> position of its first entry, or of one before that.
        firsts_until: until then, that need not be asked again.
    """

    info: TopicInfo
    key: str
    entry_bytes: float = 0.0
    entries: int = 0
    cursors: dict[tuple[int, int], Cursor] = field(default_factory=dict)
    holes: dict[int, frozenset[int]] = field(default_factory=dict)
    recent: dict[int, deque[int]] = field(default_factory=dict)
    latest: dict[int, deque[int]] = field(default_factory=dict)
    indexes: dict[int, TimeIndex] = field(default_factory=dict)
    groups: dict[str, dict[int, Pending]] = field(default_factory=dict)
    relayed: str = "0-0"
    checked_at: float = 0.0
    firsts: dict[int, int] = field(default_factory=dict)
    firsts_until: float = 0.0

    @property
    def meta(self) -> str:
        """Key of the hash that describes it."""
        return f"{self.key}:meta"

    @property
    def seen(self) -> str:
        """Key of the messages' keys that are in it."""
        return f"{self.key}:keys"

    @property
    def inbox(self) -> str:
        """Key of the stream into which others write without knowing of partitions; "" for none."""
        return self.key if self.info.partitions > 1 else ""

    def stream(self, partition: int) -> str:
        """Key of the partition's stream; the only one of a topic bears the topic's name."""
        return self.key if self.info.partitions == 1 else f"{self.key}:{partition}"

    @property
    def streams(self) -> list[str]:
        """Keys of all partitions' streams, by number."""
        return [self.stream(partition) for partition in range(self.info.partitions)]

    @property
    def keys(self) -> list[str]:
        """All its keys."""
        return [self.meta, self.seen, *sorted({self.key, *self.streams})]

    def entries_for(self, share: int) -> int:
        """How many entries of each stream to ask for, to get about `share` bytes.

        At most a few times what came last, so that entries that are suddenly large do no harm.
        """
        most = max(_FIRST_ENTRIES, min(_ENTRIES_MAX, _GROWTH * self.entries))
        return max(1, min(int(share / max(self.entry_bytes, _ENTRY_BYTES_MIN)), most))

    def weigh(self, entries: int, mean: float) -> None:
        """Learn from an answer: most entries of a stream, and greatest mean size of a stream's."""
        self.entries = entries
        self.entry_bytes = max(mean, (self.entry_bytes + mean) / 2)

    def took(self, cursor: Cursor, before: int, records: Sequence[Record]) -> None:
        """A reader who stood at `before` has read on."""
        self.cursors.pop((cursor.partition, before), None)
        self.cursors[cursor.partition, cursor.position] = cursor
        while len(self.cursors) > _CURSORS_MAX + 2 * self.info.partitions:
            self.cursors.pop(next(iter(self.cursors)))
        if records:
            recent = self.recent.setdefault(cursor.partition, deque(maxlen=_RECENT_MAX))
            recent.extend(record.offset for record in records)
            if self.groups:
                places = [record.offset for record in records if record.count]
                self.latest.setdefault(cursor.partition, deque(maxlen=_LATEST_MAX)).extend(places)
                for group in self.groups.values():
                    group.setdefault(cursor.partition, Pending()).read(places)

    def told(self, cursor: Cursor, hole: int) -> None:
        """A reader is told of records that are missing before a position; now it can go on."""
        cursor.holes |= {hole}
        self.holes[cursor.partition] = self.holes.get(cursor.partition, frozenset()) | {hole}
        self.took(cursor, cursor.position, ())
