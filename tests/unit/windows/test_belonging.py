"""A partition of one generation: events of another one go there, and tell how late it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import Claim, Message, OutboxItem, PartitionKey
from market_data_core.events import EventBatch, make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Record
from market_data_pipeline.bus import codec
from market_data_pipeline.timeline import Generation, Timeline
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Checkpoint, Counts, decode_checkpoint
from market_data_pipeline.windows.group import PartitionGroup, Topics
from market_data_pipeline.windows.partition import Partition
from market_data_pipeline.windows.writer import entries_of

S = 10**9
T = 1_700_000_000 * S
BEGIN = T + 10 * S
SPEC = WindowSpec((2 * S, 4 * S, 10 * S), 0, 4 * S)
OLD, NEW = "mdp.events", "mdp.events-g2"
HERE = partition_of("SPY", 2)
THERE = partition_of("SPY", 7)


def timeline() -> Timeline:
    return Timeline(Generation(1, OLD, 2, until=BEGIN), Generation(2, NEW, 7, BEGIN))


def partition(
    topic: str = OLD,
    known: Timeline | None = None,
    checkpoint: Checkpoint | None = None,
    token: int = 3,
) -> Partition:
    known = known or timeline()
    home = known.of_topic(topic)
    assert home is not None
    topics = Topics(topic, home.partitions, "", "mdp.dlq", known)
    claim = Claim(PartitionKey("g", topic, partition_of("SPY", home.partitions)), token, 5, None)
    return Partition(claim, checkpoint or Checkpoint(log_id="log"), SPEC, topics, codec, 5 * S)


def ticks(*at: float, symbol: str = "SPY") -> EventBatch:
    ts = [T + round(t * S) for t in at]
    ones = [1.0] * len(at)
    return make_batch("p", [symbol] * len(at), ts, range(len(at)), ones, ones)


def record(offset: int, batch: EventBatch, number: int = HERE) -> Record:
    payload = codec.encode_columns(batch)
    append_ts = int(batch.src_ts.max())
    return Record(number, offset, payload, append_ts, len(batch))


def group_of(part: Partition) -> PartitionGroup:
    for provider, stream in part.ticks.items():
        if stream.due():
            part.collect(provider)
    group = part.group()
    assert group.checkpoint.counts.holds()
    return group


def sent(group: PartitionGroup) -> list[tuple[str, int, int]]:
    """(topic, partition, events) of what is forwarded."""
    messages = [m for m in group.finish(())[1] if m.destination != "mdp.dlq"]
    return [(m.destination, m.partition, m.count) for m in messages]


def bars(group: PartitionGroup) -> list[tuple[str, float, int]]:
    """(interval, start in seconds after T, trades)."""
    return [
        (b.interval, (ts - T) / S, count)
        for b in group.bars
        for ts, count in zip(b.ts.tolist(), b.trade_count.tolist(), strict=True)
    ]


def test_events_of_a_later_generation_go_there_and_are_not_received_here() -> None:
    part = partition()
    part.take([record(0, ticks(8.5, 9.5, 10.0, 10.5))], T)
    group = group_of(part)
    assert sent(group) == [(NEW, THERE, 2)]
    assert group.checkpoint.counts.received == 2


def test_events_of_an_earlier_generation_go_back() -> None:
    part = partition(NEW)
    part.take([record(0, ticks(9.9, 10.0, 10.5), THERE)], T)
    group = group_of(part)
    assert sent(group) == [(OLD, HERE, 1)]
    assert group.checkpoint.counts.received == 2
    assert {start for _, start, _ in bars(group)} <= {10.0}


def test_others_symbols_of_another_time_go_straight_to_their_partition() -> None:
    part = partition()
    symbol = next(s for s in "ABCDEFGH" if partition_of(s, 2) != HERE)
    part.take([record(0, ticks(9.0, 11.0, symbol=symbol))], T)
    targets = [(OLD, partition_of(symbol, 2), 1), (NEW, partition_of(symbol, 7), 1)]
    assert sorted(sent(group_of(part))) == sorted(targets)


def test_a_feed_that_has_gone_over_closes_the_old_windows() -> None:
    """Whoever writes to the old log only would keep them open for ever: it is never silent."""
    part = partition()
    part.take([record(0, ticks(8.5, 9.5))], T)
    assert bars(group_of(part)) == []
    part.take([record(1, ticks(14.5))], T)
    group = group_of(part)
    assert ("10s", 0.0, 2) in bars(group)
    assert group.checkpoint.counts == Counts(received=2, stored=2)
    (state,) = group.checkpoint.streams
    assert state.watermark == T + round(14.5 * S)


def test_a_time_that_is_not_believed_closes_nothing() -> None:
    part = partition()
    ahead = record(0, ticks(8.5, 60.0))
    early = Record(HERE, 0, ahead.payload, T + 9 * S, 2)
    part.take([early], T)
    group = group_of(part)
    assert group.checkpoint.counts == Counts(received=1, open=1)
    assert sent(group) == [(NEW, THERE, 1)]  # whose owner judges it


@pytest.mark.parametrize("single", [False, True])
def test_reading_again_forwards_nothing_twice_and_decides_the_same(single: bool) -> None:
    batch = ticks(9.5, 10.5)
    records = [record(0, batch)]
    if single:
        payloads = codec.encode_events(batch, "json")
        records = [Record(HERE, i, p, T + 11 * S, 1) for i, p in enumerate(payloads)]
    first = partition()
    first.take(records, T)
    left = decode_checkpoint(first.group().finish(())[0])
    assert (left.resume, left.counted) == (0, len(records))
    second = partition(checkpoint=left)
    second.take(records, T)
    second.take([record(len(records), ticks(13.0))], T)
    group = group_of(second)
    assert ("10s", 0.0, 1) in bars(group)
    assert group.checkpoint.counts == Counts(received=1, stored=1)
    assert [count for _, _, count in sent(group)] == [1]


def test_what_an_owner_forwards_is_not_taken_for_what_an_earlier_one_did() -> None:
    """A log that has lost its tail may give the same offset to another record."""
    keys = []
    for token, at in ((3, 10.5), (4, 11.5)):
        part = partition(token=token)
        part.take([record(0, ticks(at))], T)
        keys += [m.key for m in group_of(part).forwards]
    assert len(set(keys)) == 2


def test_a_change_that_becomes_known_while_a_partition_is_read() -> None:
    known = Timeline.alone(OLD, 2)
    part = partition(known=known)
    part.take([record(0, ticks(8.5))], T)
    known.generations = timeline().generations
    part.take([record(1, ticks(9.5, 10.5))], T)
    group = group_of(part)
    assert sent(group) == [(NEW, THERE, 1)]
    assert group.checkpoint.counts.received == 2


def test_a_window_across_the_generations_has_no_bar() -> None:
    """Its length was not among the windows when the generations met at ten seconds."""
    old, new = partition(), partition(NEW)
    old.take([record(0, ticks(7.5, 9.5, 10.5)), record(1, ticks(19.0))], T)
    new.take([record(0, ticks(10.5, 11.5, 12.5), THERE), record(1, ticks(25.0), THERE)], T)
    both = sorted(bar for part in (old, new) for bar in bars(group_of(part)))
    assert [bar for bar in both if bar[0] == "4s"] == [("4s", 4.0, 1), ("4s", 12.0, 1)]
    assert sum(count for interval, _, count in both if interval == "2s") == 5


def bars_message(symbols: Sequence[str]) -> OutboxItem:
    n = len(symbols)
    ticks = make_batch("p", symbols, range(n), range(n), [1.0] * n, [1.0] * n)
    x, ts = ticks.close.to_floats(), ticks.src_ts
    batch = BarBatch("p", "2s", "final", ticks.symbols, ticks.codes, ts, x, x, x, x, x, x, ts + 1)
    message = Message("mdp.bars", "key", batch.encode(9), n, provider="p", max_ts=n - 1)
    return OutboxItem(1, 6, message)


def test_bars_of_a_symbol_stay_in_one_partition_whatever_generation_they_are_of() -> None:
    symbols = list("ABCDEFGHIJ")
    entries = entries_of(bars_message(symbols), 7, 4)
    found: dict[str, int] = {}
    for entry in entries:
        batch, version = BarBatch.decode(entry.payload)
        assert (version, entry.count) == (9, len(batch))
        assert (entry.min_ts, entry.max_ts) == (batch.ts.min(), batch.ts.max())
        found |= dict.fromkeys(batch.symbol_column(), entry.partition)
    assert found == {symbol: partition_of(symbol, 4) for symbol in symbols}
    assert len({entry.key for entry in entries}) == len(entries)


def test_bars_go_as_they_are_where_the_numbers_are_equal() -> None:
    item = bars_message("AB")
    (entry,) = entries_of(item, 7, 7)
    assert (entry.partition, entry.payload, entry.key) == (6, item.message.payload, "key")
