"""What the archiver writes, by whatever way it dies or is disturbed."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.archive.conftest import (
    GROUP,
    LEASE_NS,
    TOPIC,
    Desk,
    as_json,
    batch,
    packed,
)

from market_data_core.contracts.store import Claim, CommitResult, Group
from market_data_core.deadletters import DeadLetter, encode_letters
from market_data_core.errors import TransientError, UsageError
from market_data_core.events import Rejected
from market_data_core.records import Mark
from market_data_pipeline import patience
from market_data_pipeline.archive.archiver import Archiver
from market_data_pipeline.archive.checkpoint import decode_archive_checkpoint
from market_data_pipeline.archive.files import Selection
from market_data_pipeline.archive.shelf import Shelf
from market_data_pipeline.archive.waiting import PIECE_BYTES, ROW_BYTES
from market_data_pipeline.bus import codec

Rows = Sequence[tuple[str, float, int, float]]


async def test_every_event_is_archived_with_its_position(desk: Desk) -> None:
    trades = batch(("A", 1, 1, 10.5), ("B", 40, 2, 0.1), ("A", 1, 1, 10.5))
    bar = batch(("A", 0, 0, 3.0), ohl=([2.0], [4.0], [1.0]), kind="bar", interval="1d")
    await desk.append(packed(trades), packed(trades), *as_json(trades))
    await desk.append(
        packed(bar), codec.encode_mark(Mark(kind="progress", provider="f")), partition=1
    )

    done = await desk.once()

    assert (done.events, done.set_aside) == (10, 0)
    frame = pl.concat(desk.archive.frames(Selection()))
    assert frame.select("offset", "row").filter(frame["kind"] == "tick").unique().shape == (9, 2)
    values = frame.filter(frame["kind"] == "bar").select("interval", "o", "h", "l", "c", "v").row(0)
    assert values == ("1d", 2.0, 4.0, 1.0, 3.0, 1.5)
    assert frame["src_ts"].is_sorted()
    assert {d.date for d in desk.archive.datasets()} == {"2025-10-24", "2025-10-25"}


async def test_what_is_no_event_is_kept_as_it_came(desk: Desk) -> None:
    broken = [b"not json", b'{"ver": 7}', *as_json(batch(("A", 1, 1, 1.0)))]
    bad_value = as_json(batch(("A", 1, 1, 1.0)))[0].replace(b'"h":1.0', b'"h":0.5')
    ours = codec.encode_rejected(Rejected("too_long", "why", b"\0\xff", "file:7"))
    await desk.append(*broken, bad_value, ours)

    done = await desk.once()

    assert (done.events, done.set_aside) == (1, 4)
    frame = pl.read_parquet(
        desk.root / "rejected/date=2025-10-25/*.parquet", hive_partitioning=False
    )
    assert sorted(frame.select("reason", "original", "offset").rows()) == [
        ("bad_version", b'{"ver": 7}', 1),
        ("high_below_low", bad_value, 3),
        ("malformed", b"not json", 0),
        ("too_long", b"\0\xff", 4),
    ]


async def test_letters_are_archived(desk: Desk) -> None:
    (original,) = as_json(batch(("A", 1, 1, 1.0)))
    letter = DeadLetter(
        reason="late", detail="d", topic=TOPIC, partition=0, offset=9, original=original,
        log_id="L", provider="f", symbol="A", src_ts=5 * 10**18 // 3,
    )  # fmt: skip
    await desk.append(encode_letters([letter, letter]), topic="mdp.dlq")

    done = await desk.once()

    assert done.set_aside == 2
    (a, b) = desk.archive.letters(Selection()).select("of_offset", "original", "row").rows()
    assert (a, b) == ((9, original, 0), (9, original, 1))


async def test_once_ends_at_what_is_there_and_goes_on_from_it(desk: Desk) -> None:
    assert (await desk.once()).events == 0
    await desk.append(packed(batch(("A", 1, 1, 1.0))))
    assert (await desk.once()).events == 1
    assert (await desk.once()).events == 0
    await desk.append(packed(batch(("A", 1, 2, 1.0))))
    assert (await desk.once()).events == 1
    assert desk.archived() == await desk.logged()


async def test_files_are_bounded_in_size(desk: Desk) -> None:
    desk.settings = {"file_bytes_max": 128 * 10, "memory_bytes_max": 1 << 20}
    rows: Rows = [("A", i / 100, i, 1.0) for i in range(100)]
    await desk.append(*(packed(batch(*rows[i : i + 5])) for i in range(0, 100, 5)))

    await desk.once()

    files = [path for _, path in desk.archive.files(Selection())]
    assert len(files) >= 10
    assert max(pl.read_parquet(path, hive_partitioning=False).height for path in files) <= 10
    assert desk.archived() == await desk.logged()


async def test_reading_stops_at_the_memory_bound(desk: Desk) -> None:
    """While nothing can be written, no more is held than the bound and what was read at once."""
    limit, each = 30_000, PIECE_BYTES + ROW_BYTES
    desk.settings = {"file_bytes_max": 1280, "memory_bytes_max": limit, "poll_bytes": 1}
    await desk.append(*(packed(batch(("A", i / 100, i, 1.0))) for i in range(60)))
    full = asyncio.Event()

    class Full(Shelf):
        def stage(self, *_: Any) -> Any:
            loop.call_soon_threadsafe(full.set)
            raise TransientError("no space left")

    async with desk.open() as (bus, store):
        loop = asyncio.get_running_loop()
        archiver = desk.archiver(bus, store, Full(desk.root))
        working = asyncio.create_task(archiver.run(asyncio.Event()))
        await asyncio.wait_for(full.wait(), 10)
        held = [0]
        while len(held) < 50:
            await asyncio.sleep(0.005)
            held.append(sum(archiver._held.values()))
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert limit <= max(held) <= limit + 2 * each


async def test_another_folder_is_refused(desk: Desk, tmp_path: Path) -> None:
    await desk.append(packed(batch(("A", 1, 1, 1.0))))
    await desk.once()
    async with desk.open() as (bus, store):
        other = desk.archiver(bus, store, Shelf(tmp_path / "other"))
        with pytest.raises(UsageError, match="another folder than"):
            await other.run(asyncio.Event(), once=True)


async def test_two_archivers_share_the_partitions(desk: Desk) -> None:
    desk.partitions = 4
    desk.settings = {"file_seconds_max": 0.02, "lease_ns": 10**8}
    async with desk.open() as (bus, store):
        stop = asyncio.Event()
        runs = [asyncio.create_task(desk.archiver(bus, store).run(stop)) for _ in range(2)]
        async with asyncio.timeout(20):
            while True:
                rows = [r for r in await store.status(GROUP, TOPIC) if r.owner]
                if sorted(map([r.owner for r in rows].count, ("m1", "m2"))) == [2, 2]:
                    break
                await asyncio.sleep(0.01)
        for number in range(4):
            await desk.append(packed(batch(("A", 1, number, 1.0))), partition=number)
        async with asyncio.timeout(20):
            while len(desk.archived()) < 4:
                await asyncio.sleep(0.01)
        stop.set()
        done = await asyncio.gather(*runs)
    assert [d.events for d in done] == [2, 2]
    assert desk.archived() == await desk.logged()


async def test_a_lost_log_is_told_and_the_archive_stays(desk: Desk) -> None:
    await desk.append(packed(batch(("A", 1, 1, 1.0))))
    await desk.once()
    before = desk.archived()
    shutil.rmtree(desk.path / "bus")
    await desk.append(packed(batch(("A", 2, 2, 2.0))))

    await desk.once()

    assert desk.archived() == before + await desk.logged()
    async with desk.open() as (_, store):
        rows = await store.status(GROUP, TOPIC)
    known = [decode_archive_checkpoint(r.checkpoint) for r in rows if r.checkpoint]
    assert [c.missed for c in known] == [None]


class Crash(BaseException):
    """The process is gone."""


class Dying:
    """Counts what a process does, and ends it at the chosen step; after that it does nothing."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.step()
            done = call(*args, **options)
            self.step()
            return done

        return wrapped


class DyingStore:
    """A store whose process may die before and after each call."""

    def __init__(self, store: Any, dying: Dying) -> None:
        self._store, self._dying = store, dying

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        async def stepped(*args: Any, **options: Any) -> Any:
            self._dying.step()
            done = await call(*args, **options)
            self._dying.step()
            return done

        return stepped


async def _live(desk: Desk, steps: int) -> bool:
    """A process that archives and dies after so many steps; whether it got to its end."""
    dying = Dying(steps)
    threads = ThreadPoolExecutor()
    asyncio.get_running_loop().set_default_executor(threads)
    async with desk.open() as (bus, store):
        with (
            patch.object(os, "fsync", dying.around(os.fsync)),
            patch.object(Path, "replace", dying.around(Path.replace)),
            patch.object(shutil, "rmtree", dying.around(shutil.rmtree)),
        ):
            with suppress(Crash):
                archiver: Archiver = desk.archiver(bus, DyingStore(store, dying))
                await archiver.run(asyncio.Event(), once=True)
                return True
            threads.shutdown()  # they die as well, while everything is a step
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    return False


@settings(max_examples=25)
@given(
    chunks=st.lists(
        st.lists(
            st.tuples(st.sampled_from("AB"), st.integers(0, 59), st.integers(0, 3)), min_size=1,
            max_size=6,
        ),
        min_size=1, max_size=3,
    ),
    deaths=st.lists(st.integers(0, 60), max_size=4),
)  # fmt: skip
def test_kills_change_nothing(chunks: list[list[tuple[str, int, int]]], deaths: list[int]) -> None:
    """The archive's rows are the log's events, whatever steps processes died at."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))

        async def run() -> None:
            pending = list(deaths)
            for number, chunk in enumerate(chunks):
                rows = [(symbol, float(at), seq, 1.0 + at) for symbol, at, seq in chunk]
                await desk.append(packed(batch(*rows)), partition=number % 2)
                if pending:
                    await _live(desk, pending.pop())
                    desk.clock.advance(2 * LEASE_NS)
            for steps in pending:
                await _live(desk, steps)
                desk.clock.advance(2 * LEASE_NS)
            await desk.once()
            assert desk.archived() == await desk.logged()
            left = [p for p in (desk.root / ".staging").rglob("*") if p.is_file()]
            assert left == []

        asyncio.run(run())


async def test_deaths_reach_every_step(desk: Desk) -> None:
    """One death after the other, each some steps later, until one run gets through."""
    steps = 0
    while True:
        await desk.append(packed(batch(("A", 1, steps, 1.0), ("B", 50, steps, 1.0))))
        if await _live(desk, steps):
            break
        desk.clock.advance(2 * LEASE_NS)
        steps += 3
    assert steps > 20
    assert desk.archived() == await desk.logged()


class Paused(Shelf):
    """Stands still at a place until it is let go."""

    def __init__(self, root: Path, place: str) -> None:
        super().__init__(root)
        self._loop = asyncio.get_running_loop()
        self.place, self.reached, self.go = place, asyncio.Event(), asyncio.Event()

    def _stand(self, place: str) -> None:
        if place == self.place:
            self._loop.call_soon_threadsafe(self.reached.set)
            asyncio.run_coroutine_threadsafe(self.go.wait(), self._loop).result(20)

    def stage(self, *args: Any) -> Any:
        self._stand("before staging")
        done = super().stage(*args)
        self._stand("staged")
        return done

    def publish(self, *args: Any) -> None:
        self._stand("committed")
        super().publish(*args)


@pytest.mark.parametrize("place", ["before staging", "staged", "committed"])
async def test_a_paused_archiver_that_was_taken_over_leaves_nothing(desk: Desk, place: str) -> None:
    await desk.append(packed(batch(("A", 1, 1, 1.0), ("B", 50, 2, 1.0))))
    async with desk.open() as (bus, store):
        paused = Paused(desk.root, place)
        stop = asyncio.Event()
        desk.settings = {"file_seconds_max": 0.0}
        sleeper = asyncio.create_task(desk.archiver(bus, store, paused).run(stop))
        await asyncio.wait_for(paused.reached.wait(), 10)
        desk.clock.advance(2 * LEASE_NS)
        taking = asyncio.create_task(desk.archiver(bus, store).run(stop))
        async with asyncio.timeout(20):
            while len(desk.archived()) < 2 or not await _taken(store):
                await asyncio.sleep(0.01)
        paused.go.set()
        stop.set()
        await asyncio.gather(sleeper, taking)
    assert desk.archived() == await desk.logged()
    assert [p for p in (desk.root / ".staging").rglob("*") if p.is_file()] == []


async def _taken(store: Any) -> bool:
    rows = {r.key.partition: r for r in await store.status(GROUP, TOPIC)}
    return 0 in rows and rows[0].token >= 2 and rows[0].sequence >= 1


async def test_a_commit_whose_answer_was_lost_is_not_repeated(desk: Desk) -> None:
    await desk.append(packed(batch(("A", 1, 1, 1.0))))
    async with desk.open() as (bus, store):
        archiver = desk.archiver(bus, store)
        commit = store.commit

        async def lost(
            groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
        ) -> CommitResult:
            await commit(groups, published, guard)
            raise Crash

        with patch.object(store, "commit", lost), suppress(Crash):
            await archiver.run(asyncio.Event(), once=True)
    desk.clock.advance(2 * LEASE_NS)
    assert (await desk.once()).events == 0
    assert desk.archived() == await desk.logged()


async def test_a_full_disk_is_waited_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE_MIN_S", 0.001)
    await desk.append(packed(batch(("A", 1, 1, 1.0))))
    refusals = iter(range(3))
    fsync = os.fsync

    def full(handle: int) -> None:
        if next(refusals, None) is not None:
            raise OSError(28, "No space left on device")
        fsync(handle)

    async with desk.open() as (bus, store):
        archiver = desk.archiver(bus, store)
        monkeypatch.setattr(os, "fsync", full)
        await archiver.run(asyncio.Event(), once=True)
    assert desk.archived() == await desk.logged()
