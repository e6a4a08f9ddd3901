"""What the live run set aside, a replay leaves out."""

from __future__ import annotations

import polars as pl
from tests.unit.archive.conftest import Desk, as_json, batch, packed

from market_data_core.deadletters import DeadLetter, encode_letters
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry
from market_data_pipeline.archive.files import Selection
from market_data_pipeline.archive.letters import Aside, less_set_aside, letters_of, set_aside

HERE = partition_of("A", 2)


async def _frame(desk: Desk, *prices: float, partition: int = HERE) -> pl.DataFrame:
    await desk.append(*(packed(batch(("A", 1, 0, p))) for p in prices), partition=partition)
    await desk.once()
    return pl.concat(desk.archive.frames(Selection()))


def _aside(frame: pl.DataFrame, price: float, reason: str = "late") -> Aside:
    (original,) = as_json(batch(("A", 1, 0, price)))
    return Aside(reason, frame["log"][0], HERE, original)


async def test_the_last_copies_go(desk: Desk) -> None:
    frame = await _frame(desk, 1.0, 2.0, 1.0, 1.0)
    late = [_aside(frame, 1.0)] * 2
    left = less_set_aside(frame, set_aside(late))
    assert left.columns == frame.columns
    assert left.select("c", "offset").rows() == [(1.0, 0), (2.0, 1)]
    assert less_set_aside(frame, set_aside([_aside(frame, 1.0, "malformed")])).equals(frame)
    assert less_set_aside(frame, set_aside([_aside(frame, 9.0)])).equals(frame)


async def test_a_misplaced_event_goes_with_what_was_written_in_its_place(desk: Desk) -> None:
    await _frame(desk, 1.0, 5.0, partition=1 - HERE)
    frame = await _frame(desk, 1.0)
    assert frame["misplaced"].to_list().count(True) == 2
    left = less_set_aside(frame, set_aside([_aside(frame, 1.0)]))
    assert left["c"].to_list() == [5.0]


async def test_letters_of_archive_and_topic_are_taken_once(desk: Desk) -> None:
    letters = [
        DeadLetter(
            reason="late", detail="", topic="t", partition=0, offset=i, log_id="L", provider="f",
            original=as_json(batch(("A", 1, i, 1.0)))[0], symbol="A", src_ts=1_761_350_371 * 10**9,
        )
        for i in range(3)
    ]  # fmt: skip
    ts = letters[0].src_ts
    async with desk.open() as (bus, _):
        await bus.create_topic("mdp.dlq", 1)
        for letter in letters[:2]:
            entry = Entry(0, encode_letters([letter]), 1, "f", ts, ts)
            await bus.append("mdp.dlq", [entry])
    await desk.once()
    async with desk.open() as (bus, _):
        entry = Entry(0, encode_letters([letters[2]]), 1, "f", ts, ts)
        await bus.append("mdp.dlq", [entry])
        await bus.trim("mdp.dlq", 0, 1, 1 << 62, 1)
        archived = desk.archive.letters(Selection())
        found = await letters_of(bus, "mdp.dlq", archived, {"f"}, 0, 1 << 62)
    assert sorted(a.original for a in found) == sorted(le.original for le in letters)
