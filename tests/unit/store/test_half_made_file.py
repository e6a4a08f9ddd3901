"""A process that dies while it makes a new file leaves one that the next process can use."""

from __future__ import annotations

import struct
from contextlib import closing
from pathlib import Path

import pytest

from market_data_store.sqlite_file import connect, is_there

OURS, PAGE = 0x4D44, 4096
_MAGIC = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture
def half_made(tmp_path: Path) -> Path:
    """As kill -9 leaves it in the middle of `PRAGMA journal_mode=WAL` on a new file.

    SQLite writes the first page under a rollback journal, which says that the file had no pages
    before; it is hot, because nobody has deleted it.
    """
    path = tmp_path / "made.db"
    with closing(connect(path, OURS)):
        page = path.read_bytes()[:PAGE] or bytes(PAGE)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(page)
    records, nonce, pages_before, sector = 0, 1, 0, 512
    header = struct.pack(">5I", records, nonce, pages_before, sector, PAGE)
    Path(f"{path}-journal").write_bytes((_MAGIC + header).ljust(sector, b"\0"))
    return path


def test_it_is_made_anew(half_made: Path) -> None:
    with closing(connect(half_made, OURS)) as db:
        db.execute("CREATE TABLE t(x)")
    assert is_there(half_made, OURS)


def test_a_reader_finds_nothing_there(half_made: Path) -> None:
    assert not is_there(half_made, OURS)
