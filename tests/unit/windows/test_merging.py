"""Small parts are put together as they come; nobody can tell, but for the time it takes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from market_data_core.events import EventBatch, make_batch
from market_data_core.intervals import NS_PER_MS
from market_data_pipeline.windows import stream as stream_module
from market_data_pipeline.windows.assigner import FOREVER, WindowSpec
from market_data_pipeline.windows.checkpoint import StreamState
from market_data_pipeline.windows.collected import Collected, Part, merge_tail
from market_data_pipeline.windows.stream import WindowStream

S = 10**9
T = 1_700_000_000 * S
SPEC = WindowSpec((S, 3 * S), S // 2, 2 * S)
BATCHES = 420
_VALUES = ("open", "high", "low", "close", "volume", "notional")
Row = tuple[str, int, int, float]
"""symbol, src_ts, seq, price; the size follows from the price."""


def to_batch(rows: list[Row]) -> EventBatch:
    symbols, ts, seq, prices = zip(*rows, strict=True)
    return make_batch("p", symbols, ts, seq, prices, [p / 4 for p in prices])


def drawn(seed: int) -> list[list[Row]]:
    """One to five trades each: copies, contradictions, late ones, many across an edge."""
    chance = random.Random(seed)
    log: list[list[Row]] = []
    for i in range(BATCHES):
        rows: list[Row] = []
        for j in range(chance.randrange(1, 6)):
            at = T + i * 18 * NS_PER_MS + chance.randrange(-300, 300) * NS_PER_MS
            row = (chance.choice("ABC"), at, 10 * i + j, chance.randrange(1, 10**6) / 100)
            draw = chance.random()
            if draw < 0.15 and i:
                row = chance.choice(log[-chance.randrange(1, min(i, 90) + 1)])
                if draw < 0.05:
                    row = (*row[:3], row[3] + 1)
            elif draw < 0.2:  # far enough to restate a bar, now and then too far
                row = (row[0], at - chance.randrange(1, 5) * S, *row[2:])
            rows.append(row)
        log.append(rows)
    return log


@dataclass
class Steps:
    """What a stream is told at each position of the log, the same for every stream.

    Attributes:
        log: batches by position.
        held: positions between which windows may close only up to a limit.
        known: what is injected before a position is read.
    """

    log: list[EventBatch]
    held: range = range(0)
    known: dict[int, EventBatch] | None = None

    def take(self, stream: WindowStream, position: int) -> tuple[Any, ...]:
        """Read one record, and what came of it."""
        if self.known and position in self.known:
            stream.inject(self.known[position])
        late = stream.add(self.log[position], position).tolist()
        limit = T + 2 * S if position in self.held else FOREVER
        due = stream.due(limit)
        return (late, due, *(plain(stream, stream.collect(limit)) if due else ()))

    def end(self, stream: WindowStream) -> tuple[Any, ...]:
        stream.advance(FOREVER)
        return plain(stream, stream.collect())

    def all(self, stream: WindowStream) -> list[tuple[Any, ...]]:
        return [*(self.take(stream, p) for p in range(len(self.log))), self.end(stream)]


def plain(stream: WindowStream, collected: Collected) -> tuple[Any, ...]:
    """Bars as numbers, counts, and each contradicting event with the offset that it came from."""
    names, bars = list(stream.symbols), []
    for closed in collected.bars:
        found = closed.bars
        values = [getattr(found, name).to_floats().tolist() for name in _VALUES]
        rows = zip(
            [names[code] for code in found.codes.tolist()],
            *(column.tolist() for column in (found.start, found.count, closed.fresh)),
            *values,
            strict=True,
        )
        bars.append((closed.length_ns, closed.revised, sorted(rows)))
    conflicts = sorted(
        (offset, names[int(e.codes[0])], int(e.ts[0]), int(e.seq[0]), *e.close.to_floats().tolist())
        for e, offset in collected.conflicts
    )
    return bars, collected.stored, collected.deduplicated, conflicts


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts went into each one that was put together."""
    sizes: list[int] = []

    def counting(parts: list[Part], count: int) -> None:
        before = len(parts)
        merge_tail(parts, count)
        if len(parts) < before:
            sizes.append(before - len(parts) + 1)

    monkeypatch.setattr(stream_module, "merge_tail", counting)
    return sizes


def apart(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What comes of the steps where no parts are put together."""
    with monkeypatch.context() as patch:
        patch.setattr(stream_module, "_MERGE", 1 << 40)
        return steps.all(WindowStream(SPEC))


def variants(seed: int) -> list[Steps]:
    """Windows that close as soon as they can, that are held back for a while, and with others'."""
    log = drawn(seed)
    batches = [to_batch(rows) for rows in log]
    chance = random.Random(seed)
    known = {}
    for position in range(20, BATCHES, 90):
        rows = [row for part in log[position - 5 : position + 5] for row in part]
        others = [(s, ts + 1, seq, price) for s, ts, seq, price in rows]
        known[position] = to_batch(chance.sample([*rows, *others], 12))
    return [Steps(batches), Steps(batches, held=range(150, 330)), Steps(batches, known=known)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", [0, 1, 2], ids=["free", "held back", "injected"])
def test_a_stream_that_merges_gives_what_one_that_does_not_gives(
    seed: int, variant: int, merged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = variants(seed)[variant]
    found = steps.all(WindowStream(SPEC))
    assert len(merged) >= 2
    assert set(merged) == {stream_module._MERGE}
    before = len(merged)
    assert found == apart(steps, monkeypatch)
    assert len(merged) == before


@pytest.mark.parametrize("seed", range(3))
def test_offsets_are_those_of_the_records_that_the_events_came_in(
    seed: int, merged: list[int]
) -> None:
    log = drawn(seed)
    steps = Steps([to_batch(rows) for rows in log])
    conflicts = [c for step in steps.all(WindowStream(SPEC)) if len(step) > 2 for c in step[-1]]
    assert len(conflicts) > 5
    assert merged
    for offset, *row in conflicts:
        assert tuple(row) in log[offset]


def resumed(stream: WindowStream, steps: Steps, upto: int) -> WindowStream:
    """The stream that a new owner makes of the state and of the log from R to K."""
    wire = msgspec.msgpack.encode(stream.state("p"))
    found = WindowStream(SPEC, msgspec.msgpack.decode(wire, type=StreamState))
    resume = stream.resume_position()
    for position in range(upto if resume is None else resume, upto):
        found.restore(steps.log[position], position)
    return found


@pytest.mark.parametrize(("seed", "step"), [(0, 20), (1, 60), (2, 60)])
@pytest.mark.parametrize("variant", [0, 1], ids=["free", "held back"])
def test_a_restart_changes_nothing(
    seed: int, step: int, variant: int, merged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = variants(seed)[variant]
    expected = apart(steps, monkeypatch)
    unbroken = WindowStream(SPEC)
    for position in range(BATCHES):
        assert steps.take(unbroken, position) == expected[position]
        if position % step != seed:
            continue
        again = resumed(unbroken, steps, position + 1)
        assert again.open_events == unbroken.open_events
        rest = [steps.take(again, p) for p in range(position + 1, BATCHES)]
        assert [*rest, steps.end(again)] == expected[position + 1 :]
    assert merged


def test_what_was_accepted_long_ago_is_not_late_after_a_restart() -> None:
    """The first record of what was put together had a lower watermark before it than the last."""
    log = [to_batch([("A", T + i, i, 1.0) for i in range(stream_module._SMALL)])]
    late = [("A", T + 2_500 * NS_PER_MS, 0, 2.0)]
    later = [[("A", T + 5_500 * NS_PER_MS + i, i, 3.0)] for i in range(1, stream_module._MERGE)]
    log += [to_batch(rows) for rows in (late, *later)]
    stream = WindowStream(SPEC)
    stream.add(log[0], 0)
    stream.progress(T + 4 * S + S // 2)  # the final watermark is at 2 s
    stream.collect(T + S)
    for position in range(1, len(log)):
        assert not len(stream.add(log[position], position))
    assert stream.resume_position() == 1
    assert len(stream._pending) == 1
    again = resumed(stream, Steps(log), len(log))
    bars = Steps(log).end(again)[0]
    assert {(row[1] - T) / S: row[2] for row in bars[0][2]} == {2.0: 1, 5.0: len(later)}
