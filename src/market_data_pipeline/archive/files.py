"""Reading the archive back: what there is, and events in order of time with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from market_data_core.errors import UsageError
from market_data_core.events import SRC_TS_MAX, SRC_TS_MIN, EventBatch
from market_data_core.text.codes import text_codes
from market_data_pipeline.archive.layout import (
    EVENT_COLUMNS,
    LETTER_COLUMNS,
    LETTERS,
    METADATA_KEY,
    FileInfo,
    encoded,
    folder_value,
    read_identity,
)
from market_data_pipeline.archive.letters import less_set_aside
from market_data_pipeline.providers._formats.rows import (
    Rows,
    Session,
    stream_column,
)

SLICE_ROWS = 500_000
"""Events that are put in order at a time, about."""
BLOCK_ROWS = 1 << 15
_ORDER = ("src_ts", "append_ts", "log", "partition", "offset", "row")
_DAY_NS = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events; everything by default.

    Attributes:
        from_ts: least src_ts, UTC ns.
        to_ts: src_ts that they stay below.
        provider: as the events bear it; None for all.
        symbols: upper case; empty for all.
    """

    from_ts: int = SRC_TS_MIN
    to_ts: int = SRC_TS_MAX
    provider: str | None = None
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A day of a symbol: UTC date as ``YYYY-MM-DD``, and how many files it has."""

    date: str
    provider: str
    symbol: str
    files: int


class Archive:
    """An archive's folder as its readers see it.

    Everything that can be seen is covered by a checkpoint (see
    :mod:`market_data_pipeline.archive.shelf`), so no store is asked.

    Args:
        root: the folder.

    Raises:
        UsageError: there is no archive.
        DamagedFileError: it is not one of this release.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        identity = read_identity(root)
        if identity is None:
            msg = f"there is no archive in {root}; mdp stream archive makes one"
            raise UsageError(msg)
        self.identity = identity

    def first_day(self, wanted: Selection) -> int | None:
        """Begin of the first day that has events of what is wanted, UTC ns; None for no day."""
        return next((_day_start(data.date) for data in self.datasets(wanted)), None)

    def datasets(self, wanted: Selection | None = None) -> Iterator[Dataset]:
        """What there is, by date, provider and symbol; of what is wanted only."""
        for date, folder in self._folders(wanted or Selection()):
            files = sorted(folder.glob("*.parquet"))
            if files:
                provider, symbol = (folder_value(at) or "" for at in (folder.parent, folder))
                if "~" in provider + symbol:  # a name that was cut short, or has this character
                    info = file_info(files[0])
                    provider, symbol = info.provider, info.symbol
                yield Dataset(date, provider, symbol, len(files))

    def _folders(self, wanted: Selection) -> Iterator[tuple[str, Path]]:
        """The symbols' folders that may hold what is wanted, with their date, by date."""
        provider = f"provider={encoded(wanted.provider)}" if wanted.provider else "provider=*"
        symbols = {f"symbol={encoded(symbol)}" for symbol in wanted.symbols}
        for day in sorted(self.root.glob("date=*")):
            date = folder_value(day) or ""
            start = _day_start(date)
            if start is None or start >= wanted.to_ts or start + _DAY_NS <= wanted.from_ts:
                continue
            for feed in sorted(day.iterdir()):
                if provider not in ("provider=*", feed.name) or folder_value(feed) is None:
                    continue
                for folder in sorted(feed.iterdir()):
                    if folder_value(folder) and (not symbols or folder.name in symbols):
                        yield date, folder

    def files(self, wanted: Selection) -> list[tuple[str, Path]]:
        """Files that may hold what is wanted, each with its date, by date."""
        return [
            (date, file)
            for date, folder in self._folders(wanted)
            for file in sorted(folder.glob("*.parquet"))
        ]

    def letters(self, wanted: Selection) -> pl.DataFrame:
        """Dead letters about events that are wanted, in columns ``LETTER_COLUMNS``."""
        paths = sorted((self.root / LETTERS).glob("date=*/*.parquet"))
        if not paths:
            return pl.DataFrame(schema=LETTER_COLUMNS)
        found = _scan(paths).filter(*_conditions(wanted, wanted.from_ts, wanted.to_ts))
        return _collect(found.select(*LETTER_COLUMNS), self.root)

    def frames(
        self, wanted: Selection, files: Sequence[tuple[str, Path]] | None = None
    ) -> Iterator[pl.DataFrame]:
        """Events in the order of src_ts, then of their append, a bounded number at a time.

        Args:
            wanted: which events.
            files: to read from; those that there are now by default.

        Returns:
            Frames of ``EVENT_COLUMNS``, of about :data:`SLICE_ROWS` rows; events of one src_ts
            are in one frame.

        Raises:
            UsageError: a file cannot be read.
        """
        by_date: dict[str, list[Path]] = {}
        for date, path in self.files(wanted) if files is None else files:
            by_date.setdefault(date, []).append(path)
        for date in sorted(by_date):
            infos = [(path, file_info(path)) for path in by_date[date]]
            for start, end in _slices([info for _, info in infos], wanted):
                paths = [p for p, i in infos if i.first_ts < end and i.last_ts >= start]
                if not paths:
                    continue
                found = _scan(paths).filter(*_conditions(wanted, start, end))
                frame = _collect(found.select(*EVENT_COLUMNS).sort(_ORDER), self.root)
                if len(frame):
                    yield frame

    def scan(
        self,
        wanted: Selection,
        *,
        name: str | None = None,
        aside: pl.DataFrame | None = None,
        files: Sequence[tuple[str, Path]] | None = None,
        block_rows: int = BLOCK_ROWS,
    ) -> Iterator[EventBatch]:
        """Events as :meth:`frames` orders them, in batches of one provider, kind and interval.

        Args:
            wanted: which events.
            name: the provider name of all of them; their own by default.
            aside: what to leave out, from :func:`letters.set_aside`.
            files: to read from; those that there are now by default.
            block_rows: most events of a batch; where streams alternate, the order holds within
                each of them and between blocks of so many events.

        Raises:
            UsageError: a file cannot be read.
        """
        session = Session(name)
        for frame in self.frames(wanted, files):
            left = frame if aside is None else less_set_aside(frame, aside)
            yield from batches_of(left, session, block_rows)


def batches_of(
    frame: pl.DataFrame, session: Session | None = None, block_rows: int = BLOCK_ROWS
) -> Iterator[EventBatch]:
    """Rows of ``EVENT_COLUMNS`` as batches; see :meth:`Archive.scan`."""
    session = session or Session()
    for start in range(0, len(frame), block_rows):
        rows = _rows(frame.slice(start, block_rows), session)
        for item in session.emit(rows):
            assert isinstance(item, EventBatch)  # noqa: S101
            yield item


def file_info(path: Path) -> FileInfo:
    """What a file of events says of itself.

    Raises:
        UsageError: it is no file of an archive, or is damaged.
    """
    try:
        return msgspec.json.decode(pl.read_parquet_metadata(path)[METADATA_KEY], type=FileInfo)
    except (pl.exceptions.PolarsError, OSError, KeyError, msgspec.MsgspecError) as error:
        msg = f"{path} is no file of an archive, or is damaged: {str(error)[:200]}"
        raise UsageError(msg) from error


def _day_start(date: str) -> int | None:
    try:
        day = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None  # a folder of somebody else's
    return int(day.timestamp()) * 10**9


def _slices(infos: Sequence[FileInfo], wanted: Selection) -> Iterator[tuple[int, int]]:
    """Times [start, end) that cover what is wanted, with about SLICE_ROWS events each.

    Events are taken to be spread evenly over each span of a file.
    """
    spans = np.array([span for info in infos for span in info.spans], np.int64).reshape(-1, 3)
    first, last, rows = spans[:, 0], spans[:, 1] + 1, spans[:, 2]
    start, end = max(wanted.from_ts, int(first.min())), min(wanted.to_ts, int(last.max()))
    if start >= end:
        return
    at, where = np.unique(np.concatenate([first, last]), return_inverse=True)
    slope = np.zeros(len(at))
    rates = rows / (last - first)
    np.add.at(slope, where, np.concatenate([rates, -rates]))
    total = np.concatenate([[0.0], np.cumsum(np.cumsum(slope)[:-1] * np.diff(at))])
    cuts = np.interp(np.arange(SLICE_ROWS, total[-1], SLICE_ROWS), total, at - at[0]) + at[0]
    inner = np.unique(cuts.astype(np.int64))
    bounds = [start, *inner[(inner > start) & (inner < end)].tolist(), end]
    yield from pairwise(bounds)


def _conditions(wanted: Selection, start: int, end: int) -> list[pl.Expr]:
    ts = pl.col("src_ts").cast(pl.Int64)
    found = [ts >= start, ts < end]
    if wanted.provider:
        found.append(pl.col("provider") == wanted.provider)
    if wanted.symbols:
        found.append(pl.col("symbol").is_in(wanted.symbols))
    return found


def _scan(paths: Sequence[Path]) -> pl.LazyFrame:
    return pl.scan_parquet(list(paths), glob=False, hive_partitioning=False)


def _collect(frame: pl.LazyFrame, root: Path) -> pl.DataFrame:
    try:
        return frame.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        msg = f"the archive in {root} cannot be read: {str(error)[:200]}"
        raise UsageError(msg) from error


def _rows(frame: pl.DataFrame, session: Session) -> Rows:
    names, codes = text_codes(frame["symbol"])
    o, h, low, c, v = (frame[name].to_numpy() for name in "ohlcv")
    return Rows(
        stream_column(
            session, len(frame), *(text_codes(frame[n]) for n in ("provider", "kind", "interval"))
        ),
        session.symbol_ids(names)[codes],
        frame["src_ts"].cast(pl.Int64).to_numpy(),
        frame["seq"].to_numpy(),
        frame["ingest_ts"].cast(pl.Int64).to_numpy(),
        c,
        v,
        (o, h, low),
    )
