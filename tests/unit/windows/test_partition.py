"""A partition: what is counted how, forwarded where, and dead-lettered with which bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
import structlog

from market_data_core.contracts.store import BadRow, Claim, PartitionKey
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.events import EventBatch, Rejected, make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Mark, Place, Record
from market_data_pipeline.bus import codec
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Checkpoint, Counts, decode_checkpoint
from market_data_pipeline.windows.group import PartitionGroup, Topics
from market_data_pipeline.windows.partition import Partition

S = 10**9
T = 1_700_000_000 * S
SPEC = WindowSpec((2 * S,), 0, 4 * S)
HERE = partition_of("SPY", 2)
AWAY = next(s for s in ("A", "B", "C", "D") if partition_of(s, 2) != HERE)
TOPICS = Topics("mdp.events", 2, "", "mdp.dlq")


def ticks(*at: float, symbol: str = "SPY", provider: str = "p", price: float = 1.0) -> EventBatch:
    ts = [T + round(t * S) for t in at]
    return make_batch(
        provider, [symbol] * len(at), ts, [0] * len(at), [price] * len(at), [1.0] * len(at)
    )


@dataclass
class Log:
    """Records of one partition, appended at `now` seconds after T."""

    records: list[Record] = field(default_factory=list)
    now: float = 0.0

    def put(self, payload: bytes, count: int) -> None:
        at = T + round(self.now * S)
        self.records.append(Record(HERE, len(self.records), payload, at, count))

    def batch(self, batch: EventBatch) -> None:
        self.put(codec.encode_columns(batch), len(batch))

    def singles(self, batch: EventBatch) -> None:
        for payload in codec.encode_events(batch, "json"):
            self.put(payload, 1)

    def mark(self, mark: Mark) -> None:
        self.put(codec.encode_mark(mark), 0)


def partition(checkpoint: Checkpoint | None = None, max_future_ns: int | None = None) -> Partition:
    claim = Claim(PartitionKey("g", "mdp.events", HERE), 3, 5, None)
    found = checkpoint or Checkpoint(log_id="log")
    return Partition(claim, found, SPEC, TOPICS, codec, max_future_ns)


def taken(log: Log, max_future_ns: int | None = None) -> PartitionGroup:
    part = partition(max_future_ns=max_future_ns)
    part.take(log.records, T)
    return closed(part)


def closed(part: Partition) -> PartitionGroup:
    for provider, stream in part.ticks.items():
        if stream.due():
            part.collect(provider)
    group = part.group()
    assert group.checkpoint.counts.holds()
    return group


def letters(group: PartitionGroup, bad: Sequence[BadRow] = ()) -> list[DeadLetter]:
    messages = [m for m in group.finish(bad)[1] if m.destination == "mdp.dlq"]
    return [letter for m in messages for letter in decode_letters(m.payload)]


def test_rejected_input_is_counted_and_kept_with_its_bytes() -> None:
    log = Log()
    log.put(codec.encode_rejected(Rejected("malformed", "broken", b"\xff{", "file:7")), 1)
    log.put(b"neither JSON nor msgpack", 1)
    log.put(b'{"ver":2,"provider":"p"}', 1)
    log.put(b"MDPC of five events, damaged", 5)
    log.put(b"MDPM damaged", 0)
    group = taken(log)
    found = [(x.reason, x.original, x.where, x.offset, x.events) for x in letters(group)]
    assert found[0] == ("malformed", b"\xff{", "file:7", 0, 1)
    assert [(reason, events) for reason, _, _, _, events in found] == [
        ("malformed", 1),
        ("malformed", 1),
        ("bad_version", 1),
        ("malformed", 5),
        ("malformed", 0),
    ]
    assert group.checkpoint.counts == Counts(received=8, dead_lettered=8)


def test_single_events_with_impossible_values_do_not_take_others_with_them() -> None:
    log = Log()
    log.singles(ticks(0.5))
    event = next(iter(codec.encode_events(ticks(0.6), "json")))
    log.put(event.replace(b'"h":1.0', b'"h":0.5'), 1)
    log.put(event.replace(b'"v":1.0', b'"v":-1.0'), 1)
    log.put(event.replace(b"2023-", b"1623-"), 1)
    log.singles(ticks(0.7, 2.5))
    group = taken(log)
    reasons = sorted((x.reason, x.offset) for x in letters(group))
    assert reasons == [("bad_timestamp", 3), ("high_below_low", 1), ("negative", 2)]
    assert group.checkpoint.counts == Counts(received=6, stored=2, open=1, dead_lettered=3)


def test_what_is_ahead_of_its_append_is_set_aside_and_moves_no_watermark() -> None:
    log = Log()
    log.batch(ticks(0.5, 1.5))
    log.batch(ticks(6.0, 1.6))
    log.mark(Mark(kind="progress", provider="p", ts=T + 60 * S))
    group = taken(log, max_future_ns=5 * S)
    (letter,) = letters(group)
    assert (letter.reason, letter.src_ts, letter.offset) == ("future", T + 6 * S, 1)
    assert group.checkpoint.counts == Counts(received=4, open=3, dead_lettered=1)


def test_single_events_are_held_against_their_own_append() -> None:
    log = Log()
    log.singles(ticks(6.0))
    log.now = 3.0
    log.singles(ticks(6.0))
    together = taken(log, max_future_ns=5 * S)
    assert [x.offset for x in letters(together)] == [0]
    assert together.checkpoint.counts.dead_lettered == 1


def test_misplaced_events_go_where_they_belong_and_are_received_there() -> None:
    log = Log()
    log.batch(ticks(0.5, symbol=AWAY))
    log.singles(ticks(0.6, symbol=AWAY))
    log.singles(ticks(0.7, symbol=AWAY, provider="q"))
    group = taken(log)
    forwards = [m for m in group.finish([])[1] if m.destination == "mdp.events"]
    assert [(m.partition, m.count, m.provider) for m in forwards] == [
        (1 - HERE, 1, "p"),
        (1 - HERE, 1, "p"),
        (1 - HERE, 1, "q"),
    ]
    assert len({m.key for m in forwards}) == 3
    assert group.checkpoint.counts == Counts()
    assert group.checkpoint.forwarded == 3


def test_late_events_are_named_with_the_log_they_came_from() -> None:
    log = Log()
    log.batch(ticks(0.5))
    log.batch(ticks(6.0))
    log.batch(ticks(1.5))
    group = taken(log)
    (letter,) = letters(group)
    assert (letter.reason, letter.offset, letter.log_id) == ("late", 2, "log")
    assert group.checkpoint.counts == Counts(received=3, stored=1, open=1, late=1)


def test_single_events_are_named_with_their_own_record_and_bytes() -> None:
    log = Log()
    log.singles(ticks(0.5, 6.0))
    (late,) = codec.encode_events(ticks(1.5), "json")
    spelled = late.replace(b'"SPY"', b'"spy"').replace(b"{", b"{ ")
    log.put(spelled, 1)
    log.singles(ticks(7.0))
    log.put(late, 1)
    bar = make_batch("p", ["SPY"], [T], [0], [1.0], [1.0], kind="bar", interval="1m")
    other = make_batch("p", ["SPY"], [T], [0], [2.0], [1.0], kind="bar", interval="1m")
    log.singles(bar)
    log.singles(other)
    first, second, conflict = letters(taken(log))
    assert (first.reason, first.offset, first.as_sent) == ("late", 2, spelled)
    assert first.original == late  # by which readers of the log recognise it
    assert (second.reason, second.offset, second.as_sent) == ("late", 4, late)
    assert second.message == b""
    assert (conflict.reason, conflict.offset) == ("id_conflict", 6)
    assert conflict.as_sent == next(iter(codec.encode_events(other, "json")))


def test_a_clock_that_was_set_back_does_not_judge_single_events_twice() -> None:
    log = Log(now=3.0)
    log.singles(ticks(7.0))
    log.now = 0.0
    log.singles(ticks(5.0))
    group = taken(log, max_future_ns=5 * S)
    assert letters(group) == []
    assert group.checkpoint.counts == Counts(received=2, open=1, stored=1)


def test_misplaced_single_events_leave_the_others_their_places() -> None:
    log = Log()
    log.singles(ticks(6.0, symbol=AWAY))
    log.singles(ticks(6.0))
    log.singles(ticks(0.5, symbol=AWAY))
    log.singles(ticks(0.5))
    assert [x.offset for x in letters(taken(log))] == [3]


@pytest.mark.parametrize(("count", "told"), [(3, False), (None, False), (4, True), (2, True)])
def test_a_log_that_differs_from_its_recording_is_told(count: int | None, told: bool) -> None:
    log = Log()
    log.batch(ticks(0.5, 1.5))
    log.put(b"broken", 1)
    log.mark(Mark(kind="end", count=count))
    with structlog.testing.capture_logs() as logs:
        part = partition()
        part.take(log.records, T)
        again = partition(closed(part).checkpoint)
        again.take(log.records, T)  # rebuilding says nothing again
    found = [(x["log_level"], x["recording"], x["log"], x["partition"]) for x in logs]
    assert found == ([("error", count, 3, HERE)] if told else [])


def test_contradictions_of_vendor_bars_and_trades_are_dead_lettered() -> None:
    log = Log()
    log.batch(ticks(0.5))
    log.batch(ticks(0.5, price=2.0))
    bar = make_batch("p", ["SPY"], [T], [0], [1.0], [1.0], kind="bar", interval="1m")
    other = make_batch("p", ["SPY"], [T], [0], [2.0], [1.0], kind="bar", interval="1m")
    log.batch(bar)
    log.batch(other)
    log.mark(Mark(kind="end"))
    group = taken(log)
    assert sorted((x.reason, x.offset) for x in letters(group)) == [
        ("id_conflict", 1),
        ("id_conflict", 3),
    ]
    assert group.checkpoint.counts == Counts(received=4, stored=2, dead_lettered=2)


def test_a_new_owner_counts_only_what_is_new() -> None:
    log = Log()
    log.batch(ticks(0.5, 1.5))
    log.singles(ticks(1.6, 1.7))
    first = partition()
    first.take(log.records, T)
    checkpoint = decode_checkpoint(closed(first).finish([])[0])
    log.singles(ticks(1.8, 2.5))

    second = partition(checkpoint)
    restoring = [second.restoring]
    for record in log.records[checkpoint.resume :]:
        second.take([record], T)
        restoring.append(second.restoring)
    assert restoring == [True, True, True, False, False, False]
    group = closed(second)
    assert group.checkpoint.counts == Counts(received=6, stored=5, open=1)
    assert [b.trade_count.tolist() for b in group.bars] == [[5]]


def test_a_pause_that_is_over_does_not_come_back_with_a_new_owner() -> None:
    log = Log()
    log.batch(ticks(0.5))
    log.mark(Mark(kind="pause", provider="p"))
    log.batch(ticks(0.6))
    first = partition()
    first.take(log.records, T)
    checkpoint = closed(first).checkpoint

    second = partition(checkpoint)
    second.take(log.records, T)
    second.take([], T + 10 * S)
    assert [m.kind for m in second.idle_marks(S)] == ["idle"]


@pytest.mark.parametrize(("until", "marks"), [(1.0, []), (2.0, [2]), (5.0, [4])])
def test_silence_lets_windows_close_as_far_as_the_log_was_read(
    until: float, marks: list[int]
) -> None:
    log = Log()
    log.batch(ticks(0.5))
    part = partition()
    part.take(log.records, T)
    part.take([], T + round(until * S))
    assert [(m.ts - T) // S for m in part.idle_marks(S)] == marks


def test_what_is_still_unread_is_no_silence() -> None:
    log = Log()
    log.batch(ticks(0.5))
    part = partition()
    part.take(log.records, T + 60 * S)  # read long after it was appended
    assert part.idle_marks(S) == []


def test_an_idle_mark_does_not_end_the_silence() -> None:
    log = Log()
    log.batch(ticks(0.5, 2.5))
    log.now = 2.0
    log.mark(Mark(kind="idle", provider="p", ts=T + 2 * S))
    part = partition()
    part.take(log.records, T)
    part.collect("p")
    part.take([], T + 3 * S)
    assert [(m.ts - T) // S for m in part.idle_marks(S)] == [4]


def test_no_silence_while_the_producer_is_away_or_the_lane_has_ended() -> None:
    for mark in (Mark(kind="pause", provider="p"), Mark(kind="end")):
        log = Log()
        log.batch(ticks(0.5))
        log.mark(mark)
        part = partition()
        part.take(log.records, T)
        part.take([], T + 60 * S)
        assert part.idle_marks(S) == []


def test_a_bar_that_cannot_be_written_takes_with_it_what_it_newly_brought() -> None:
    log = Log()
    log.batch(ticks(0.5, 1.5, 2.5))
    part = partition()
    part.take(log.records, T)
    first = closed(part)
    refused = [BadRow(0, 0, "CHECK failed")]
    counts = decode_checkpoint(first.finish(refused)[0]).counts
    assert counts == Counts(received=3, open=1, dead_lettered=2)
    (letter,) = letters(first, refused)
    assert (letter.reason, letter.events, letter.detail) == ("unwritable", 2, "CHECK failed")
    body = msgspec.json.decode(letter.original)
    assert (body["symbol"], body["interval"], body["close"]) == ("SPY", "2s", 1.0)
    part.committed(first, refused)

    log.batch(ticks(0.7))  # restates the bar: only the one new event moves
    part.take(log.records[1:], T)
    second = closed(part)
    assert [b.trade_count.tolist() for b in second.bars] == [[3]]
    counts = decode_checkpoint(second.finish(refused)[0]).counts
    assert counts == Counts(received=4, open=1, dead_lettered=3)


def test_what_may_be_trimmed_follows_the_commit_not_the_group() -> None:
    log = Log()
    for at in (0.5, 3.0, 7.0, 11.0):
        log.batch(ticks(at))
    part = partition()
    for record in log.records:
        part.take([record], T)
        group = closed(part)
    assert (part.place, group.checkpoint.resume) == (Place(0, 0), 2)
    part.committed(group, [])
    assert (part.place, part.claim.sequence) == (Place(2, 4), 6)
