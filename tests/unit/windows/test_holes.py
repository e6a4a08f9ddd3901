"""A partition whose log lacks records that were read once, or that nobody has read."""

from __future__ import annotations

from tests.unit.windows.test_partition import SPEC, Log, S, T, letters, partition, ticks

from market_data_core.records import Mark
from market_data_pipeline.windows.checkpoint import Checkpoint, Counts
from market_data_pipeline.windows.group import PartitionGroup
from market_data_pipeline.windows.partition import Partition

WINDOW = SPEC.base_ns


def collected(part: Partition) -> PartitionGroup:
    for provider, stream in part.ticks.items():
        if stream.due():
            part.collect(provider)
    group = part.group()
    assert group.checkpoint.counts.holds()
    return group


def filled(*at: float) -> tuple[Log, Checkpoint]:
    """A log of one trade a record, and where its first reader ended."""
    log = Log()
    for second in at:
        log.batch(ticks(second))
    part = partition()
    part.take(log.records, T)
    return log, collected(part).checkpoint


def torn(log: Log, checkpoint: Checkpoint, gone: int) -> Partition:
    """A new owner that has read the log again, which lacks one of its records."""
    part = partition(checkpoint)
    part.take(log.records[:gone], T)
    part.miss(gone + 1, 1)
    part.take(log.records[gone + 1 :], T)
    assert not part.restoring
    return part


def spans(group: PartitionGroup) -> list[tuple[str, float, float]]:
    return [(g.cause, (g.from_ts - T) / S, (g.to_ts - T) / S) for g in group.gaps]


def bars(group: PartitionGroup) -> list[tuple[float, int, str]]:
    return sorted(
        ((ts - T) / S, count, batch.state)
        for batch in group.bars
        for ts, count in zip(batch.ts.tolist(), batch.trade_count.tolist(), strict=True)
    )


def test_a_stored_bar_is_not_written_again_from_what_is_left_of_its_window() -> None:
    log, checkpoint = filled(0, 0.5, 1, 3)
    assert checkpoint.counts == Counts(received=4, stored=3, open=1)
    part = torn(log, checkpoint, 1)
    assert part.dirty
    assert spans(group := collected(part)) == [("log_hole", 2.0, 4.0)]
    assert group.checkpoint.counts == checkpoint.counts  # none of it was open
    log.batch(ticks(1.5))
    part.take(log.records[4:], T)
    after = collected(part)
    assert bars(after) == []
    assert [letter.reason for letter in letters(after)] == ["late"]
    assert after.checkpoint.counts == Counts(received=5, stored=3, open=1, late=1)


def test_what_was_open_is_counted_though_nothing_new_comes() -> None:
    log, checkpoint = filled(0, 0.5, 2.5, 3)
    assert checkpoint.counts == Counts(received=4, stored=2, open=2)
    part = torn(log, checkpoint, 2)
    assert part.dirty
    group = collected(part)
    assert group.checkpoint.counts == Counts(received=4, stored=2, open=1, lost=1)
    assert spans(group) == [("log_hole", 2.0, 4.0)]
    log.batch(ticks(5))
    part.take(log.records[4:], T)
    after = collected(part)
    assert bars(after) == [(2.0, 1, "gap")]
    assert after.checkpoint.counts == Counts(received=5, stored=3, open=1, lost=1)


def test_what_was_open_is_counted_where_nothing_restored_follows_the_hole() -> None:
    """The reader meets it together with the first record that is new."""
    log, checkpoint = filled(0, 0.5, 2.5, 3)
    checkpoint.counted += 1  # a record without events stood behind, and is gone too
    log.mark(Mark(kind="pause", provider="p"))
    log.batch(ticks(3.5))
    part = partition(checkpoint)
    part.take(log.records[:2], T)
    part.miss(3, 1)
    part.take([log.records[3], log.records[5]], T)
    group = collected(part)
    assert group.checkpoint.counts == Counts(received=5, stored=2, open=2, lost=1)


def test_the_next_owner_tells_nothing_again() -> None:
    log, checkpoint = filled(0, 0.5, 2.5, 3, 3.5)
    group = collected(torn(log, checkpoint, 3))
    assert group.checkpoint.counts == Counts(received=5, stored=2, open=2, lost=1)
    again = torn(log, group.checkpoint, 3)
    assert not again.dirty
    following = collected(again)
    assert following.gaps == []
    assert following.checkpoint.counts == group.checkpoint.counts


def test_a_hole_before_what_is_new_is_counted_with_the_record_behind_it() -> None:
    log, checkpoint = filled(0, 3)
    part = partition(checkpoint)
    part.take(log.records, T)
    part.miss(2, 7)
    part.take([], T)
    assert not part.dirty
    log.batch(ticks(3.2))
    log.batch(ticks(5))
    part.take(log.records[2:], T)
    group = collected(part)
    assert group.checkpoint.counts == Counts(received=11, stored=3, open=1, lost=7)
    assert bars(group) == [(2.0, 2, "gap")]
    log.batch(ticks(1))
    part.take(log.records[4:], T)
    assert bars(collected(part)) == [(0.0, 2, "gap")]  # made anew: all that was read is there


def test_windows_up_to_the_first_event_behind_a_hole_may_lack_some() -> None:
    """What is missing may reach into the window in which reading goes on."""
    log, checkpoint = filled(0, 3)
    part = partition(checkpoint)
    part.take(log.records, T)
    part.miss(2, 7)
    for at in (7, 9, 13):
        log.batch(ticks(at))
    part.take(log.records[2:], T)
    group = collected(part)
    assert bars(group) == [(2.0, 1, "gap"), (6.0, 1, "gap"), (8.0, 1, "final")]
    assert spans(group) == [("log_hole", 2.0, 4.0), ("log_hole", 4.0, 8.0)]


def test_a_mark_behind_a_hole_tells_how_far_it_reaches() -> None:
    log, checkpoint = filled(0, 3)
    part = partition(checkpoint)
    part.take(log.records, T)
    part.miss(2, 7)
    log.mark(Mark(kind="progress", provider="p", ts=T + 7 * S))
    log.batch(ticks(7.5))
    log.batch(ticks(9))
    log.batch(ticks(13))
    part.take(log.records[2:], T)
    states = {start: state for start, _, state in bars(collected(part))}
    assert states == {2.0: "gap", 6.0: "gap", 8.0: "final"}
