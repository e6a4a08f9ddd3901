"""Where the archive's files lie, what they are called, and which columns they have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec
import polars as pl

from market_data_core.errors import DamagedFileError

IDENTITY = "archive.json"
STAGING = ".staging"
REJECTED, LETTERS = "rejected", "letters"
METADATA_KEY = "mdp.archive"
"""Key of the files' own metadata, which tells them from other Parquet files."""

TIME = pl.Datetime("ns", "UTC")
POSITION: dict[str, pl.DataType] = {
    "topic": pl.String(), "log": pl.String(), "partition": pl.Int32(), "offset": pl.Int64(),
    "row": pl.Int32(), "append_ts": TIME,
}  # fmt: skip
"""Where in the log a row was read: unique by (log, partition, offset, row)."""
EVENT_COLUMNS: dict[str, pl.DataType] = {
    "provider": pl.String(), "symbol": pl.String(), "kind": pl.String(), "interval": pl.String(),
    "src_ts": TIME, "seq": pl.Int64(), "ingest_ts": TIME,
    **dict.fromkeys("ohlcv", pl.Float64()), **POSITION, "misplaced": pl.Boolean(),
}  # fmt: skip
"""Columns of events; the event's id follows from provider, symbol, src_ts and seq. Misplaced ones
were written to another partition than their symbol's, where they stand again."""
REJECTED_COLUMNS: dict[str, pl.DataType] = {
    "reason": pl.String(), "detail": pl.String(), "where": pl.String(), "original": pl.Binary(),
    **POSITION,
}  # fmt: skip
LETTER_COLUMNS: dict[str, pl.DataType] = {
    "reason": pl.String(), "detail": pl.String(), "where": pl.String(), "provider": pl.String(),
    "symbol": pl.String(), "src_ts": TIME, "events": pl.Int64(), "original": pl.Binary(),
    "message": pl.Binary(), "of_topic": pl.String(), "of_log": pl.String(),
    "of_partition": pl.Int32(), "of_offset": pl.Int64(), **POSITION,
}  # fmt: skip
"""Columns of dead letters: `of_…` is the position of what was set aside."""

_LOG_CHARS = 8
_NAME_MAX = 160
_HASH_CHARS = 16
_SAFE = "-_.+@"
_FOLDER = re.compile(r"(date|provider|symbol)=(.+)")


class Identity(msgspec.Struct, frozen=True):
    """What an archive's own file says.

    Attributes:
        id: made when the archive was; positions in the store belong to the archive of that id.
        version: of the layout.
    """

    id: str
    version: int = 1


class FileInfo(msgspec.Struct, frozen=True):
    """What a file of events says of itself.

    Attributes:
        provider: of every row.
        symbol: of every row.
        spans: of each part of the file, least and greatest src_ts (UTC ns) and number of rows.
        version: of the layout.
    """

    provider: str
    symbol: str
    spans: list[tuple[int, int, int]]
    version: int = 1

    @property
    def rows(self) -> int:
        """Number of events."""
        return sum(rows for _, _, rows in self.spans)

    @property
    def first_ts(self) -> int:
        """Least src_ts, UTC ns."""
        return min(first for first, _, _ in self.spans)

    @property
    def last_ts(self) -> int:
        """Greatest src_ts, UTC ns."""
        return max(last for _, last, _ in self.spans)


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of one partition's log that is archived at once.

    Attributes:
        topic: name of the topic.
        log_id: of the topic's log.
        partition: number of the partition.
        first: position where the span begins.
        token: of the claim under which it was written.
    """

    topic: str
    log_id: str
    partition: int
    first: int
    token: int

    @property
    def name(self) -> str:
        """Name of its files, without number and ending."""
        log = self.log_id[:_LOG_CHARS].replace("/", "_")  # Kafka's ids are base64
        return f"{self.topic}-{self.partition}-{self.first:020d}-{self.token}-{log}"


def encoded(name: str) -> str:
    """A provider's name or a symbol as part of a folder's name, percent-encoded.

    One that would be too long for a file system gives way to its beginning and a hash; the files'
    columns hold it in full, but readers that believe folders show it so.
    """
    text = quote(name, safe=_SAFE)
    if len(text) <= _NAME_MAX:
        return text
    digest = sha256(name.encode()).hexdigest()[:_HASH_CHARS]
    head = quote(name[: (_NAME_MAX - 2 * _HASH_CHARS) // 12], safe=_SAFE)
    return f"{head}~{digest}"


def event_folder(date: str, provider: str, symbol: str) -> str:
    """Folder of a day's events, relative to the archive."""
    return f"date={date}/provider={encoded(provider)}/symbol={encoded(symbol)}"


def folder_value(folder: Path) -> str | None:
    """What a folder's name says its files have in common; None if it is none of the archive's."""
    found = _FOLDER.fullmatch(folder.name)
    return unquote(found[2]) if found else None


def read_identity(root: Path) -> Identity | None:
    """Which archive lies in a folder; None if there is none.

    Raises:
        DamagedFileError: its file cannot be read.
    """
    path = root / IDENTITY
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Identity)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}"
        raise DamagedFileError(msg) from error
    if found.version != 1:
        msg = f"{path} has version {found.version}, this release reads 1"
        raise DamagedFileError(msg)
    return found
