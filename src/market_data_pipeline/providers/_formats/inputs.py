"""Opening inputs: plain or gzip files, pipes, standard input; and cutting them into lines."""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import xxhash

from market_data_core.errors import UsageError
from market_data_core.text.counting import count_byte, find_byte

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PARQUET_MAGIC = b"PAR1"
BOM = b"\xef\xbb\xbf"
STANDARD_INPUT = "-"
BYTES_PER_EVENT = 256
_COMPRESSED_RATIO = 10  # trades shrink to a tenth or so
_NEWLINE = 10
_COPY_BYTES = 1 << 20
_FIRST_READ_BYTES = 1 << 16
_LEAST_READ_BYTES = 64


class Reader(Protocol):
    """Bytes of an input, decompressed."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end; then b""."""
        ...


class SpoolFile:
    """A copy of an input that can be read once only; removed when nobody refers to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._finalizer = weakref.finalize(self, path.unlink, missing_ok=True)


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read.

    Attributes:
        path: where its bytes are.
        label: what the user calls it.
        digest: xxh3_128 of its bytes.
        size: its size in bytes.
        magic: its first four bytes.
        spool: keeps the copy alive, for standard input and pipes.
    """

    path: Path
    label: str
    digest: bytes
    size: int
    magic: bytes
    spool: SpoolFile | None = None

    @property
    def gzipped(self) -> bool:
        """Whether the bytes are gzip data."""
        return self.magic.startswith(GZIP_MAGIC)

    @property
    def expected_bytes(self) -> int:
        """About how long the input is as text."""
        packed = self.magic.startswith((GZIP_MAGIC, ZSTD_MAGIC, PARQUET_MAGIC))
        return self.size * (_COMPRESSED_RATIO if packed else 1)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The decompressed bytes.

        Raises:
            UsageError: the file can no longer be opened.
        """
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise UsageError(_cannot_open(self.label, error)) from error
        with file:
            yield _Gunzip(file, self.label) if self.gzipped else file

    def head(self, size: int) -> bytes:
        """The first `size` decompressed bytes, or as many as can be read."""
        with self.open() as reader:
            if isinstance(reader, _Gunzip):
                return reader.read_available(size)
            return reader.read(size)


def open_input(path: str, spool_dir: Path) -> Input:
    """Hash one input; standard input and pipes are copied to `spool_dir` first.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    try:
        if path == STANDARD_INPUT:
            return _hashed(_spooled(sys.stdin.buffer, spool_dir), "standard input")
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            msg = f"{path} is a directory; name the files in it, for example {path}/*"
            raise UsageError(msg)
        if not stat.S_ISREG(mode):
            with Path(path).open("rb") as pipe:
                return _hashed(_spooled(pipe, spool_dir), path)
        return _hashed(Path(path), path)
    except OSError as error:
        raise UsageError(_cannot_open(path, error)) from error


def _cannot_open(label: str, error: OSError) -> str:
    return f"{label} cannot be read: {error.strerror or error}; check the name and its permissions"


def _spooled(source: BinaryIO, spool_dir: Path) -> SpoolFile:
    spool_dir.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="input-", suffix=".spool", dir=spool_dir)
    spool = SpoolFile(Path(name))
    with os.fdopen(handle, "wb") as target:
        while piece := source.read(_COPY_BYTES):
            target.write(piece)
    return spool


def _hashed(source: Path | SpoolFile, label: str) -> Input:
    path = source.path if isinstance(source, SpoolFile) else source
    digest, size, magic = xxhash.xxh3_128(), 0, b""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_COPY_BYTES):
            magic = magic or piece[:4]
            size += len(piece)
            digest.update(piece)
    spool = source if isinstance(source, SpoolFile) else None
    return Input(path, label, digest.digest(), size, magic, spool)


class _Gunzip:
    """gzip data of any number of members; gives all that can be had before it complains."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        self._file = file
        self._label = label
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = b""
        self._ready = bytearray()
        self._failure: str | None = None
        self._ended = False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes.

        Raises:
            UsageError: the data is cut off or damaged; everything before it was returned.
        """
        data = self.read_available(size)
        if not data and self._failure:
            msg = f"{self._label}: {self._failure}; what came before it was read"
            raise UsageError(msg)
        return data

    def read_available(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end and where the data is damaged."""
        while len(self._ready) < size and not self._ended:
            self._inflate_some(size - len(self._ready))
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def _inflate_some(self, size: int) -> None:
        if not self._pending:
            self._pending = self._file.read(_FIRST_READ_BYTES)
        if not self._pending:
            self._ended = True
            self._failure = "the gzip data is cut off"
            return
        try:
            self._ready += self._inflate.decompress(self._pending, size)
        except zlib.error as error:
            self._ended = True
            self._failure = f"the gzip data is damaged ({error})"
            return
        self._pending = self._inflate.unconsumed_tail
        if self._inflate.eof:
            self._next_member(self._inflate.unused_data)

    def _next_member(self, rest: bytes) -> None:
        self._pending = rest.lstrip(b"\0") or self._file.read(_FIRST_READ_BYTES).lstrip(b"\0")
        self._ended = not self._pending
        if len(self._pending) == 1:
            self._pending += self._file.read(_FIRST_READ_BYTES)
        if not self._ended and not self._pending.startswith(GZIP_MAGIC):
            self._ended = True
            self._failure = "other bytes follow the gzip data"
        self._inflate = zlib.decompressobj(wbits=31)


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines, each ending in a newline; or a piece of a line that cannot be used.

    Attributes:
        data: the bytes.
        line: number of the first line, from 1.
        lines: how many lines there are, blank ones included.
        reason: why the piece cannot be used; "" for whole lines.
    """

    data: bytes
    line: int
    lines: int
    reason: str = ""

    def split(self, parts: int) -> list[Block]:
        """The same lines in about `parts` blocks."""
        ends = find_byte(self.data, _NEWLINE) + 1
        step = -(-len(ends) // parts)
        blocks, start = [], 0
        for first in range(0, len(ends), step):
            last = min(first + step, len(ends))
            end = int(ends[last - 1])
            blocks.append(Block(self.data[start:end], self.line + first, last - first))
            start = end
        return blocks

    def numbered_lines(self) -> list[tuple[int, bytes]]:
        """Number and bytes (without the newline) of every line that is not blank."""
        lines = self.data.split(b"\n")
        return [(n, text) for n, text in enumerate(lines, self.line) if text.strip()]


def line_blocks(source: Input, chunk_events: int, max_line_bytes: int) -> Iterator[Block]:
    """The input in blocks of whole lines, small ones first so that work starts at once.

    Lines longer than `max_line_bytes` come as pieces of that size, cut from the line's start, so
    memory stays bounded whatever the input.

    Raises:
        UsageError: the compressed data is cut off or damaged; all before it was yielded.
    """
    target = max(_LEAST_READ_BYTES, min(chunk_events * BYTES_PER_EVENT, max_line_bytes))
    size = min(_FIRST_READ_BYTES, target)
    lines = _LineCutter(max_line_bytes)
    failure: UsageError | None = None
    with source.open() as reader:
        while True:
            try:
                piece = reader.read(size)
            except UsageError as error:
                failure = error
                break
            if not piece:
                break
            yield from lines.feed(piece)
            size = min(size * 2, target)
    yield from lines.finish("malformed" if failure else "")
    if failure:
        raise failure


class _LineCutter:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._carry = bytearray()
        self._line = 1
        self._in_long_line = False
        self._started = False

    def feed(self, piece: bytes) -> Iterator[Block]:
        """Blocks that became complete with `piece`, which is no longer than the limit."""
        if not self._started:
            self._started = True
            piece = piece.removeprefix(BOM)
        first = piece.find(b"\n")
        if first < 0:
            self._carry += piece
            while len(self._carry) > self._limit:
                self._in_long_line = True
                yield self._piece("too_long")
            return
        start = 0
        # only the first line can be longer than what was just read
        if self._in_long_line or len(self._carry) + first > self._limit:
            self._carry += piece[:first]
            yield from self._rest_of_line("too_long")
            start = first + 1
        end = piece.rfind(b"\n") + 1
        if end > start:
            data = b"".join((self._carry, memoryview(piece)[start:end]))
            self._carry.clear()
            lines = count_byte(data, _NEWLINE)
            yield Block(data, self._line, lines)
            self._line += lines
        self._carry += piece[end:]

    def finish(self, reason: str) -> Iterator[Block]:
        """The last line, if it has no newline; `reason` tells why it cannot be whole."""
        if self._in_long_line or len(self._carry) > self._limit:
            reason = "too_long"
        if reason:
            yield from self._rest_of_line(reason)
        elif self._carry:
            yield Block(bytes(self._carry) + b"\n", self._line, 1)

    def _rest_of_line(self, reason: str) -> Iterator[Block]:
        while self._carry:
            yield self._piece(reason)
        self._in_long_line = False
        self._line += 1

    def _piece(self, reason: str) -> Block:
        data = bytes(self._carry[: self._limit])
        del self._carry[: self._limit]
        return Block(data, self._line, 1, reason)


def file_object(source: Input) -> io.BufferedReader:
    """The input's bytes as they are on disk, for readers that decompress by themselves."""
    return source.path.open("rb")
