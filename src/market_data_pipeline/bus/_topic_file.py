"""One topic of the embedded bus: a SQLite file and the connections one process has to it."""

from __future__ import annotations

import sqlite3
import threading
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from market_data_core.errors import LogLostError, UsageError
from market_data_core.records import Bounds, Entry, Record, TopicInfo
from market_data_pipeline.bus._topics import WHILE_IN_USE, NoTopicError, check_partition
from market_data_store.sqlite_file import (
    LogFolder,
    connect,
    inode_of,
    is_there,
    parts_of,
    row_marks,
    transaction,
    translated,
)

_APPLICATION_ID = 0x4D445042
_FORMAT = 1
_PAGE_SIZE = 16_384
_FOLD_AT, _FOLD_FORCED_AT = 8 << 20, 512 << 20
_OFFSET_BITS = 44  # a record's key is partition << 44 | offset: one b-tree, ranges by partition
_RECORD = "id, append_ts, count, payload"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS heads(
        partition INTEGER PRIMARY KEY, next INTEGER NOT NULL, received INTEGER NOT NULL,
        source INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS log(
        id INTEGER PRIMARY KEY, append_ts INTEGER NOT NULL, count INTEGER NOT NULL,
        received INTEGER NOT NULL, checksum INTEGER NOT NULL, provider TEXT NOT NULL,
        min_ts INTEGER NOT NULL, max_ts INTEGER NOT NULL, payload BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS log_times ON log(provider, max_ts) WHERE count > 0",
    "CREATE TABLE IF NOT EXISTS keys(key TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID",
)


def _known(db: sqlite3.Connection, keys: Sequence[str]) -> set[str]:
    """Those of the keys that the topic has."""
    found: set[str] = set()
    for _, part in parts_of(keys):
        query = f"SELECT key FROM keys WHERE key IN {row_marks(1, len(part))}"
        found.update(key for (key,) in db.execute(query, part))
    return found


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    for _, part in parts_of(rows):
        marks = row_marks(len(part), len(part[0]))
        db.execute(f"INSERT INTO {table} VALUES {marks}", [value for row in part for value in row])


class TopicFile:
    """Blocking access to one topic; appends and reads may run in different threads."""

    def __init__(
        self, path: Path, name: str, partitions: int | None, synchronous: Literal["normal", "full"]
    ) -> None:
        self._path = path
        self._closing = threading.Lock()
        self._write = connect(path, _APPLICATION_ID, synchronous, _PAGE_SIZE)
        try:
            with translated(path):
                self.info = self._create(name, partitions)
        except BaseException:
            self._write.close()
            raise
        self._read = connect(path, _APPLICATION_ID, synchronous)
        self._watch = connect(path, _APPLICATION_ID, synchronous)
        self._folder = connect(path, _APPLICATION_ID, synchronous)
        self._folding = LogFolder(self._folder, path)
        self._inode = inode_of(path)
        self._forgotten = False

    def forget(self) -> None:
        """Refuse to be read on; :meth:`close` has to wait until nothing is under way."""
        self._forgotten = True

    def close(self) -> None:
        """Close the connections."""
        with self._closing:
            for db in (self._read, self._watch, self._folder, self._write):
                db.close()

    def _create(self, name: str, partitions: int | None) -> TopicInfo:
        db = self._write
        rows = self._meta()
        if rows is None:
            if partitions is None:
                raise NoTopicError(name)
            with transaction(db):
                for statement in _SCHEMA:
                    db.execute(statement)
                if not db.execute("SELECT 1 FROM meta").fetchone():
                    values = {
                        "format": _FORMAT, "log_id": uuid.uuid4().hex, "partitions": partitions
                    }  # fmt: skip
                    db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
                    heads = [(p,) for p in range(partitions)]
                    db.executemany("INSERT INTO heads VALUES (?, 0, 0, 0)", heads)
            rows = self._meta() or {}
        if rows.get("format") != _FORMAT:
            msg = (
                f"{self._path} has format {rows.get('format')}, this release reads {_FORMAT}; "
                "use the release that wrote it, or move it away"
            )
            raise UsageError(msg)
        return TopicInfo(name, str(rows["log_id"]), int(str(rows["partitions"])))

    def _meta(self) -> dict[str, object] | None:
        found = self._write.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone()
        return dict(self._write.execute("SELECT name, value FROM meta")) if found else None

    def append(self, entries: Sequence[Entry], now_ns: int) -> None:
        """Append all entries, or none; on return they are durable.

        Raises:
            LogLostError: the file was removed or replaced while in use.
            TransientError: locked, or the disk is full.
            UsageError: an entry is for a partition that does not exist.
        """
        for e in entries:
            check_partition(self.info, e.partition)
        self._require_same()
        with translated(self._path), transaction(self._write):
            self._insert(self._write, entries, now_ns)

    @property
    def is_same(self) -> bool:
        """Whether the file is still the one at its place."""
        return not self._forgotten and inode_of(self._path) == self._inode

    def _require_same(self) -> None:
        if not self.is_same:
            msg = f"{self._path} {WHILE_IN_USE}"
            raise LogLostError(msg)

    def _insert(self, db: sqlite3.Connection, entries: Sequence[Entry], now_ns: int) -> None:
        heads = {
            p: [nxt, received, source]
            for p, nxt, received, source in db.execute("SELECT * FROM heads")
        }
        held = {p: source for p, (_, _, source) in heads.items()}
        known = _known(db, [e.key for e in entries if e.key])
        rows, keys = [], []
        for e in entries:
            if 0 < e.source <= held[e.partition]:
                continue  # another run of the same lane was here first
            head = heads[e.partition]
            place = e.partition << _OFFSET_BITS | head[0]
            if e.key:
                if e.key in known:
                    continue
                known.add(e.key)
                keys.append((e.key, place))
            span, checksum = (e.min_ts, e.max_ts), zlib.crc32(e.payload)
            rows.append((place, now_ns, e.count, head[1], checksum, e.provider, *span, e.payload))
            head[0] += 1
            head[1] += e.count
            head[2] = max(head[2], e.source)
        _insert(db, "keys", keys)
        _insert(db, "log", rows)
        touched = {e.partition for e in entries}
        db.executemany(
            "UPDATE heads SET next = ?, received = ?, source = ? WHERE partition = ?",
            [(*heads[p], p) for p in touched],
        )

    def bounds(self, partition: int) -> Bounds:
        """What the partition holds now.

        Raises:
            UsageError: there is no such partition.
        """
        check_partition(self.info, partition)
        low = partition << _OFFSET_BITS
        with translated(self._path):
            nxt, first = self._read.execute(
                """SELECT next, (SELECT min(id) FROM log WHERE id >= ? AND id < ?)
                    FROM heads WHERE partition = ?""",
                (low, low + (1 << _OFFSET_BITS), partition),
            ).fetchone()
        return Bounds(nxt if first is None else first - low, nxt)

    def received(self, partition: int, offset: int) -> int | None:
        """Events appended before `offset`; None if what was there is no longer kept."""
        if offset < self.bounds(partition).first:
            return None
        low = partition << _OFFSET_BITS
        with translated(self._path):
            (received,) = self._read.execute(
                """SELECT coalesce((SELECT received FROM log WHERE id >= ? AND id < ? ORDER BY id
                    LIMIT 1), received) FROM heads WHERE partition = ?""",
                (low | offset, low + (1 << _OFFSET_BITS), partition),
            ).fetchone()
        return int(received)

    def source(self, partition: int) -> int:
        """The greatest source position appended."""
        check_partition(self.info, partition)
        with translated(self._path):
            (source,) = self._read.execute(
                "SELECT source FROM heads WHERE partition = ?", (partition,)
            ).fetchone()
        return int(source)

    def position_at(self, partition: int, append_ns: int) -> int:
        """Offset of the first record appended at `append_ns` or later, else the end."""
        bounds = self.bounds(partition)
        low = partition << _OFFSET_BITS
        begin, end = bounds.first, bounds.next
        with translated(self._path):
            while begin < end:  # append times rise with the offsets
                middle = (begin + end) // 2
                row = self._read.execute(
                    "SELECT append_ts FROM log WHERE id = ?", (low | middle,)
                ).fetchone()
                if row is None or row[0] < append_ns:  # it may have been trimmed meanwhile
                    begin = middle + 1
                else:
                    end = middle
        return begin

    def version(self) -> int:
        """A number that changes with every commit of another connection.

        Raises:
            LogLostError: the file was removed or replaced while in use.
        """
        self._require_same()
        with translated(self._path):
            (version,) = self._watch.execute("PRAGMA data_version").fetchone()
        return int(version)

    def read(self, positions: Mapping[int, int], max_bytes: int) -> dict[int, list[Record]]:
        """Records from each position on, `max_bytes` shared evenly, at least one of each.

        Raises:
            LogLostError: a position is outside what the log holds, or the file was removed.
            UsageError: there is no such partition.
        """
        self._require_same()
        found: dict[int, list[Record]] = {}
        share = max_bytes // max(1, len(positions))
        with translated(self._path):
            for partition, position in positions.items():
                check_partition(self.info, partition)
                low = partition << _OFFSET_BITS
                rows = self._read.execute(
                    f"SELECT {_RECORD} FROM log WHERE id >= ? AND id < ? ORDER BY id",
                    (low | position, low + (1 << _OFFSET_BITS)),
                )
                records, size = [], 0
                for row in rows:
                    records.append(_record(row))
                    size += len(row[3])
                    if size >= share:
                        break
                if records:
                    found[partition] = records
                if not records or records[0].offset != position:
                    self._require(partition, position)
        return found

    def _require(self, partition: int, position: int) -> None:
        b = self.bounds(partition)  # a later state than the one read: more may have come
        if not b.first <= position <= b.next:
            msg = (
                f"{self._path}, partition {partition}: position {position} is not in the log, "
                f"which holds {b.first} to {b.next}"
            )
            raise LogLostError(msg)

    def checksum(self, partition: int, offset: int) -> int | None:
        """CRC-32 of the record at `offset`, None if there is none."""
        with translated(self._path):
            row = self._read.execute(
                "SELECT checksum FROM log WHERE id = ?", (partition << _OFFSET_BITS | offset,)
            ).fetchone()
        return row[0] if row else None

    def scan(self, partition: int, provider: str, from_ts: int, to_ts: int) -> list[Record]:
        """Records of `provider`, or of several, that reach into [from_ts, to_ts), in order."""
        low = partition << _OFFSET_BITS
        with translated(self._path):
            rows = self._read.execute(
                f"""SELECT {_RECORD} FROM log
                    WHERE count > 0 AND provider IN (?, '') AND max_ts >= ? AND min_ts < ?
                    AND id >= ? AND id < ? ORDER BY id""",
                (provider, from_ts, to_ts, low, low + (1 << _OFFSET_BITS)),
            ).fetchall()
        return [_record(row) for row in rows]

    def _size(self, db: sqlite3.Connection) -> int:
        """Bytes in use."""
        pages = [db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("page_count", "freelist_count")]
        return int(pages[0] - pages[1]) * _PAGE_SIZE

    def trim(self, partition: int, before: int, older_than_ns: int, max_bytes: int) -> bool:
        """Forget records below `before` that are old, and the oldest tenth if too much is kept.

        Returns:
            Whether it is still too much, though nothing below `before` is left.
        """
        low = partition << _OFFSET_BITS
        db = self._write
        with translated(self._path):
            full = self._size(db) > max_bytes
            bounds = self.bounds(partition)
            first, before = bounds.first, min(before, bounds.next)
            (end,) = db.execute(
                """SELECT coalesce(min(id), ?) - ? FROM log
                    WHERE id >= ? AND id < ? AND append_ts >= ?""",
                (low | before, low, low, low | before, older_than_ns),
            ).fetchone()
            if full:
                end = max(end, first + (before - first + 9) // 10)
            if end > first:
                with transaction(db):
                    db.execute("DELETE FROM keys WHERE id >= ? AND id < ?", (low, low | end))
                    db.execute("DELETE FROM log WHERE id >= ? AND id < ?", (low, low | end))
            return full and end >= before and self._size(db) > max_bytes

    def fold(self) -> None:
        """Fold the write-ahead log back into the file, if it has grown."""
        with self._closing:
            self._folding.fold(_FOLD_AT, _FOLD_FORCED_AT)


def exists(path: Path) -> bool:
    """Whether there is a topic at `path`; an empty file is none, and stays empty.

    Raises:
        DamagedFileError: the file is corrupt, or another program's.
    """
    return is_there(path, _APPLICATION_ID)


def _record(row: tuple[int, int, int, bytes]) -> Record:
    key, append_ts, count, payload = row
    partition, offset = key >> _OFFSET_BITS, key & ((1 << _OFFSET_BITS) - 1)
    return Record(partition, offset, payload, append_ts, count)
