"""Dead letters that fail again, are selected, or were in hand when a process died."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from market_data_store.coordinator import DeadLetterQueue, Selection, _dlq_files
from mds_client.models import Bar


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dead.ndjson"


async def _fill(dlq: DeadLetterQueue[Any], *items: Any, reason: str = "permanent") -> None:
    for item in items:
        await dlq.save([item], ValueError("no"), {"reason": reason})


async def _left(path: Path) -> list[Any]:
    """The items of every record that another process would be given."""
    return [
        item
        for line in await DeadLetterQueue[Any](path).lines()
        for item in json.loads(bytes(line.items))
    ]


async def test_what_failed_again_keeps_its_id_and_tells_the_new_error(path: Path) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await dlq.save(["a", "b", "c"], "down", {"reason": "shutdown", "coord_id": "x"})
    (before,) = await dlq.lines()
    (record,) = await dlq.replay()
    await dlq.set_aside_again(
        record, ["b"], ValueError("password=hunter2 is wrong"), {"reason": "permanent"}
    )
    await dlq.confirm([record])  # it is not handed out any more
    assert "hunter2" not in path.read_text()
    (after,) = await dlq.lines()
    assert (after.id, after.ts, after.count) == (before.id, before.ts, 1)
    assert (after.reason, after.error_type) == ("permanent", "ValueError")
    assert after.metadata == {"reason": "permanent", "coord_id": "x"}
    assert await _left(path) == ["b"]


@pytest.mark.parametrize("again", ["release", "set_aside_again"])
async def test_a_record_taken_twice_by_one_process_is_not_lost_when_it_dies(
    path: Path, again: str
) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b")
    program = (
        "import asyncio, os, sys\n"
        "from market_data_store.coordinator import DeadLetterQueue\n"
        "async def main():\n"
        "    dlq = DeadLetterQueue(sys.argv[1])\n"
        "    records = await dlq.replay(2)\n"
        "    if sys.argv[2] == 'release': await dlq.release(records[:1])\n"
        "    else: await dlq.set_aside_again(records[0], ['a'], ValueError('no'))\n"
        "    assert len(await dlq.replay(2)) == 1\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path), again)
    assert await process.wait() == -9
    assert sorted(await _left(path)) == ["a", "b"]


@pytest.mark.parametrize("step", range(1, 12))
async def test_a_crash_at_any_step_leaves_one_record_of_each_id(
    path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path, bytes_max=300)
    await _fill(dlq, *"abcd")
    calls = 0
    fsync = os.fsync

    class PowerCut(BaseException):
        pass

    def doomed(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= step:
            raise PowerCut
        fsync(fd)

    def take(line: bytes) -> bool:
        return b'"d"' not in line

    monkeypatch.setattr(os, "fsync", doomed)
    try:
        taken = dlq._files.take(3, take)
        dlq._files.give_back([line.replace(b"ValueError", b"AgainError") for line in taken[:2]])
    except PowerCut:
        pass
    monkeypatch.setattr(os, "fsync", fsync)
    assert dlq._files._unlock is None or dlq._files._unlock() is None  # the process ends
    assert sorted(await _left(path)) == [*"abcd"]
    assert await DeadLetterQueue[str](path).counts() == {"permanent": 4}


async def test_a_confirmation_that_failed_can_be_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not bring a record back that was written."""
    dlq: DeadLetterQueue[str] = DeadLetterQueue(path)
    await _fill(dlq, "a", "b")
    first, _ = await dlq.replay()
    add, full = _dlq_files._add, [True]

    def add_if_there_is_room(*arguments: Any) -> None:
        if full.pop() if full else False:
            raise OSError(28, "No space left on device")
        add(*arguments)

    monkeypatch.setattr(_dlq_files, "_add", add_if_there_is_room)
    with pytest.raises(OSError, match="No space"):
        await dlq.confirm([first])
    await dlq.confirm([first])
    await dlq.close()
    assert await _left(path) == ["b"]


async def test_lines_are_selected(path: Path) -> None:
    dlq: DeadLetterQueue[Any] = DeadLetterQueue(path)
    await _fill(dlq, "a", Bar(symbol="SPY", open=1, high=2, low=1, close=1.5, volume=3))
    await _fill(dlq, object(), reason="overflow")
    text, bar, other = await dlq.lines()
    assert [line.replayable for line in (text, bar, other)] == [True, True, False]

    async def ids(**wanted: Any) -> list[str]:
        return [line.id for line in await dlq.lines(Selection(**wanted))]

    assert await ids(type="Bar") == await ids(type="mds_client.models.Bar") == [bar.id]
    assert await ids(reason="overflow") == [other.id]
    assert await ids(since=bar.ts) == [bar.id, other.id]
    assert await ids(before=bar.ts) == [text.id]
    assert await ids(ids=frozenset([text.id, "x"])) == [text.id]
    assert [record.id for record in await dlq.replay(ids=[bar.id])] == [bar.id]
    assert await dlq.handed_out() == 1
    assert await dlq.purge(type="str") == 1
    assert await dlq.purge(since=bar.ts, dry_run=True) == 1
    await dlq.close()
    assert await dlq.handed_out() == 0
