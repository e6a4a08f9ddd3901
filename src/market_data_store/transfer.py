"""Rows of a table to a file and back: NDJSON or Parquet, of any size."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from market_data_core.contracts.store import Tables
from market_data_core.errors import UsageError
from market_data_core.tables import Select, Table
from market_data_store.coordinator._calls import maybe_await
from market_data_store.frames import closing, json_lines, with_iso_times

if TYPE_CHECKING:
    import polars as pl

Form = Literal["ndjson", "parquet"]
Numbered = tuple[int, bytes, Mapping[str, Any] | str]
"""A line's number from 1, its bytes, and its values, or why there are none."""

STANDARD = "-"
"""In the place of a path: standard output or input; NDJSON only."""

_CHUNK_ROWS = 5_000
_LINE_BYTES_MAX = 1 << 24
_BOM = b"\xef\xbb\xbf"


async def export_rows(store: Tables, select: Select, path: str, form: Form) -> int:
    """Write the selected rows to a file, which appears when it is whole, in the order of the key.

    NDJSON has one object a line: times as ISO 8601 UTC texts, numbers with the digits that give
    the same float64, JSON as it is. Parquet has the columns of the frames that are read.

    Args:
        store: where from; memory stays bounded, and all rows are as of one moment.
        select: which rows.
        path: of the file, which is replaced if it is there; ``-`` for standard output.
        form: ``ndjson`` or ``parquet``.

    Returns:
        How many rows were written.

    Raises:
        UsageError: the file cannot be written, or Parquet is to go to standard output.
        TransientError: the store cannot be used now.
    """
    async with closing(_frames(store, select)) as frames:
        if path == STANDARD:
            if form == "parquet":
                msg = "parquet cannot be written to standard output in parts; name a file"
                raise UsageError(msg)
            return await _write_lines(frames, select.table, sys.stdout.buffer)
        with replacing(Path(path)) as part:
            if form == "parquet":
                return await write_parquet(frames, part)
            with part.open("wb") as file:
                rows = await _write_lines(frames, select.table, file)
                await asyncio.to_thread(os.fsync, file.fileno())
            return rows


async def import_rows(
    path: str,
    form: Form,
    make: Callable[[Mapping[str, Any]], Any],
    submit: Callable[[list[Any]], Awaitable[Any]],
    refuse: Callable[[int, str, bytes], Any],
) -> int:
    """Read rows from a file, a few thousand at a time.

    Args:
        path: of the file; ``-`` for standard input.
        form: ``ndjson`` or ``parquet``; times of the latter come as ISO 8601 UTC texts, too.
        make: from column -> value to a record; raises UsageError for a row that is none.
        submit: takes each list of records; is awaited.
        refuse: told of every row that is none: its line (Parquet: its row) from 1, why, and the
            line's bytes (Parquet: the row as JSON); awaited if it can be.

    Returns:
        How many records were submitted.

    Raises:
        UsageError: the file cannot be read, or is no Parquet file.
    """
    if path == STANDARD and form == "parquet":
        msg = "parquet cannot be read from standard input; name a file"
        raise UsageError(msg)
    chunks = _parquet_chunks(path) if form == "parquet" else _line_chunks(path)
    submitted, reading = 0, _next(chunks)
    try:
        while chunk := await reading:
            records = []
            for number, original, values in chunk:
                if isinstance(values, str):
                    await maybe_await(refuse(number, values, original))
                    continue
                try:
                    records.append(make(values))
                except UsageError as error:
                    await maybe_await(refuse(number, str(error), original))
            if records:
                await submit(records)
                submitted += len(records)
            reading = _next(chunks)
    finally:
        if not reading.cancelled():  # else a thread is still inside, and leaves it behind
            chunks.close()
    return submitted


def _next(chunks: Generator[list[Numbered]]) -> asyncio.Future[list[Numbered] | None]:
    """The next chunk, read by a thread that does not keep the process from ending.

    Standard input may never give another line.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[Numbered] | None] = loop.create_future()

    def settle(chunk: list[Numbered] | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(chunk)
        else:
            future.set_exception(error)

    def read() -> None:
        chunk, error = None, None
        try:
            chunk = next(chunks, None)
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, chunk, error)

    threading.Thread(target=read, name="import", daemon=True).start()
    return future


async def _frames(store: Tables, select: Select) -> AsyncIterator[pl.DataFrame]:
    """The rows' frames, one of no rows if there are none."""
    empty = True
    async with closing(store.scan(select)) as frames:
        async for frame in frames:
            empty = False
            yield frame
    if empty:
        yield await store.select(select)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written beside `path`, which takes its place at the end, or is removed.

    Its folder is for it alone.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = Path(folder) / "part"
            yield part
            part.replace(path)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise UsageError(msg) from error


# NDJSON


async def _write_lines(frames: AsyncIterator[pl.DataFrame], table: Table, file: IO[bytes]) -> int:
    rows = 0
    async for frame in frames:
        rows += len(frame)
        await asyncio.to_thread(_write_frame, frame, table, file)
    await asyncio.to_thread(file.flush)
    return rows


def _write_frame(frame: pl.DataFrame, table: Table, file: IO[bytes]) -> None:
    nested = [column.name for column in table.columns if column.kind == "json"]
    file.write(b"".join(line + b"\n" for line in json_lines(frame, nested)))


@contextmanager
def _source(path: str) -> Iterator[IO[bytes]]:
    if path == STANDARD:
        yield sys.stdin.buffer
        return
    with Path(path).open("rb") as file:
        yield file


def _line_chunks(path: str) -> Generator[list[Numbered], None, None]:
    try:
        with _source(path) as file:
            number, chunk = 0, list[Numbered]()
            while line := file.readline(_LINE_BYTES_MAX):
                number += 1
                chunk += _read_line(number, line, file)
                if len(chunk) >= _CHUNK_ROWS:
                    yield chunk
                    chunk = []
            if chunk:
                yield chunk
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise UsageError(msg) from error


def _read_line(number: int, line: bytes, file: IO[bytes]) -> Iterator[Numbered]:
    """The line's values; nothing for an empty one."""
    rest = line
    while len(rest) == _LINE_BYTES_MAX and not rest.endswith(b"\n"):
        rest = file.readline(_LINE_BYTES_MAX)
    if rest is not line:
        yield number, line, f"longer than {_LINE_BYTES_MAX:,} bytes"
        return
    text = (line.removeprefix(_BOM) if number == 1 else line).strip()
    if text:
        try:
            yield number, text, msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield number, text, f"not a JSON object: {error}"


# Parquet


async def write_parquet(frames: AsyncIterator[pl.DataFrame], path: Path) -> int:
    """Write frames of one kind to a Parquet file; returns how many rows.

    It goes by way of one file beside it for each frame, since a Parquet file cannot be written
    frame by frame.
    """
    import polars as pl

    rows, parts = 0, list[Path]()
    async for frame in frames:
        rows += len(frame)
        parts.append(path.with_name(f"{len(parts):06}.arrow"))
        await asyncio.to_thread(frame.write_ipc, parts[-1])
    await asyncio.to_thread(pl.scan_ipc(parts).sink_parquet, path)
    return rows


def _parquet_chunks(path: str) -> Generator[list[Numbered], None, None]:
    import polars as pl

    try:
        scan = pl.scan_parquet(path, glob=False)
        total = int(scan.select(pl.len()).collect().item())
        for start in range(0, total, _CHUNK_ROWS):
            rows = with_iso_times(scan.slice(start, _CHUNK_ROWS).collect()).iter_rows(named=True)
            yield [(start + i, msgspec.json.encode(row), row) for i, row in enumerate(rows, 1)]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        msg = f"{path} cannot be read as a Parquet file: {str(error)[:200]}"
        raise UsageError(msg) from error
