"""SQLite files of ours: opened only if they are ours and sound, with errors an operator can use."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import structlog

from market_data_core.errors import DamagedFileError, MdpError, TransientError, UsageError

log = structlog.get_logger("sqlite")

_PRIMARY = 0xFF  # extended result codes keep the primary code in their lowest byte
_WAIT = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
    sqlite3.SQLITE_NOMEM: "cannot be used: out of memory",
}
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
_PAGE_SIZE_MIN = 4096
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_FOLD_PAUSE_MIN_S, _FOLD_PAUSE_MAX_S = 1.0, 60.0
BUSY_TIMEOUT_MS = 5_000
ROWS_PER_STATEMENT = 200

T = TypeVar("T")


def translate(error: sqlite3.Error, path: Path) -> MdpError | sqlite3.Error:
    """The platform's error for SQLite's; `error` itself if it is about one statement's data."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    if code in _WAIT:
        return TransientError(f"{path} {_WAIT[code]} ({error})")
    if code in _BROKEN:
        return damaged(path, str(error))
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return UsageError(f"{path} cannot be opened for writing: {error}; check its permissions")
    return error


def damaged(path: Path, what: str) -> DamagedFileError:
    """The error for a file that is not one of ours or is no longer whole."""
    msg = (
        f"{path} is damaged or not a file of this program ({what}); nothing was written to it. "
        "Restore it from a backup, or move it away to begin with an empty one"
    )
    return DamagedFileError(msg)


def parts_of(rows: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
    """The rows in parts for one statement each, with the place of each part's first one.

    Each step of a statement gives the interpreter lock away, and taking it back is what costs.
    """
    for at in range(0, len(rows), ROWS_PER_STATEMENT):
        yield at, rows[at : at + ROWS_PER_STATEMENT]


def row_marks(rows: int, width: int) -> str:
    """``(?,?),(?,?)``: the values of so many rows."""
    return ",".join(["(" + ",".join("?" * width) + ")"] * rows)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: committed at the end, undone on any error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the platform's errors in place of SQLite's."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


def connect(
    path: Path,
    application_id: int,
    synchronous: Literal["normal", "full"] = "normal",
    page_size: int = _PAGE_SIZE_MIN,
) -> sqlite3.Connection:
    """A connection in autocommit mode to our file at `path`, created if there is none.

    An empty file counts as none. Folding the write-ahead log back is left to the caller.

    Raises:
        DamagedFileError: the file is corrupt, or another program's.
        TransientError: it is locked for longer than the busy timeout.
        UsageError: it cannot be opened or created.
    """
    with translated(path):
        fresh = _is_fresh(path, application_id)
        db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000
        )
        try:
            if fresh:
                db.execute(f"PRAGMA page_size={page_size}")
            _use_log(db)
            db.execute(f"PRAGMA synchronous={synchronous}")
            db.execute("PRAGMA wal_autocheckpoint=0")
            db.execute("PRAGMA temp_store=MEMORY")
            _claim(db, path, application_id)
        except BaseException:
            db.close()
            raise
    return db


def _is_fresh(path: Path, application_id: int) -> bool:
    """Whether nothing is there yet; somebody else's file is refused before it can be changed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_open(path, error) from error
    return not (_is_ours(path, application_id) or _size(path)) or _never_made(path)


def is_there(path: Path, application_id: int) -> bool:
    """Whether our file is there and is more than an empty one; nothing is written or created.

    Raises:
        DamagedFileError: the file is corrupt, or another program's.
        UsageError: it cannot be opened.
    """
    with translated(path):
        return _is_ours(path, application_id)


def _is_ours(path: Path, application_id: int) -> bool:
    """Whether the file is marked as ours; an error if it is somebody else's.

    The file is looked at through SQLite alone: closing any other handle on it would give up this
    process's locks (POSIX), and the next process to leave would take away the write-ahead log
    under our feet.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _cannot_open(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path} cannot be opened: it is not a file"
        raise UsageError(msg)
    if found.st_size % _PAGE_SIZE_MIN and not _size(f"{path}-wal"):  # from its log it is made whole
        raise damaged(path, f"its {found.st_size} bytes are no whole number of pages")
    if not found.st_size or _never_made(path):
        return False
    return _look_inside(path, application_id)


def _never_made(path: Path) -> bool:
    """Whether a process died while it wrote the first page of a new file.

    Its rollback journal says that there was nothing before; who opens the file for writing
    undoes it, who only reads cannot.
    """
    try:
        with Path(f"{path}-journal").open("rb") as file:
            head = file.read(20)
    except OSError:
        return False
    return head[:8] == _JOURNAL_MAGIC and head[16:20] == bytes(4)


def _cannot_open(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be opened: {error.strerror or error}")


def _look_inside(path: Path, application_id: int) -> bool:
    """As :func:`_refuse_foreign`; reading only, for closing a file can fold its log."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_MS / 1000
    )
    try:
        return _refuse_foreign(db, path, application_id)
    finally:
        db.close()


def _refuse_foreign(db: sqlite3.Connection, path: Path, application_id: int) -> bool:
    """Whether the file is ours already; an error if it is somebody else's."""
    # in this order: another process marks a new file as ours before it creates tables
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (found,) = db.execute("PRAGMA application_id").fetchone()
    if found != application_id and (found or tables):
        raise damaged(path, "it is another program's database")
    return bool(found == application_id)


def _use_log(db: sqlite3.Connection) -> None:
    """Switch to a write-ahead log; SQLite itself does not wait here for others that do so."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & _PRIMARY == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() >= deadline:
                raise
            time.sleep(0.002)
        else:
            return


def _claim(db: sqlite3.Connection, path: Path, application_id: int) -> None:
    """Mark an empty file as ours; refuse one that is somebody else's."""
    if _refuse_foreign(db, path, application_id):
        return
    with transaction(db):  # somebody else may have been quicker
        if not _refuse_foreign(db, path, application_id):
            db.execute(f"PRAGMA application_id={application_id}")


def inode_of(path: Path) -> int:
    """Identity of the file at `path`, 0 if there is none: tells a file that was replaced."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116  (a hot path: Path.stat costs twice as much)
    except OSError:
        return 0


def _size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0


class LogFolder:
    """Copies a file's write-ahead log back into it; work goes on if that fails, and so do tries.

    Args:
        db: a connection that serves nothing else.
        path: the file.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path
        self._pause_s = self._again_at = 0.0

    def fold(self, at_least: int, force_at: int) -> None:
        """Fold the log once it is longer than `at_least` bytes.

        Does not hinder readers or writers unless the log has outgrown `force_at` bytes. An error
        is logged when it begins and when it is over, and tries become rarer meanwhile.
        """
        if time.monotonic() < self._again_at:
            return
        try:
            size = _size(f"{self._path}-wal")
            if size >= at_least:
                mode = "TRUNCATE" if size >= force_at else "PASSIVE"
                self._db.execute(f"PRAGMA wal_checkpoint({mode})")
        except sqlite3.ProgrammingError:
            return  # closed meanwhile
        except sqlite3.Error as error:
            found = translate(error, self._path)
            if not isinstance(found, TransientError):  # busy or full: the next round tries again
                self._failed(found)
        else:
            if self._pause_s:
                log.info("write-ahead log is folded back again", path=str(self._path))
            self._pause_s = 0.0

    def _failed(self, error: Exception) -> None:
        if not self._pause_s:
            log.error(
                "write-ahead log cannot be folded back; work goes on, and it grows meanwhile",
                path=str(self._path),
                error=str(error),
            )
        self._pause_s = min(max(2 * self._pause_s, _FOLD_PAUSE_MIN_S), _FOLD_PAUSE_MAX_S)
        self._again_at = time.monotonic() + self._pause_s
