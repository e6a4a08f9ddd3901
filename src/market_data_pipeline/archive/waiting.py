"""What of a partition waits for its files: decoded records, and the tables that they make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_data_core.contracts.bus import Codec
from market_data_core.deadletters import MAGIC, decode_letters
from market_data_core.errors import RejectedError
from market_data_core.events import REASONS, EventBatch, Rejected, StreamEvent, concat_batches
from market_data_core.partitioning import partition_of
from market_data_core.records import Mark, Record, TopicInfo
from market_data_core.wire import BatchBuilder
from market_data_pipeline.archive.layout import (
    EVENT_COLUMNS,
    LETTER_COLUMNS,
    LETTERS,
    REJECTED,
    REJECTED_COLUMNS,
    TIME,
    FileInfo,
    event_folder,
)
from market_data_pipeline.archive.shelf import Table, spans_of

ROW_BYTES = 128
"""What an event is taken to need in memory, and at most in a file."""
PIECE_BYTES = 2048
"""What the objects of a record need in memory beside its rows: most, where it holds one event."""
_ODD_BYTES = 1024
"""Likewise, of a row that is no event."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Events of one stream, with offset, number in the record and append time of each."""

    batch: EventBatch
    offset: Ints
    row: Ints
    append_ts: Ints


@dataclass(frozen=True, slots=True)
class _Odd:
    """A row of the rejected or of the letters, and the folder that it belongs to."""

    folder: str
    values: dict[str, object]
    size: int


class Waiting:
    """Records of one partition that no file holds yet.

    Args:
        info: the topic that they were read from.
        partition: number of the partition.
        codec: how payloads are read.

    Attributes:
        events: how many events wait.
        size: bytes that they are taken to need in files.
        memory: bytes that they are taken to need in memory.
        since: monotonic time at which the first of them came; None if nothing waits.
        ended: an end mark was read.
        position: from where to read on; None if nothing waits.
        checksum: of the last record.
    """

    def __init__(self, info: TopicInfo, partition: int, codec: Codec) -> None:
        self._info, self._partition = info, partition
        self._codec = codec
        self._pieces: list[_Piece] = []
        self._odd: list[_Odd] = []
        self.events = self.size = self.memory = 0
        self.since: float | None = None
        self.ended = False
        self.position: int | None = None
        self.checksum = 0

    @property
    def odd(self) -> int:
        """How many rows wait that are no events."""
        return len(self._odd)

    def take(self, records: Sequence[Record]) -> None:
        """Take records in the order of the log."""
        if not records:
            return
        if self.since is None:
            self.since = time.monotonic()
        singles = BatchBuilder()
        for record in records:
            self._take(record, singles)
        batches, refused = singles.build_with_tokens()
        for batch, tokens in batches:
            offsets = np.array([r.offset for r in tokens], np.int64)
            appended = np.array([r.append_ts for r in tokens], np.int64)
            self._keep(_Piece(batch, offsets, np.zeros(len(batch), np.int64), appended))
        for record, reason in refused:
            self._reject(record, Rejected(reason, REASONS[reason], record.payload))
        self.position, self.checksum = records[-1].offset + 1, records[-1].checksum

    def _take(self, record: Record, singles: BatchBuilder) -> None:
        payload = record.payload
        try:
            if payload.startswith(MAGIC):
                self._take_letters(record)
                return
            item = self._codec.decode(payload)
            if isinstance(item, StreamEvent):
                singles.add(item, record.append_ts, record)
                return
        except RejectedError as error:
            item = Rejected(error.reason, str(error), payload)
        if isinstance(item, EventBatch):
            n = len(item)
            rows = np.arange(n, dtype=np.int64)
            full = np.full(n, record.offset, np.int64), np.full(n, record.append_ts, np.int64)
            self._keep(_Piece(item, full[0], rows, full[1]))
        elif isinstance(item, Mark):
            self.ended |= item.kind == "end"
        else:
            self._reject(record, item)

    def _keep(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        self.events += len(piece.batch)
        size = ROW_BYTES * len(piece.batch)
        self.size += size
        self.memory += PIECE_BYTES + size

    def _reject(self, record: Record, item: Rejected) -> None:
        values = {name: getattr(item, name) for name in ("reason", "detail", "where", "original")}
        self._set_aside(REJECTED, record, 0, values, len(item.original))

    def _take_letters(self, record: Record) -> None:
        for row, letter in enumerate(decode_letters(record.payload)):
            values = msgspec.structs.asdict(letter)
            for name in ("topic", "partition", "offset"):
                values[f"of_{name}"] = values.pop(name)
            values["of_log"] = values.pop("log_id")
            self._set_aside(LETTERS, record, row, values, len(letter.original))

    def _set_aside(
        self, folder: str, record: Record, row: int, values: dict[str, object], size: int
    ) -> None:
        day = np.datetime64(record.append_ts, "ns").astype("datetime64[D]")
        place = {
            "topic": self._info.name,
            "log": self._info.log_id,
            "partition": self._partition,
            "offset": record.offset,
            "row": row,
            "append_ts": record.append_ts,
        }
        self._odd.append(_Odd(f"{folder}/date={day}", values | place, ROW_BYTES + size))
        self.size += ROW_BYTES + size
        self.memory += _ODD_BYTES + size

    def tables(self, file_bytes_max: int) -> Iterator[Table]:
        """Everything as tables of at most so many bytes each; at least one row a table."""
        rows_max = max(1, file_bytes_max // ROW_BYTES)
        if self._pieces:
            frame = self._frame().with_columns(
                pl.col("src_ts").dt.strftime("%Y-%m-%d").alias("date")
            )
            key = ["date", "provider", "symbol"]
            for (date, provider, symbol), part in sorted(
                frame.partition_by(key, as_dict=True).items()
            ):
                rows = part.drop("date").sort("src_ts", "offset", "row")
                for start in range(0, len(rows), rows_max):
                    piece = rows.slice(start, rows_max)
                    spans = spans_of(piece["src_ts"].cast(pl.Int64))
                    info = FileInfo(str(provider), str(symbol), spans)
                    yield Table(event_folder(str(date), info.provider, info.symbol), piece, info)
        yield from self._odd_tables(file_bytes_max)

    def _odd_tables(self, file_bytes_max: int) -> Iterator[Table]:
        for folder in sorted({odd.folder for odd in self._odd}):
            schema = REJECTED_COLUMNS if folder.startswith(REJECTED) else LETTER_COLUMNS
            held: list[dict[str, object]] = []
            size = 0
            for odd in (odd for odd in self._odd if odd.folder == folder):
                if held and size + odd.size > file_bytes_max:
                    yield Table(folder, _rows(held, schema))
                    held, size = [], 0
                held.append(odd.values)
                size += odd.size
            yield Table(folder, _rows(held, schema))

    def _frame(self) -> pl.DataFrame:
        """All events, in :data:`EVENT_COLUMNS`."""
        streams: dict[tuple[str, str, str], list[_Piece]] = {}
        for piece in self._pieces:
            streams.setdefault(piece.batch.stream, []).append(piece)
        return pl.concat(self._stream_frame(pieces) for pieces in streams.values())

    def _stream_frame(self, pieces: Sequence[_Piece]) -> pl.DataFrame:
        batch = concat_batches([piece.batch for piece in pieces])
        intervals = np.repeat(
            np.array([piece.batch.interval for piece in pieces]), [len(p.batch) for p in pieces]
        )
        values = (*batch.prices(), batch.close, batch.volume)
        owners = [partition_of(symbol, self._info.partitions) for symbol in batch.symbols]
        misplaced = np.array(owners) != self._partition
        columns = {
            "provider": pl.repeat(batch.provider, len(batch), eager=True),
            "symbol": pl.Series(batch.symbols, dtype=pl.String).gather(batch.codes),
            "kind": pl.repeat(batch.kind, len(batch), eager=True),
            "interval": pl.Series(intervals, dtype=pl.String),
            "src_ts": _times(batch.src_ts),
            "seq": batch.seq,
            "ingest_ts": _times(batch.ingest_ts),
            **{name: c.to_floats() for name, c in zip("ohlcv", values, strict=True)},
            "topic": pl.repeat(self._info.name, len(batch), eager=True),
            "log": pl.repeat(self._info.log_id, len(batch), eager=True),
            "partition": pl.repeat(self._partition, len(batch), dtype=pl.Int32, eager=True),
            "offset": np.concatenate([piece.offset for piece in pieces]),
            "row": pl.Series(np.concatenate([piece.row for piece in pieces])).cast(pl.Int32),
            "append_ts": _times(np.concatenate([piece.append_ts for piece in pieces])),
            "misplaced": misplaced[batch.codes],
        }
        return pl.DataFrame(columns).select(*EVENT_COLUMNS)


def _times(values: Ints) -> pl.Series:
    return pl.Series(values, dtype=pl.Int64).cast(TIME)


def _rows(rows: Sequence[dict[str, object]], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    plain = {n: pl.Int64() if t == TIME else t for n, t in schema.items()}
    frame = pl.DataFrame(rows, schema=plain, orient="row")
    return frame.with_columns(pl.col(n).cast(t) for n, t in schema.items() if t == TIME)
