"""The window engine gives what a plain batch computation gives, whatever the order and the cuts."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property._harness import assert_same, distinct, plain_bars

from market_data_core.events import EventBatch
from market_data_core.intervals import NS_PER_MS
from market_data_core.testing.oracle import (
    BarKey,
    OracleBar,
    OracleEvent,
    batch_bars,
    oracle_events,
    reference_run,
)
from market_data_core.testing.strategies import cuts, logs, to_batches
from market_data_pipeline.windows.assigner import FOREVER, WindowSpec
from market_data_pipeline.windows.checkpoint import StreamState
from market_data_pipeline.windows.collected import Collected
from market_data_pipeline.windows.stream import WindowStream

INTERVALS_MS = ((1_000,), (1_000, 2_000, 5_000), (2_000, 3_000), (500, 60_000), (700, 2_100))


class Reader:
    """Feeds a stream, keeps the latest version of every bar, and can start anew."""

    def __init__(self, spec: WindowSpec) -> None:
        self.spec = spec
        self.stream = WindowStream(spec)
        self.bars: dict[int, dict[BarKey, OracleBar]] = {i: {} for i in spec.intervals_ns}
        self.log: list[EventBatch] = []
        self.late = self.stored = self.deduplicated = self.conflicts = 0

    def add(self, batch: EventBatch) -> None:
        self.late += len(self.stream.add(batch, len(self.log)))
        self.log.append(batch)

    def collect(self) -> None:
        out: Collected = self.stream.collect()
        self.stored += out.stored
        self.deduplicated += out.deduplicated
        self.conflicts += len(out.conflicts)
        for closed in out.bars:
            known, found = self.bars[closed.length_ns], plain_bars("one", self.stream, closed)
            assert len(found) == len(closed.bars)
            assert closed.revised or not found.keys() & known.keys()
            known |= found
            assert sum(closed.fresh.tolist()) == 0 or closed.length_ns == self.spec.base_ns
        fresh = sum(sum(closed.fresh.tolist()) for closed in out.bars)
        assert fresh == (out.stored if self.spec.base_ns in self.bars else 0)

    def restart(self) -> None:
        """As a new owner: the state of a commit, and the log from the resume position on."""
        if self.stream.due():
            self.collect()
        resume = self.stream.resume_position()
        state: StreamState = self.stream.state("one")
        self.stream = WindowStream(self.spec, state)
        for position in range(len(self.log) if resume is None else resume, len(self.log)):
            self.stream.restore(self.log[position], position)

    def end(self) -> None:
        self.stream.advance(FOREVER)
        self.collect()

    def check(self, kept: list[OracleEvent]) -> None:
        for length, found in self.bars.items():
            assert_same(found, batch_bars(kept, length))


@st.composite
def runs(draw: st.DrawFn, late: bool) -> tuple[WindowSpec, list[EventBatch], list[int]]:
    lengths = draw(st.sampled_from(INTERVALS_MS))
    base_ms = min(lengths) if len(lengths) != 2 or lengths != (2_000, 3_000) else 1_000
    spec = WindowSpec(
        tuple(ms * NS_PER_MS for ms in lengths),
        draw(st.sampled_from((0, 1, 250, 1_500))) * NS_PER_MS,
        draw(st.sampled_from((0, base_ms // 2, base_ms, 2 * base_ms + base_ms // 3))) * NS_PER_MS,
    )
    delay_ns = spec.allow_late_ns + spec.revise_horizon_ns
    log = draw(logs(12 * base_ms * NS_PER_MS, 3 * delay_ns if late else delay_ns, size_max=40))
    at = draw(st.one_of(cuts(len(log)), st.just(tuple(range(1, len(log))))))
    doing = draw(st.lists(st.integers(0, 3), min_size=len(at) + 1, max_size=len(at) + 1))
    return spec, to_batches(log, at), doing


def events_of(batches: list[EventBatch]) -> list[OracleEvent]:
    return [event for batch in batches for event in oracle_events(batch)]


@settings(max_examples=120)
@given(runs(late=False))
def test_order_cuts_copies_and_restarts_change_no_bit(
    run: tuple[WindowSpec, list[EventBatch], list[int]],
) -> None:
    spec, batches, doing = run
    reader = Reader(spec)
    for batch, action in zip(batches, doing, strict=True):
        reader.add(batch)
        if action & 1:
            reader.collect()
        if action & 2:
            reader.restart()
    reader.end()

    assert reader.late == 0
    reader.check(events_of(batches))
    total = reader.stored + reader.deduplicated + reader.conflicts
    assert total == sum(len(batch) for batch in batches)


@settings(max_examples=120)
@given(runs(late=True))
def test_late_events_are_those_beyond_the_horizon(
    run: tuple[WindowSpec, list[EventBatch], list[int]],
) -> None:
    spec, batches, doing = run
    reader = Reader(spec)
    for batch, action in zip(batches, doing, strict=True):
        reader.add(batch)
        if action & 1:
            reader.collect()
        if action & 2:
            reader.restart()
    reader.end()

    events = events_of(batches)
    expected = reference_run(events, spec.base_ns, spec.allow_late_ns, spec.revise_horizon_ns)
    late = {id(event) for event in expected.late}
    reader.check([event for event in events if id(event) not in late])
    assert reader.late == len(expected.late)


@settings(max_examples=60)
@given(runs(late=False), st.randoms(use_true_random=False))
def test_equal_inputs_in_any_order_give_equal_bars(
    run: tuple[WindowSpec, list[EventBatch], list[int]], random: Random
) -> None:
    """With lateness for everything, even a full shuffle changes nothing."""
    spec, batches, _ = run
    events = distinct(events_of(batches))
    shuffled = [*events, *random.choices(events, k=len(events) // 3)]
    random.shuffle(shuffled)
    wide_open = WindowSpec(spec.intervals_ns, 10**12, spec.revise_horizon_ns)
    reader = Reader(wide_open)
    for batch in to_batches(shuffled, tuple(range(1, len(shuffled), 7))):
        reader.add(batch)
        reader.collect()
    reader.end()

    reader.check(events)
    assert reader.stored == len(events)
