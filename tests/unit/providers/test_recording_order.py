from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import UsageError
from market_data_core.events import EventBatch, Rejected, format_ts
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_pipeline.providers import recording
from market_data_pipeline.providers._formats import merge, order
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.rows import Rows, Session
from market_data_pipeline.providers.recording import OutOfOrder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.providers.conftest import Item, Recordings

    Line = Callable[..., str]

T0 = 1_761_314_521 * NS_PER_S
times_ms = st.lists(st.integers(0, 20_000), max_size=60)
some_files = st.lists(times_ms, min_size=1, max_size=4)
chunks = st.integers(1, 40)


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs count as large, and are cut often."""
    monkeypatch.setattr(recording, "_SMALL_BYTES", -1)


def write(recordings: Recordings, line: Line, ms: Sequence[int], feed: str = "feed") -> str:
    """A file with an event at each of the times; seq tells its place."""
    return recordings.write(
        line(provider=feed, src_ts=format_ts(T0 + t * NS_PER_MS), seq=i) for i, t in enumerate(ms)
    )


def csv_file(recordings: Recordings, ms: Sequence[int], symbols: str = "A") -> str:
    rows = (f"{symbols[i % len(symbols)]},{T0 // NS_PER_MS + t},1,{i}" for i, t in enumerate(ms))
    return recordings.write(["symbol,time,price,size", *rows])


def pairs(items: list[Item]) -> list[tuple[int, int]]:
    """(time in ms, seq) of every event."""
    return [((item[4] - T0) // NS_PER_MS, item[5]) for item in items]


@given(some_files, chunks)
def test_small_inputs_are_sorted(
    recordings: Recordings, line: Line, files: list[list[int]], chunk: int
) -> None:
    paths = [write(recordings, line, ms, f"f{i}") for i, ms in enumerate(files)]
    options = RecordingOptions(chunk_events=chunk)
    items = recordings.read(paths, options=options, name="all")
    assert [item[4] for item in items] == sorted(item[4] for item in items)
    wanted = sorted((t, i) for ms in files for i, t in enumerate(ms))
    assert sorted(pairs(items)) == wanted
    assert recordings.read(paths[::-1], options=RecordingOptions(), name="all") == items


@given(some_files, chunks, st.integers(1, 30))
def test_spilling_to_disk_changes_nothing(
    recordings: Recordings, line: Line, files: list[list[int]], chunk: int, buffer: int
) -> None:
    paths = [write(recordings, line, ms) for ms in files]
    options = RecordingOptions(chunk_events=chunk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("market_data_pipeline.providers._formats.presort._FEW_ROWS", 3)
        spilled = recordings.open(paths, options=options, sort_buffer_events=buffer, presort=True)
        assert recordings.flat(spilled.read()) == recordings.read(paths, presort=True)


@given(some_files, chunks)
def test_one_pass_over_what_is_nearly_in_order(
    recordings: Recordings, line: Line, files: list[list[int]], chunk: int
) -> None:
    """Events up to a second late come where they belong, whatever the chunks."""
    nearly = [[t + (i * 7919) % 1000 for i, t in enumerate(sorted(ms))] for ms in files]
    paths = [write(recordings, line, ms) for ms in nearly]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_SMALL_BYTES", -1)
        options = RecordingOptions(chunk_events=chunk)
        assert recordings.read(paths, options=options) == recordings.read(paths, presort=True)


@given(times_ms, chunks)
def test_stragglers_come_at_most_so_late(
    recordings: Recordings, line: Line, ms: list[int], chunk: int
) -> None:
    path = write(recordings, line, ms)
    running = [max(ms[: i + 1]) for i in range(len(ms))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_SMALL_BYTES", -1)
        patch.setattr(merge, "BLOCK_ROWS", 7)
        opened = recordings.open(path, options=RecordingOptions(chunk_events=chunk))
        if any(greatest - t > 11_500 for greatest, t in zip(running, ms, strict=True)):
            with pytest.raises(OutOfOrder, match="must be sorted first"):
                recordings.flat(opened.read())
            return
        found = pairs(recordings.flat(opened.read()))
    places = sorted((max(t, running[i] - 1000), i) for i, t in enumerate(ms))
    assert found == [(ms[i], i) for _, i in places]


@pytest.mark.usefixtures("one_pass")
def test_out_of_order_then_sorted(recordings: Recordings) -> None:
    ms = list(range(0, 60_000, 10)) * 2
    opened = recordings.open(csv_file(recordings, ms))
    with pytest.raises(
        OutOfOrder, match=r"2025-10-24T14:02:01.000000Z stands after one of .*:03:0"
    ):
        recordings.flat(opened.read())
    again = opened.presorted()
    assert again.lane != opened.lane
    assert pairs(recordings.flat(again.read())) == [
        (t, seq) for t in range(0, 60_000, 10) for seq in (0, 1)
    ]


@pytest.mark.usefixtures("one_pass")
def test_more_events_in_a_second_than_can_be_held(recordings: Recordings) -> None:
    path = csv_file(recordings, [0] * 5000)
    options = RecordingOptions(chunk_events=10)
    with pytest.raises(OutOfOrder, match="more than 1000 events within 1 s"):
        recordings.read(path, options=options, sort_buffer_events=1000)
    sizes = recordings.open(path, options=options, sort_buffer_events=1000, presort=True)
    assert pairs(recordings.flat(sizes.read())) == [(0, i) for i in range(5000)]


@given(st.lists(st.integers(0, 30), max_size=80), chunks, st.sampled_from(["A", "AB", "ABC"]))
def test_events_without_ids_are_counted(
    recordings: Recordings, ms: list[int], chunk: int, symbols: str
) -> None:
    path = csv_file(recordings, [t * 100 for t in ms], symbols)
    counts: dict[tuple[str, int], int] = {}
    wanted = {}
    for i, t in enumerate(ms):
        key = symbols[i % len(symbols)], t * 100
        wanted[i] = (*key, counts.setdefault(key, 0))
        counts[key] += 1
    with pytest.MonkeyPatch.context() as patch:
        for small_bytes in (-1, 1 << 20):
            patch.setattr(recording, "_SMALL_BYTES", small_bytes)
            items = recordings.read(path, options=RecordingOptions(chunk_events=chunk))
            found = {
                int(item[11]): (item[3], (item[4] - T0) // NS_PER_MS, item[5]) for item in items
            }
            assert found == wanted


def test_the_counter_forgets() -> None:
    session, counter = Session(), order.SeqCounter(10)
    counter.number(session.rejected_rows([Rejected("malformed", "", b"x")] * 50))
    assert len(counter._groups) == 0
    for t in range(0, 1000, 5):
        rows = counter.number(piece([t, t], 1).rows)
        assert rows.seq.tolist() == [0, 1]
        assert len(counter._groups) <= 3


def test_ties_go_by_input_then_by_place(recordings: Recordings, line: Line) -> None:
    paths = [write(recordings, line, [5, 5, 5], feed) for feed in "abcd"]
    items = recordings.read(paths)
    assert [item[5] for item in items] == [0, 1, 2] * 4
    feeds = [item[0] for item in items]
    assert sorted(feeds[::3]) == list("abcd")
    assert feeds == [item[0] for item in recordings.read(paths[::-1])]


@pytest.mark.usefixtures("one_pass")
def test_a_large_file_streams(recordings: Recordings, line: Line) -> None:
    """The first batch comes long before the end, and rejected lines stay where they were."""
    texts = [line(src_ts=format_ts(T0 + i * NS_PER_MS), seq=i) for i in range(40_000)]
    texts.insert(35_000, "hello")
    path = recordings.write(texts)
    opened = recordings.open(path, options=RecordingOptions(chunk_events=4096))
    items = opened.read()
    first = next(items)
    assert isinstance(first, EventBatch)
    assert len(first) == merge.BLOCK_ROWS
    rest = list(items)
    assert [len(x) if isinstance(x, EventBatch) else x.where.split(":")[-1] for x in rest] == [
        "35001",
        7232,
    ]
    assert recordings.flat([first, *rest]) == recordings.read(
        path, options=RecordingOptions(chunk_events=100_000)
    )


@pytest.mark.usefixtures("one_pass")
def test_large_rejected_pieces_are_not_held_back(
    recordings: Recordings, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "REJECTED_BYTES_MAX", 10_000)
    monkeypatch.setattr(order, "REJECTED_BYTES_MAX", 10_000)
    texts = [line(src_ts=format_ts(T0 + i * NS_PER_S), seq=i) for i in range(500)]
    for at in range(0, 500, 5):
        texts.insert(at, "x" * 1000)
    path = recordings.write(texts)
    held = most = 0
    for item in recordings.open(path, options=RecordingOptions(chunk_events=8)).read():
        held = 0 if isinstance(item, EventBatch) else held + 1
        most = max(most, held)
    assert most == 10
    cut = recordings.read(path, options=RecordingOptions(chunk_events=1))
    assert cut == recordings.read(path)


def test_an_error_comes_after_all_that_could_be_read(recordings: Recordings, line: Line) -> None:
    whole = write(recordings, line, range(100))
    texts = "".join(line(seq=i, symbol="QQQ") + "\n" for i in range(5000)).encode()
    broken = recordings.write(gzip.compress(texts)[:-200])
    for presort in (False, True):
        items = []
        opened = recordings.open([broken, whole], presort=presort).read()
        message = ""
        while not message:
            try:
                items.append(next(opened))
            except UsageError as error:
                message = str(error)
        assert "cut off" in message
        symbols = [item[3] for item in recordings.flat(items) if item[0] != "rejected"]
        assert symbols.count("SPY") == 100
        assert symbols.count("QQQ") > 4000


def piece(times: list[int], feed: int) -> order.Piece:
    ts = np.array(times, np.int64)
    zero, ones = np.zeros(len(ts)), np.full(len(ts), feed, np.uint32)
    return order.Piece(ts, Rows(ones, ones, ts, ts, ts, zero, zero))


def test_ties_that_go_on_in_the_next_piece() -> None:
    first = iter([piece([1, 5], 1), piece([5, 5], 1), piece([5, 9], 1)])
    second = iter([piece([5, 5], 2), piece([5, 7], 2)])
    parts = list(merge.merged([first, second]))
    found = np.concatenate([np.stack([part.src_ts, part.stream]) for part in parts], axis=1)
    assert found.T.tolist() == [[1, 1], *[[5, 1]] * 4, *[[5, 2]] * 3, [7, 2], [9, 1]]


def test_many_inputs_keep_little_in_memory() -> None:
    """Inputs that follow one another are read one after the other."""
    read: list[int] = []

    def pieces(number: int) -> Iterator[order.Piece]:
        for step in range(10):
            read.append(number)
            yield piece([number * 1000 + step * 3 + i for i in range(3)], 1)

    parts = list(merge.merged([pieces(n) for n in range(5)]))
    times = np.concatenate([part.src_ts for part in parts]).tolist()
    assert all(a < b for a, b in pairwise(times))
    assert len(times) == 150
    assert read == [0, 1, 2, 3, 4] + [n for n in range(5) for _ in range(9)]


def test_rejected_bytes_are_bounded_while_events_wait() -> None:
    session = Session()
    most = 0

    def chunks() -> Iterator[Rows]:
        yield piece([T0] * 1000, session.stream_id("a", "tick", "1s")).rows
        for _ in range(40):
            yield session.rejected_rows([Rejected("malformed", "", bytes(1 << 20))])

    session.symbol_ids(["A", "B"])
    for part in order.reordered(chunks(), session, "a", 0, 10**6):
        most = max(most, session.rejected_bytes)
        list(session.emit(part.rows))
    assert 0 < most <= order.REJECTED_BYTES_MAX + (1 << 20)
