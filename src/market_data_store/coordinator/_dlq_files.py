"""The files of a dead-letter queue: lines of text, moved about under a lock.

::

    bars.ndjson                    what was saved last; lines are appended and fsynced
    bars.ndjson.000001 …           full files, oldest first
    bars.ndjson.inflight-<token>   lines that a living process has handed out; it holds a lock on it
    bars.ndjson.lock               whoever adds, moves or removes lines holds it

Every step leaves each line in at least one file. A process that dies between two steps leaves it
in two of them; whoever takes back what it had in hand keeps one line of each id. Lines are handed
out at least once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

LEASE_END = b"-"
"""First byte of a line of an in-flight file that takes leases back; records begin with ``{``."""


class DlqFiles:
    """Blocks on I/O; safe to use from several threads and processes.

    Args:
        path: the newest file.
        bytes_max: size from which a new file is begun.
        id_of: a line's id; None for a line that cannot be read.
    """

    def __init__(self, path: Path, bytes_max: int, id_of: Callable[[bytes], str | None]) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._id_of = id_of
        self._lease_path: Path | None = None
        self._lease_fd = -1
        self._unlock: weakref.finalize[[int], DlqFiles] | None = None
        self._leased: set[str] = set()

    # adding

    def append(self, lines: Sequence[bytes]) -> None:
        """Add lines (without their ends) durably, all of them or none.

        Raises:
            OSError: the disk is full or the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._append(lines)

    def _append(self, lines: Sequence[bytes]) -> None:
        self._rotate()
        created = not self.path.exists()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            # A line that a crash cut off stays, on a line of its own, to be reported.
            data = (b"\n" if torn else b"") + b"".join(line + b"\n" for line in lines)
            _add(fd, data)
        finally:
            os.close(fd)
        if created:
            _sync_folder(self.path.parent)

    def _rotate(self) -> None:
        if self.path.exists() and self.path.stat().st_size >= self._bytes_max:
            numbers = [int(old.suffix[1:]) for old in self._full_files()]
            number = max(numbers, default=0) + 1
            self.path.rename(self.path.with_name(f"{self.path.name}.{number:06d}"))
            _sync_folder(self.path.parent)

    # reading

    def lines(self) -> list[bytes]:
        """Every line that is not handed out, oldest first."""
        if not self.path.parent.is_dir():
            return []
        with self._locked():
            self._reclaim()
            return [line for file in self._files() for line in _lines(file)]

    def exist(self) -> bool:
        """Whether there is any file of the queue; its lock stays when all lines have gone."""
        folder = self.path.parent
        beside = (".inflight-", ".lock")
        return folder.is_dir() and bool(
            [*self._files(), *(f for e in beside for f in self._beside(e))]
        )

    def handed_out(self) -> int:
        """How many lines living processes have in hand."""
        if not self.path.parent.is_dir():
            return 0
        with self._locked():
            self._reclaim()
            return sum(len(self._open_leases(file)) for file in self._beside(".inflight-"))

    def leased(self) -> int:
        """How many lines this object has handed out and not got back."""
        return len(self._leased)

    # handing out

    def take(self, count: int, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """Move the oldest `count` lines that are wanted into this process's in-flight file."""
        if not self.path.parent.is_dir():
            return []
        with self._locked():
            self._reclaim()
            taken: list[bytes] = []
            changes: list[tuple[Path, list[bytes]]] = []
            for file in self._files():
                if len(taken) >= count:
                    break
                before, kept = len(taken), []
                for line in _lines(file):
                    if len(taken) < count and wanted(line):
                        taken.append(line)
                    else:
                        kept.append(line)
                if len(taken) > before:
                    changes.append((file, kept))
            if taken:
                self._lease(taken)
                for file, kept in changes:
                    _rewrite(file, kept)
            return taken

    def confirm(self, ids: Sequence[str]) -> None:
        """Forget lines that were handed out; unknown ids have no effect."""
        if self._leased.intersection(ids):
            with self._locked():
                self._end_leases(ids)

    def give_back(self, lines: Sequence[bytes]) -> None:
        """Put lines that were handed out at the end of the queue."""
        by_id = {line_id: line for line in lines if (line_id := self._id_of(line)) is not None}
        if self._leased.intersection(by_id):
            with self._locked():
                ours = self._leased.intersection(by_id)
                self._append([line for line_id, line in by_id.items() if line_id in ours])
                self._end_leases(list(ours))

    def remove(self, unwanted: Callable[[bytes], bool]) -> int:
        """Remove lines that are not handed out; returns how many."""
        if not self.path.parent.is_dir():
            return 0
        removed = 0
        with self._locked():
            self._reclaim()
            for file in self._files():
                lines = list(_lines(file))
                kept = [line for line in lines if not unwanted(line)]
                if len(kept) < len(lines):
                    _rewrite(file, kept)
                    removed += len(lines) - len(kept)
        return removed

    def close(self) -> None:
        """Give back what was handed out and not confirmed."""
        if self._unlock is not None:
            with self._locked():
                self._unlock()
                self._unlock = None
                self._leased.clear()
                self._reclaim()

    def _lease(self, lines: Sequence[bytes]) -> None:
        if self._unlock is None:
            token = f"{os.getpid()}-{secrets.token_hex(4)}"
            self._lease_path = self.path.with_name(f"{self.path.name}.inflight-{token}")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._lease_fd = os.open(self._lease_path, flags, 0o640)
            fcntl.flock(self._lease_fd, fcntl.LOCK_EX)
            self._unlock = weakref.finalize(self, os.close, self._lease_fd)
        _add(self._lease_fd, b"".join(line + b"\n" for line in lines))
        _sync_folder(self.path.parent)
        self._leased.update(i for line in lines if (i := self._id_of(line)) is not None)

    def _end_leases(self, ids: Sequence[str]) -> None:
        ended = self._leased.intersection(ids)
        if not ended:
            return
        left = self._leased - ended
        if left:
            _add(self._lease_fd, b"".join(LEASE_END + i.encode() + b"\n" for i in ended))
        else:
            self._drop_lease_file()
        self._leased = left  # only now: what failed can be tried again

    def _drop_lease_file(self) -> None:
        if self._lease_path is not None and self._unlock is not None:
            self._lease_path.unlink()
            _sync_folder(self.path.parent)
            self._unlock()
            self._unlock = None

    def _reclaim(self) -> None:
        """Take back what processes had handed out that are no more."""
        for file in self._beside(".inflight-"):
            fd = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left := self._open_leases(file):
                    there = {self._id_of(line) for old in self._files() for line in _lines(old)}
                    if back := [line for line_id, line in left.items() if line_id not in there]:
                        self._append(back)
                file.unlink()
            except BlockingIOError:
                continue  # its owner lives
            finally:
                os.close(fd)

    def _open_leases(self, file: Path) -> dict[str | None, bytes]:
        """The lines of an in-flight file that were not given back or confirmed since, by id."""
        found: dict[str | None, bytes] = {}
        # A line that is cut off was not handed out: it is still where it came from.
        for line in file.read_bytes().split(b"\n")[:-1]:
            if line.startswith(LEASE_END):
                found.pop(line[1:].decode(), None)
            else:
                found[self._id_of(line)] = line
        return found

    # files

    def _full_files(self) -> list[Path]:
        return sorted(file for file in self._beside(".") if file.suffix[1:].isdecimal())

    def _beside(self, ending: str) -> list[Path]:
        start = self.path.name + ending
        return [file for file in self.path.parent.iterdir() if file.name.startswith(start)]

    def _files(self) -> list[Path]:
        return [*self._full_files(), *([self.path] if self.path.exists() else [])]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.path.with_name(f"{self.path.name}.lock")
        fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        for line in lines:
            if text := line.rstrip(b"\r\n"):
                yield text


def _rewrite(file: Path, lines: Sequence[bytes]) -> None:
    if lines:
        new = file.with_name(f".{file.name}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            _write_all(fd, b"".join(line + b"\n" for line in lines))
            os.fsync(fd)
        finally:
            os.close(fd)
        new.replace(file)
    else:
        file.unlink()
    _sync_folder(file.parent)


def _add(fd: int, data: bytes) -> None:
    """Append durably, all or nothing."""
    size = os.fstat(fd).st_size
    try:
        _write_all(fd, data)
        os.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, size)
        raise


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
