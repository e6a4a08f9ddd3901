"""What only the SQLite store can be asked: damaged files, full disks, locks, its own log."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
import structlog

from market_data_core.clock import ManualClock, SystemClock
from market_data_core.contracts.store import Gap, WriteCounts
from market_data_core.errors import DamagedFileError, TransientError, UsageError
from market_data_core.testing._store_owning import (
    GROUP,
    T0,
    TOPIC,
    FakeGroup,
    batch,
    claimed,
    everything,
    key,
)
from market_data_store import sqlite_file
from market_data_store.backends import sqlite
from market_data_store.backends.sqlite import BACKEND, SqliteStore
from market_data_store.migrations import migrations

Open = Callable[[], SqliteStore]
_COMMITS_MAX = 5_000
_BUS_FILE = 0x4D445042


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "store.db"


@pytest.fixture
async def open_store(path: Path) -> AsyncIterator[Open]:
    opened: list[SqliteStore] = []

    def open_one() -> SqliteStore:
        opened.append(SqliteStore(path, clock=ManualClock(T0)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


async def filled(store: SqliteStore, bars: int = 2_000) -> FakeGroup:
    """A migrated store with a good many pages; returns the group that filled it."""
    await store.migrate()
    rows = [(f"S{i % 40}", i // 40, 1.0 + i, 1) for i in range(bars)]
    group = FakeGroup(await claimed(store), [batch(*rows)], "bars")
    await store.commit([group], [])
    return group


# ---- files ---------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE bars_ohlcv(x)")


def bus_file(path: Path) -> None:
    sqlite_file.connect(path, _BUS_FILE).close()


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def one_byte(path: Path) -> None:
    """SQLite itself takes a file of one byte for an empty one."""
    path.write_bytes(b"x")


@pytest.mark.parametrize("make", [foreign, bus_file, garbage, one_byte])
def test_a_foreign_file_is_refused_and_stays(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(DamagedFileError, match="nothing was written to it"):
            SqliteStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [17, 100, 4_096, 0.3, 0.5, 0.999])
async def test_a_truncated_file_is_refused_and_stays(
    open_store: Open, path: Path, cut: float
) -> None:
    store = open_store()
    await filled(store)
    await store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if cut < 1 else int(cut)])
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(DamagedFileError):
            SqliteStore(path)
    assert path.read_bytes() == before


async def test_a_damaged_page_is_an_error_where_it_is_read(open_store: Open, path: Path) -> None:
    store = open_store()
    await filled(store)
    await store.close()
    content = bytearray(path.read_bytes())
    content[4_096 * 14 :] = b"\xff" * (len(content) - 4_096 * 14)
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        await open_store().bars()


async def test_an_empty_file_is_a_fresh_store(open_store: Open, path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    await filled(open_store())
    assert len(await open_store().bars()) == 2_000


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_store_that_was_deleted_takes_nothing_more(
    open_store: Open, path: Path, replaced: bool
) -> None:
    store = open_store()
    group = await filled(store)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    other = open_store() if replaced else None
    if other:
        await other.migrate()
    with pytest.raises(DamagedFileError, match="removed or replaced"):
        await store.commit([group.next()], [])
    with pytest.raises(DamagedFileError, match="removed or replaced"):
        await store.heartbeat(GROUP, TOPIC, "a", 1, {})
    assert path.exists() == replaced
    if other:
        assert await everything(other) == ([], [], [[], []])


async def test_a_newer_schema_is_refused(open_store: Open, path: Path) -> None:
    store = open_store()
    await filled(store)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
    with pytest.raises(UsageError, match="schema 999"):
        await store.migrate()


def test_a_uri_names_a_file(tmp_path: Path) -> None:
    for uri in ("sqlite:///", "sqlite:", "sqlite://host/x", "store.db"):
        with pytest.raises(UsageError, match="names no file"):
            BACKEND.create(uri, SystemClock())
    with pytest.raises(UsageError, match="cannot be opened"):
        BACKEND.create(f"sqlite:///{tmp_path}", SystemClock())


def test_every_migration_can_be_taken_back() -> None:
    steps = migrations("sqlite")
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))

    def schema() -> list[tuple[str, str]]:
        return db.execute("SELECT name, sql FROM sqlite_schema ORDER BY 1").fetchall()

    with closing(sqlite3.connect(":memory:")) as db:
        before = [schema()]
        for step in steps:
            db.executescript(step.up)
            before.append(schema())
        for step, state in zip(reversed(steps), reversed(before[:-1]), strict=True):
            db.executescript(step.down)
            left = [(name, sql) for name, sql in schema() if not name.startswith("sqlite_")]
            assert left == [(name, sql) for name, sql in state if not name.startswith("sqlite_")]


# ---- full, locked --------------------------------------------------------------------------


async def test_a_full_disk_is_transient(open_store: Open) -> None:
    store = open_store()
    group = await filled(store, 10)
    before = await everything(store)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages + 1}")
    rows = [(f"T{i}", 0, 1.0, 1) for i in range(2_000)]
    following = group.next(
        bars=[batch(("A", 0, 1.0, 1)), batch(*rows)], gaps=[Gap("p", "*", 0, 1, "c", "")]
    )
    for _ in range(2):
        with pytest.raises(TransientError, match="disk is full"):
            await store.commit([following], [])
        assert await everything(open_store()) == before
    store._db.execute("PRAGMA max_page_count=1000000")
    result = await store.commit([following], [])
    assert result.counts == WriteCounts(inserted=2_001)


async def test_a_locked_file_is_transient(
    open_store: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_MS", 50)
    store = open_store()
    group = await filled(store, 10)
    before = await everything(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for call in (
            store.commit([group.next()], []),
            store.claim(key(), "a", 1),
            store.heartbeat(GROUP, TOPIC, "a", 1, {}),
            store.migrate(),
        ):
            with pytest.raises(TransientError, match="locked by another process"):
                await call
        assert await everything(store) == before  # reading goes on
        other.execute("ROLLBACK")
    await store.commit([group.next()], [])


# ---- rows ----------------------------------------------------------------------------------


async def test_a_name_that_is_no_text_is_a_bad_row(open_store: Open) -> None:
    store = open_store()
    await store.migrate()
    group = FakeGroup(await claimed(store), bars_topic="bars")
    group.bars = [batch(*((s, 0, 1.0, 1) for s in ("A", "lone \ud800 surrogate", "nul\0inside")))]
    result = await store.commit([group], [])
    assert result.counts == WriteCounts(inserted=2, bad=1)
    assert [(b.batch, b.row) for b in result.bad[0]] == [(0, 1)]
    assert (await store.bars())["symbol"].to_list() == ["A", "nul\0inside"]
    group = group.next(bars=group.bars)
    assert (await store.commit([group], [])).counts == WriteCounts(unchanged=2, bad=1)


async def test_a_bar_is_found_by_its_whole_key(open_store: Open) -> None:
    """Bars that share all of the key but one part are apart, when new and when merged."""
    store = open_store()
    await store.migrate()
    one = batch(("A", 0, 1.0, 1))
    others = [
        replace(one, provider="q"),
        replace(one, interval="2s"),
        batch(("A", 1, 1.0, 1)),
        batch(("B", 0, 1.0, 1)),
    ]
    group = FakeGroup(await claimed(store), [one, *others])
    assert (await store.commit([group], [])).counts == WriteCounts(inserted=5)
    changed = [replace(b, close=b.close + 1, state="revised") for b in (one, *others)]
    for i, version in enumerate(changed):
        group = group.next(bars=[version])
        assert (await store.commit([group], [])).counts == WriteCounts(updated=1)
        assert (await store.bars())["close"].to_list().count(2.0) == i + 1


async def test_a_gap_says_what_has_become_of_it(open_store: Open, path: Path) -> None:
    store = open_store()
    await store.migrate()
    gaps = [Gap("p", symbol, 0, 1, "log_trimmed", "") for symbol in "AB"]
    await store.commit([FakeGroup(await claimed(store), gaps=gaps)], [])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE gaps SET state = 'filled' WHERE symbol = 'A'")
    assert await store.gaps() == [replace(gaps[0], state="filled"), gaps[1]]


# ---- folding -------------------------------------------------------------------------------


async def test_the_log_is_folded_while_all_work(
    open_store: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shrinks again and again under commits without a pause, with somebody reading."""
    monkeypatch.setattr(sqlite, "_FOLD_AT", 128 << 10)
    monkeypatch.setattr(sqlite, "_FOLD_FORCED_AT", 512 << 10)
    store, reader = open_store(), open_store()
    await store.migrate()
    sizes, claim = [0], await claimed(store)
    done = asyncio.Event()

    async def write() -> int:
        shrunk, group = 0, FakeGroup(claim)
        while shrunk < 3 and len(sizes) < _COMMITS_MAX:
            group.checkpoint = bytes([len(sizes) % 256]) * 100_000
            await store.commit([group], [])
            group = group.next()
            sizes.append(Path(f"{path}-wal").stat().st_size)
            shrunk += sizes[-1] < sizes[-2]
        done.set()
        return shrunk

    async def read() -> None:
        while not done.is_set():
            await reader.status()

    shrunk, _ = await asyncio.gather(write(), read())
    assert shrunk == 3
    assert (await reader.status())[0].sequence == len(sizes) - 1


class Failing:
    """A connection whose statements fail for a while."""

    def __init__(self, *errors: sqlite3.Error) -> None:
        self.errors, self.calls = list(errors), 0

    def execute(self, _: str) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


def broken(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk image is malformed")
    error.sqlite_errorcode = code
    return error


def test_trouble_with_folding_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("market_data_store.sqlite_file.time.monotonic", lambda: now[0])
    db = Failing(*[broken(sqlite3.SQLITE_CORRUPT)] * 8)
    folder = sqlite_file.LogFolder(cast("sqlite3.Connection", db), tmp_path / "store.db")
    tried = []
    with structlog.testing.capture_logs() as logs:
        while db.calls < 10:
            before = db.calls
            folder.fold(0, 1)
            tried += [now[0]] if db.calls > before else []
            now[0] += 0.5
    pauses = [later - at for at, later in pairwise(tried)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 0.5]
    assert [(entry["log_level"], entry["path"]) for entry in logs] == [
        ("error", str(tmp_path / "store.db")),
        ("info", str(tmp_path / "store.db")),
    ]


def test_a_busy_file_is_no_trouble_with_folding(tmp_path: Path) -> None:
    db = Failing(*[broken(sqlite3.SQLITE_BUSY)] * 3, sqlite3.ProgrammingError("closed"))
    folder = sqlite_file.LogFolder(cast("sqlite3.Connection", db), tmp_path / "store.db")
    with structlog.testing.capture_logs() as logs:
        for _ in range(4):
            folder.fold(0, 1)
    assert (db.calls, logs) == (4, [])


async def test_a_store_whose_log_cannot_be_folded_works_on(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_FOLD_AT", 0)
    with structlog.testing.capture_logs() as logs:
        store = open_store()
        store._log._db = cast("sqlite3.Connection", Failing(broken(sqlite3.SQLITE_CORRUPT)))
        await filled(store, 10)
        store._folding.shutdown()
    assert [entry["event"] for entry in logs if "cannot be folded" in entry["event"]] != []
