"""Dead letters: durable, typed, handed out until they are written, whatever crashes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from market_data_core.bars import BarBatch
from market_data_core.errors import UsageError
from market_data_store.coordinator import DeadLetterQueue, DeadRecord
from mds_client.models import Bar, NewsItem

if TYPE_CHECKING:
    from tests.unit.coordinator.conftest import ControlledSink, Make

HOUR = timedelta(hours=1)


def _bar(symbol: str = "SPY", **values: Any) -> Bar:
    return Bar(
        **({"open": 1.1, "high": 2, "low": 1, "close": 1.5, "volume": 3} | values), symbol=symbol
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dead" / "bars.ndjson"


async def _fill(dlq: DeadLetterQueue[Any], *items: Any, reason: str = "permanent") -> None:
    for item in items:
        await dlq.save([item], ValueError("no"), {"reason": reason})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


async def _replayed(path: Path, count: int = 100) -> list[Any]:
    """What another process would be given."""
    dlq: DeadLetterQueue[Any] = DeadLetterQueue(path)
    records = await dlq.replay(count)
    await dlq.close()
    return [item for record in records for item in record.items]


async def test_items_come_back_as_what_they_were(path: Path) -> None:
    items = [
        _bar("BRK.B'; DROP TABLE bars --", vwap=0.1 + 0.2, trade_count=2**60),
        NewsItem(id="1", symbol="ÄÖ\n", title="line\nbreak\u2028", sentiment_score=-0.5),
        {"price": float("nan"), "at": datetime(2025, 1, 2, tzinfo=UTC)},
        {"plain": [1, 2.5, None, "x"]},
        "text",
        7,
    ]
    dlq: DeadLetterQueue[Any] = DeadLetterQueue(path)
    await dlq.save(items, RuntimeError("dropped"), {})
    assert repr(await _replayed(path)) == repr(items)
    bar = _lines(path)[0]
    assert bar["type"] == "mds_client.models.Bar"
    assert bar["items"][0]["symbol"].startswith("BRK.B'")


async def test_columns_come_back_as_what_they_were(path: Path) -> None:
    floats = np.array([1.5, np.nan])
    prices: dict[str, Any] = dict.fromkeys(("open", "high", "low", "close", "volume"), floats)
    batch = BarBatch(
        provider="p",
        interval="1m",
        state="final",
        symbols=("A", "B"),
        codes=np.array([0, 1], "u4"),
        ts=np.array([1, 2]),
        vwap=floats,
        trade_count=np.array([1, -1]),
        **prices,
    )
    dlq = DeadLetterQueue[BarBatch](path)
    await dlq.save([batch], "why")
    (back,) = await _replayed(path)
    assert back.encode(0) == batch.encode(0)


async def test_a_type_of_the_user_comes_back_where_it_is_named(path: Path) -> None:
    kind = type("Mine", (Bar,), {"__module__": __name__}, frozen=True, kw_only=True)
    mine = kind(symbol="A", open=1, high=1, low=1, close=1, volume=1)
    await DeadLetterQueue[Any](path).save([mine], "why")
    (plain,) = await _replayed(path)
    assert plain["symbol"] == "A"
    (record,) = await DeadLetterQueue[kind](path).replay()  # type: ignore[valid-type]
    assert record.items == [mine]


async def test_what_has_no_text_is_shown_but_not_handed_out(path: Path) -> None:
    dlq: DeadLetterQueue[Any] = DeadLetterQueue(path)
    await _fill(dlq, object(), _bar())
    assert len(await dlq.replay()) == 1
    assert await dlq.counts() == {"permanent": 1}
    assert "<object object" in path.read_text()


async def test_a_record_tells_what_happened(path: Path) -> None:
    dlq = DeadLetterQueue[Bar](path)
    await dlq.save([_bar()], OSError("postgresql://u:hunter2@h/db is down"), {"batch": 3})
    assert "hunter2" not in path.read_text()
    (record,) = await dlq.replay(10)
    assert isinstance(record.items[0], Bar)
    assert (record.error_type, record.reason) == ("OSError", "OSError")
    assert "is down" in record.error
    assert record.metadata == {"batch": 3}
    assert datetime.now(UTC) - record.ts < HOUR


async def test_saving_nothing_has_no_effect(path: Path) -> None:
    dlq = DeadLetterQueue[Bar](path)
    await dlq.save([], "why")
    assert not path.exists()
    assert await dlq.replay() == []
    assert await dlq.counts() == {}
    assert await dlq.purge(everything=True) == 0


async def test_confirmed_records_are_gone_and_others_come_again(path: Path) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b", "c", "d")
    first = await dlq.replay(3)
    assert [record.items for record in first] == [["a"], ["b"], ["c"]]
    assert [record.items for record in await dlq.replay(3)] == [["d"]]
    assert await _replayed(path) == []  # another process gets none of them
    await dlq.confirm(first[:1])
    await dlq.release(first[1:2])
    assert [record.items for record in await dlq.replay(1)] == [["b"]]
    await dlq.confirm(first[1:2])
    await dlq.close()
    assert sorted(await _replayed(path)) == ["c", "d"]


async def test_a_process_that_dies_gives_its_records_back(path: Path) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b", "c")
    program = (
        "import asyncio, os, sys\n"
        "from market_data_store.coordinator import DeadLetterQueue\n"
        "async def main():\n"
        "    dlq = DeadLetterQueue(sys.argv[1])\n"
        "    records = await dlq.replay(2)\n"
        "    await dlq.confirm(records[:1])\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path))
    assert await process.wait() == -9
    assert sorted(await _replayed(path)) == ["b", "c"]
    assert list(path.parent.glob("*.inflight-*")) == []


@pytest.mark.parametrize("step", range(1, 9))
async def test_a_crash_at_any_step_of_handing_out_loses_nothing(
    path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every system call that changes files may be the last one."""
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path, bytes_max=300)
    await _fill(dlq, *"abcde")
    calls = 0
    written: set[str] = set()
    fsync = os.fsync

    class PowerCut(BaseException):
        pass

    def doomed(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= step:
            raise PowerCut
        fsync(fd)

    monkeypatch.setattr(os, "fsync", doomed)
    try:
        records = dlq._files.take(4, lambda _: True)
        written.add("a")
        dlq._files.confirm([json.loads(line)["id"] for line in records[:1]])
    except PowerCut:
        pass
    monkeypatch.setattr(os, "fsync", fsync)
    assert dlq._files._unlock is None or dlq._files._unlock() is None  # the process ends
    assert set(await _replayed(path)) | written == set("abcde")


async def test_a_line_cut_off_is_told_and_hurts_no_other(path: Path) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    await _fill(dlq, "c")
    assert await dlq.counts() == {"permanent": 2, "unreadable": 1}
    assert [record.items for record in await dlq.replay()] == [["a"], ["c"]]
    assert await dlq.purge(reason="unreadable") == 1


async def test_a_failed_save_raises_and_leaves_the_file_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a")
    write = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(fd, data[:19])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        await _fill(dlq, "b")
    monkeypatch.setattr(os, "write", write)
    await _fill(dlq, "c")
    assert await dlq.counts() == {"permanent": 2}
    assert await _replayed(path) == ["a", "c"]


async def test_full_files_are_set_aside_and_read_in_order(path: Path) -> None:
    dlq: DeadLetterQueue[int] = DeadLetterQueue(path, bytes_max=500)
    await _fill(dlq, *range(12))
    assert path.with_name("bars.ndjson.000002").exists()
    assert max(file.stat().st_size for file in path.parent.iterdir()) < 1000
    assert [record.items for record in await dlq.replay(5)] == [[0], [1], [2], [3], [4]]
    await _fill(dlq, 12)
    assert [record.items[0] for record in await dlq.replay(100)] == list(range(5, 13))


async def test_many_writers_share_a_file(path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from market_data_store.coordinator import DeadLetterQueue\n"
        "async def main():\n"
        "    dlq = DeadLetterQueue(sys.argv[1], bytes_max=2000)\n"
        "    for n in range(30): await dlq.save([f'{sys.argv[2]}-{n}'], 'why')\n"
        "asyncio.run(main())\n"
    )
    others = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path), str(n))
        for n in range(2)
    ]
    ended = asyncio.gather(*[other.wait() for other in others])
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path, bytes_max=2000)
    got: list[str] = []
    await asyncio.gather(*[_fill(dlq, f"own-{n}") for n in range(30)])
    while not ended.done() or not got:
        records = await dlq.replay(7)
        got += [record.items[0] for record in records]
        await dlq.confirm(records)
    assert await ended == [0, 0]
    got += await _replayed(path, 1000)
    names = [f"{who}-{n}" for who in ("0", "1", "own") for n in range(30)]
    assert sorted(got) == sorted(names)


async def test_selection_and_dry_run_of_purge(path: Path) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b")
    await _fill(dlq, "c", reason="overflow")
    first = (await dlq.records(1))[0]
    now = datetime.now(UTC)
    with pytest.raises(UsageError, match="everything=True"):
        await dlq.purge()
    with pytest.raises(UsageError, match="time zone"):
        await dlq.purge(before=datetime(2025, 1, 1))  # noqa: DTZ001
    assert await dlq.purge(before=now - HOUR) == 0
    assert await dlq.purge(reason="overflow", dry_run=True) == 1
    assert await dlq.counts() == {"permanent": 2, "overflow": 1}
    assert await dlq.purge(ids=[first.id]) == 1
    assert await dlq.purge(reason="overflow") == 1
    assert [record.items for record in await dlq.records()] == [["b"]]
    assert await dlq.purge(everything=True) == 1


async def test_replay_can_be_selective(path: Path) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b", "c")

    def wanted(record: DeadRecord[str]) -> bool:
        return record.items == ["b"]

    assert [record.items for record in await dlq.replay(wanted=wanted)] == [["b"]]
    assert [record.items for record in await dlq.records()] == [["a"], ["c"]]


async def test_replayed_records_are_removed_once_written(
    make: Make, sink: ControlledSink, path: Path
) -> None:
    dlq = DeadLetterQueue[Bar](path)
    await dlq.save([_bar("A"), _bar("B")], "down")
    await dlq.save([_bar("C")], "down")
    sink.open.clear()
    async with make() as coordinator:
        failed = await dlq.replay(10)
        assert await coordinator.submit_many(f.items for f in failed) == 3
        assert dlq._files.leased() == 2  # not yet written, so not yet forgotten
        sink.open.set()
    assert [bar.symbol for bar in sink.items] == ["A", "B", "C"]
    assert dlq._files.leased() == 0
    assert list(path.parent.glob("*.inflight-*")) == []
    await dlq.close()
    assert await _replayed(path) == []


async def test_replayed_records_that_overflow_dropped_stay(
    make: Make, sink: ControlledSink, path: Path
) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b", "c")
    sink.open.clear()
    async with make(capacity=1, workers=1, batch_size=1, overflow="drop_oldest") as coordinator:
        await coordinator.submit_many(record.items for record in await dlq.replay())
        sink.open.set()
    assert sink.items == ["a", "c"]
    assert await _replayed(path) == ["b"]


async def test_replayed_records_that_are_bad_again_come_back_once(
    make: Make, sink: ControlledSink, path: Path
) -> None:
    def refuse(batch: list[str]) -> None:
        raise ValueError

    sink.fail = refuse
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a")
    async with make(dlq=dlq) as coordinator:
        await coordinator.submit_many(record.items for record in await dlq.replay())
    assert await _replayed(path) == ["a"]


def test_bytes_max_has_to_be_positive(path: Path) -> None:
    with pytest.raises(UsageError, match="bytes_max"):
        DeadLetterQueue(path, bytes_max=0)
