"""What only the embedded bus can be asked: damaged files, full disks, locks, its own log."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit.bus.conftest import TOPIC, Open

from market_data_core.errors import DamagedFileError, LogLostError, TransientError, UsageError
from market_data_core.records import Bounds, Entry
from market_data_pipeline.bus._topic_file import TopicFile
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_store import sqlite_file


async def filled(bus: EmbeddedBus, records: int = 50) -> None:
    """A topic in a file of a good many pages."""
    await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(i % 2, bytes(5_000), 1) for i in range(records)])
    await bus.close()


async def held(bus: EmbeddedBus, partition: int) -> tuple[int, int, int | None]:
    """First and next offset of a partition, and the events that it has received."""
    bounds = await bus.bounds(TOPIC, partition)
    return bounds.first, bounds.next, await bus.received(TOPIC, partition, bounds.next)


def folder_bytes(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


# ---- files that are not ours, or not whole -------------------------------------------------


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE accounts(x)")
        db.execute("INSERT INTO accounts VALUES (1)")


def foreign_with_log(path: Path) -> None:
    """As another program leaves it when it is killed: its last writes are in its log alone."""
    origin = path.with_suffix(".origin")
    with closing(sqlite3.connect(origin)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE accounts(x)")
        for suffix in ("", "-wal"):
            shutil.copy(f"{origin}{suffix}", f"{path}{suffix}")
    origin.unlink()


def other_stage(path: Path) -> None:
    sqlite_file.connect(path, 0x4D445053).close()


def garbage(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n" + bytes(range(256)) * 100)


def short_garbage(path: Path) -> None:
    path.write_bytes(b"x")


def magic_and_garbage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 100)


@pytest.mark.parametrize(
    "make", [foreign, foreign_with_log, other_stage, garbage, short_garbage, magic_and_garbage]
)
async def test_a_foreign_file_is_refused_and_stays(
    open_bus: Open, path: Path, make: Callable[[Path], None]
) -> None:
    path.parent.mkdir()
    make(path)
    before = folder_bytes(path)
    bus = open_bus()
    for call in (
        bus.create_topic(TOPIC, 2),
        bus.find_topic(TOPIC),
        bus.topics(),
        bus.append(TOPIC, [Entry(0, b"x")]),
        bus.drop_topic(TOPIC),
    ):
        with pytest.raises(DamagedFileError, match=TOPIC):
            await call
    await bus.close()
    after = folder_bytes(path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("cut", [17, 60, 99, 100, 4_000, 16_384, 0.25, 0.5, 0.99])
async def test_a_truncated_file_is_refused_and_stays(
    open_bus: Open, path: Path, cut: float
) -> None:
    await filled(open_bus())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if cut < 1 else int(cut)])
    before = folder_bytes(path)
    for _ in range(2):  # the first attempt left nothing that would satisfy the second
        bus = open_bus()
        with pytest.raises(DamagedFileError, match="nothing was written"):
            await bus.create_topic(TOPIC, 2)
        await bus.close()
    assert folder_bytes(path)[path.name] == before[path.name]


async def test_a_damaged_page_is_an_error_where_it_is_read(open_bus: Open, path: Path) -> None:
    await filled(open_bus())
    content = bytearray(path.read_bytes())
    content[16_384 * 2 :] = b"\xff" * (len(content) - 16_384 * 2)
    path.write_bytes(content)
    bus = open_bus()
    with pytest.raises(DamagedFileError):
        await bus.poll(TOPIC, {0: 0}, 1 << 30, 0)
    with pytest.raises(DamagedFileError):
        await bus.append(TOPIC, [Entry(0, b"x")])


async def test_an_empty_file_is_a_fresh_topic(open_bus: Open, path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    bus = open_bus()
    assert await bus.find_topic(TOPIC) is None
    assert await bus.topics() == []
    await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(0, b"x")])
    assert await held(open_bus(), 0) == (0, 1, 0)


@pytest.mark.parametrize("made", ["empty", "unmarked"])
async def test_looking_for_topics_writes_nothing(open_bus: Open, path: Path, made: str) -> None:
    path.parent.mkdir()
    path.touch()
    if made == "unmarked":  # somebody died between creating the file and marking it as ours
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode=WAL")
    before = path.read_bytes()
    bus = open_bus()
    assert await bus.topics() == []
    assert await bus.find_topic(TOPIC) is None
    with pytest.raises(UsageError, match="there is no topic"):
        await bus.append(TOPIC, [Entry(0, b"x", 1)])
    assert path.read_bytes() == before
    assert (await bus.create_topic(TOPIC, 1)).partitions == 1


async def test_a_topic_that_is_only_half_made_is_none_yet(open_bus: Open, path: Path) -> None:
    """Another process may be just between making the file and filling it."""
    sqlite_file.connect(path, 0x4D445042).close()
    assert await open_bus().find_topic(TOPIC) is None
    assert await open_bus().topics() == []
    assert (await open_bus().create_topic(TOPIC, 3)).partitions == 3


async def test_a_file_of_another_release_is_refused(open_bus: Open, path: Path) -> None:
    await filled(open_bus())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    with pytest.raises(UsageError, match="format 99"):
        await open_bus().create_topic(TOPIC, 2)


async def test_other_files_in_the_folder_are_no_topics(open_bus: Open, path: Path) -> None:
    await filled(open_bus())
    (path.parent / "my notes.db").write_text("x")
    (path.parent / "readme.txt").write_text("x")
    assert [t.name for t in await open_bus().topics()] == [TOPIC]


async def test_what_is_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    bus = EmbeddedBus(tmp_path / "file" / "bus")
    with pytest.raises(UsageError, match="cannot be opened"):
        await bus.create_topic(TOPIC, 1)
    (tmp_path / f"{TOPIC}.db").mkdir()
    with pytest.raises(UsageError, match="cannot be opened"):
        await EmbeddedBus(tmp_path).create_topic(TOPIC, 1)
    await bus.close()


def test_threads_that_create_at_once_get_one_topic(path: Path) -> None:
    """Files are opened in the caller's thread, so only threads meet while a file is made."""
    for attempt in range(5):
        folder = path.parent / str(attempt)
        barrier = threading.Barrier(6)
        made: list[str] = []
        errors: list[Exception] = []

        async def create(
            folder: Path = folder, barrier: threading.Barrier = barrier, made: list[str] = made
        ) -> None:
            bus = EmbeddedBus(folder)
            barrier.wait()
            try:
                made.append((await bus.create_topic(TOPIC, 4)).log_id)
                await bus.append(TOPIC, [Entry(0, b"x")])
            finally:
                await bus.close()

        def run(create: Callable[[], object] = create, errors: list[Exception] = errors) -> None:
            try:
                asyncio.run(create())  # type: ignore[arg-type]
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(made) == 6
        assert len(set(made)) == 1


# ---- files that change while they are open -------------------------------------------------


async def test_a_log_that_was_deleted_takes_nothing_more(open_bus: Open, path: Path) -> None:
    bus = open_bus()
    await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(0, b"x")])
    path.unlink()
    with pytest.raises(LogLostError, match="removed or replaced"):
        await bus.append(TOPIC, [Entry(0, b"y")])
    with pytest.raises(LogLostError, match="removed or replaced"):
        await bus.poll(TOPIC, {0: 1}, 1, 0)
    assert not path.exists()
    assert await bus.find_topic(TOPIC) is None


async def test_a_log_that_was_replaced_takes_nothing_more(open_bus: Open, path: Path) -> None:
    bus, other = open_bus(), open_bus()
    made = await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(0, b"x")])
    await bus.bounds(TOPIC, 0)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    again = await other.create_topic(TOPIC, 2)
    assert again.log_id != made.log_id
    for call in (bus.append(TOPIC, [Entry(0, b"y")]), bus.poll(TOPIC, {0: 1}, 1, 0)):
        with pytest.raises(LogLostError, match="removed or replaced"):
            await call
    assert await held(other, 0) == (0, 0, 0)


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_file_that_is_gone_is_let_go_of(open_bus: Open, path: Path, replaced: bool) -> None:
    """Behind what is under way; the disk gets its room back."""
    bus, other = open_bus(), open_bus()
    await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(0, b"x", 1) for _ in range(100)])
    file = bus._files[TOPIC]
    busy, going_on, closed = threading.Event(), threading.Event(), threading.Event()
    close = file.close

    def close_and_tell() -> None:
        close()
        closed.set()

    file.close = close_and_tell  # type: ignore[method-assign]

    def hold() -> None:
        busy.set()
        going_on.wait(20)

    bus._writer.submit(hold)
    reading = asyncio.create_task(bus.received(TOPIC, 0, 100))
    trimming = asyncio.create_task(bus.trim(TOPIC, 0, 0, 0, 1 << 40))
    waiting = asyncio.create_task(bus.poll(TOPIC, {0: 100}, 1, 60))
    await asyncio.to_thread(busy.wait, 20)
    await other.drop_topic(TOPIC)
    if replaced:
        await other.create_topic(TOPIC, 2)
    assert len(await bus.topics()) == int(replaced)
    going_on.set()
    assert (await reading, await trimming) == (100, False)
    with pytest.raises(LogLostError, match="removed or replaced"):
        await waiting
    assert await asyncio.to_thread(closed.wait, 20)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        file._read.execute("SELECT 1")
    assert (await other.find_topic(TOPIC) is not None) == replaced


async def test_a_stale_log_beside_a_new_file_is_no_part_of_it(open_bus: Open, path: Path) -> None:
    """Only the main file was deleted, while its log was not folded."""
    bus = open_bus()
    made = await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(0, b"x")])
    wal = Path(f"{path}-wal").read_bytes()
    await bus.close()
    path.unlink()
    Path(f"{path}-wal").write_bytes(wal)
    again = open_bus()
    assert (await again.create_topic(TOPIC, 2)).log_id != made.log_id
    assert await held(again, 0) == (0, 0, 0)


async def test_records_that_come_while_reading_are_not_a_lost_log(
    open_bus: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding nothing at a position and asking for the bounds, another one appends."""
    bus, other = open_bus(), open_bus()
    await bus.create_topic(TOPIC, 1)
    await other.create_topic(TOPIC, 1)
    original, news = TopicFile.bounds, [Entry(0, b"news")]

    def bounds(file: TopicFile, partition: int) -> Bounds:
        if news:
            other._files[TOPIC].append([news.pop()], 1)
        return original(file, partition)

    monkeypatch.setattr(TopicFile, "bounds", bounds)
    assert len((await bus.poll(TOPIC, {0: 0}, 1, 5))[0]) == 1
    assert news == []


# ---- full, locked --------------------------------------------------------------------------


async def test_a_full_disk_is_transient(open_bus: Open) -> None:
    bus = open_bus()
    await bus.create_topic(TOPIC, 2)
    await bus.append(TOPIC, [Entry(0, b"first", 1)])
    db = bus._files[TOPIC]._write
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count={pages + 2}")
    large = [Entry(0, b"fits", 1, key="k"), *(Entry(1, bytes(20_000), 1) for _ in range(5))]
    for _ in range(2):
        with pytest.raises(TransientError, match="disk is full"):
            await bus.append(TOPIC, large)
    for client in (bus, open_bus()):
        assert await held(client, 0) == (0, 1, 1)
        assert await held(client, 1) == (0, 0, 0)
    await bus.append(TOPIC, [Entry(0, b"small", 1)])
    db.execute("PRAGMA max_page_count=1000000")
    await bus.append(TOPIC, large)
    assert await held(bus, 0) == (0, 3, 3)
    assert await held(bus, 1) == (0, 5, 5)


async def test_a_failed_trim_leaves_the_bus_usable(open_bus: Open) -> None:
    bus = open_bus()
    await bus.create_topic(TOPIC, 1)
    await bus.append(TOPIC, [Entry(0, b"x", 1) for _ in range(5)])
    db = bus._files[TOPIC]._write
    db.execute("CREATE TEMP TRIGGER fail BEFORE DELETE ON log BEGIN SELECT RAISE(FAIL, 'no'); END")
    with pytest.raises(sqlite3.Error, match="no"):
        await bus.trim(TOPIC, 0, 5, 1 << 62, 1 << 40)
    db.execute("DROP TRIGGER fail")
    await bus.append(TOPIC, [Entry(0, b"y", 1)])
    assert await held(open_bus(), 0) == (0, 6, 6)


async def test_a_locked_file_is_transient(
    open_bus: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_MS", 50)
    bus = open_bus()
    await bus.create_topic(TOPIC, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(TransientError, match="locked by another process"):
                await bus.append(TOPIC, [Entry(0, b"x", 1)])
        assert await held(bus, 0) == (0, 0, 0)  # reading goes on
        other.execute("ROLLBACK")
    await bus.append(TOPIC, [Entry(0, b"x", 1)])
    assert await held(bus, 0) == (0, 1, 1)
