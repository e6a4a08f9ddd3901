from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from market_data_core.deadletters import DeadLetter
from market_data_core.errors import DamagedFileError
from market_data_core.events import EventBatch, concat_batches, make_batch
from market_data_core.records import TopicInfo
from market_data_pipeline import letters
from market_data_pipeline.deadletter_replay import (
    BROKEN,
    CONFLICT,
    EARLY,
    NO_NUMBERS,
    LettersRecording,
    begun,
    refused_bar,
    replay_name,
    sort_out,
)
from market_data_pipeline.letters import Found, Replay, Replays, runs_of

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z
BAR = {
    "provider": "feed", "symbol": "SPY", "interval": "1m", "ts": START, "open": 1.0, "high": 2.0,
    "low": 1.0, "close": 1.5, "volume": 3.0, "vwap": None, "trade_count": 4, "state": "final",
    "only_new": False,
}  # fmt: skip


def letter(place: tuple[int, int], reason: str, original: bytes, src_ts: int = START) -> Found:
    told = DeadLetter(
        reason=reason, detail="", topic="t", partition=0, offset=0, original=original,
        provider="feed", symbol="SPY", src_ts=src_ts,
    )  # fmt: skip
    return Found(place, START, told)


def event(place: tuple[int, int], ts: int, reason: str = "late", **values: Any) -> Found:
    (one,) = make_batch("feed", ["SPY"], [ts], [place[1]], [1.0], [1.0]).events()
    original = msgspec.json.encode(msgspec.structs.replace(one, **values))
    return letter(place, reason, original, ts)


def bar(**values: Any) -> Found:
    return letter((9, 0), "unwritable", msgspec.json.encode(BAR | values))


def test_letters_are_sorted_out_by_what_can_be_done_with_them() -> None:
    good, conflict = event((0, 0), START), event((0, 1), START, "id_conflict")
    ahead, wrong = event((1, 0), START + 2, "future"), event((1, 1), START, "future", h=0.5)
    interval = event((1, 2), START, "future", interval="2 parsecs")
    broken = letter((2, 0), "malformed", b"{")
    unreadable = letter((2, 1), "late", b"{")
    whole, partly = bar(), bar(volume=None)
    out = sort_out(
        [good, conflict, ahead, wrong, interval, broken, unreadable, whole, partly], START + 1
    )
    assert out.events == [good]
    assert out.bars == [whole]
    assert out.refused == {
        CONFLICT: [conflict],
        EARLY: [ahead],
        BROKEN: [interval, broken, unreadable, wrong],
        NO_NUMBERS: [partly],
    }
    assert out.reasons[BROKEN] == {"future": 2, "malformed": 1, "late": 1}


def test_a_recording_gives_its_events_in_time_order() -> None:
    times = [START + i // 2 for i in range(20_000)]
    found = [event((i // 1_000, i % 1_000), ts) for i, ts in enumerate(times)]
    shuffled = random.Random(1).sample(found, len(found))
    recording = LettersRecording("log", shuffled)
    assert recording.lane == LettersRecording("log", found).lane
    assert recording.presorted() is recording
    for _ in range(2):
        batches = [item for item in recording.read() if isinstance(item, EventBatch)]
        assert concat_batches(batches).src_ts.tolist() == times
        assert concat_batches(batches).seq.tolist() == [i % 1_000 for i in range(20_000)]


def test_the_name_of_a_replay_depends_on_its_letters_and_their_log() -> None:
    names = {
        replay_name(log_id, places)
        for log_id in ("a", "b")
        for places in ([(0, 0)], [(0, 1)], [(0, 0), (0, 1)])
    }
    assert len(names) == 6
    assert replay_name("a", [(0, 1), (0, 0)]) == replay_name("a", [(0, 0), (0, 1)])


def test_runs_hold_places() -> None:
    places = [(0, 0), (0, 1), (0, 3), (2, 0), (3, 1), (3, 2)]
    runs = runs_of(places)
    assert runs == [(0, 0, 1), (0, 3, 3), (2, 0, 0), (3, 1, 2)]
    assert list(Replay(log_id="a", name="n", state="begun", runs=runs).places) == places


def test_what_was_replayed_is_known_of_this_log_alone() -> None:
    first = begun("log", [event((0, 0), START), event((0, 1), START)])
    second = begun("log", [event((0, 3), START)])
    third = begun("log", [event((1, 0), START)])
    foreign = begun("other", [event((5, 0), START)])
    change = msgspec.structs.replace
    said = [
        (first, 1), (second, 2), (third, 3), (change(first, state="done"), 4),
        (change(third, state="given_up"), 5), (foreign, 6), (change(foreign, state="done"), 7),
    ]  # fmt: skip
    replays = Replays(TopicInfo("mdp.dlq", "log", 1), said)
    assert [replays.done_at((0, i)) for i in range(4)] == [4, 4, None, None]
    assert replays.done_at((5, 0)) is None
    assert replays.unfinished == [second]
    assert [replays.is_taken(place) for place in ((0, 0), (0, 3), (1, 0))] == [False, True, False]
    assert Replays(None, said).unfinished == []


def test_statements_are_read_back() -> None:
    statement = begun("log", [event((0, 0), START)])
    assert letters.decode_replay(statement.encode()) == statement
    for payload in (b"", b"MDPY\xff", statement.encode()[4:]):
        with pytest.raises(DamagedFileError):
            letters.decode_replay(payload)


def test_a_refused_bar_is_made_again() -> None:
    batch = refused_bar(bar())
    assert batch
    assert (batch.provider, batch.interval, batch.state, batch.only_new) == (
        "feed", "1m", "final", False
    )  # fmt: skip
    assert (batch.symbol_column(), batch.ts.tolist()) == (["SPY"], [START])
    assert (batch.vwap_column(), batch.count_column()) == ([None], [4])
    vendors = refused_bar(bar(trade_count=-1))
    assert vendors
    assert vendors.only_new
    assert refused_bar(bar(open=None)) is None
