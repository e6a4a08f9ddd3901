"""What must hold of a deployment once all is quiet, derived from the log alone.

The bus is read back item by item, the reference implementation decides what every event
must have become, and store, checkpoints, ledger and published bars are held against that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.faults import buses
from tests.faults.lab import ALLOW_LATE_MS, BARS, BASE_MS, EVENTS, HORIZON_MS, LETTERS, SIGNALS, Lab

from market_data_core.bars import BarBatch
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.errors import RejectedError
from market_data_core.events import EventBatch, Rejected, StreamEvent, parse_ts
from market_data_core.intervals import NS_PER_MS, parse_interval
from market_data_core.records import Record
from market_data_core.signals import Signal
from market_data_core.testing.oracle import (
    LogItem,
    OracleBar,
    OracleEvent,
    ReferenceRun,
    batch_bars,
    combined,
    oracle_events,
    reference_run,
)
from market_data_core.wire import BatchBuilder
from market_data_pipeline.bus import codec
from market_data_pipeline.signals.checkpoint import decode_signals_checkpoint
from market_data_pipeline.windows.checkpoint import Checkpoint, Counts, decode_checkpoint

StoredKey = tuple[str, str, str, int]
"""provider, symbol, interval, start of the window (UTC ns)."""
_VALUES = "open, high, low, close, volume, vwap, trade_count"


def read_topic(lab: Lab, name: str) -> buses.Topic:
    """All that a topic holds."""
    return lab.topics.ask(lambda bus: buses.read(bus, name))


def received(lab: Lab, name: str) -> int:
    """Events that a topic has received, by the log's own count."""
    return sum(lab.topics.ask(lambda bus: buses.received(bus, name)))


def all_read(lab: Lab, name: str) -> bool:
    """Whether the checkpoints count every event of the topic."""
    places, events = checkpoints(lab, name), lab.topics.ask(lambda bus: buses.received(bus, name))
    return all(
        count == 0 or (p in places and places[p].counts.received == count)
        for p, count in enumerate(events)
    )


def all_evaluated(lab: Lab) -> bool:
    """Whether inference has passed every bar of the live topic."""
    rows = lab.query(
        f"SELECT partition, checkpoint FROM partitions WHERE topic = '{BARS}' "
        f"AND checkpoint IS NOT NULL AND consumer_group = '{lab.group}-infer'"
    )
    places = {p: decode_signals_checkpoint(checkpoint).position for p, checkpoint in rows}
    return all(
        not records or places.get(partition, 0) > records[-1].offset
        for partition, records in enumerate(read_topic(lab, BARS).records)
    )


def topic_names(lab: Lab) -> list[str]:
    """The topics that there are."""
    return [info.name for info in lab.topics.ask(lambda bus: bus.topics())]


def lane_topics(lab: Lab) -> list[str]:
    """The topics of recordings."""
    return [name for name in topic_names(lab) if name.startswith(f"{EVENTS}.")]


def log_items(records: list[Record]) -> Iterator[LogItem]:
    """The log as the reference implementation wants it, one event after the other."""
    for record in records:
        try:
            item = codec.decode(record.payload)
        except RejectedError as error:
            item = Rejected(error.reason, str(error), record.payload)
        if isinstance(item, StreamEvent):
            yield _single(item, record)
        elif isinstance(item, EventBatch):
            yield from oracle_events(item)
        else:
            yield item


def _single(event: StreamEvent, record: Record) -> LogItem:
    builder = BatchBuilder()
    builder.add(event, record.append_ts)
    return oracle_events(builder.build()[0][0])[0]


def stored_bars(lab: Lab) -> dict[StoredKey, OracleBar]:
    """The store's rows; a key can be there only once, which the table's size confirms."""
    start_ns = lab.store.start_ns
    rows = lab.query(f"SELECT provider, symbol, interval, {start_ns}, {_VALUES} FROM bars_ohlcv")
    found = {(p, s, i, int(t)): OracleBar(*v) for p, s, i, t, *v in rows}
    assert len(found) == len(rows), "duplicate rows"
    return found


def checkpoints(lab: Lab, topic: str) -> dict[int, Checkpoint]:
    """Each partition's place."""
    rows = lab.query(
        f"SELECT partition, checkpoint FROM partitions WHERE topic = '{topic}' "
        f"AND checkpoint IS NOT NULL AND consumer_group = '{lab.group}'"
    )
    return {partition: decode_checkpoint(checkpoint) for partition, checkpoint in rows}


def total_counts(lab: Lab, topic: str) -> Counts:
    """The terms of a topic's conservation equation."""
    total = Counts()
    for checkpoint in checkpoints(lab, topic).values():
        total.add(checkpoint.counts)
    return total


def dead_letters(lab: Lab) -> list[DeadLetter]:
    """Everything in the dead-letter topic."""
    topic = read_topic(lab, LETTERS)
    records = [record for partition in topic.records for record in partition]
    return [letter for record in records for letter in decode_letters(record.payload)]


def read_items(lab: Lab, name: str) -> list[list[LogItem]]:
    """Each partition's log, up to where it was counted.

    Requires that the counts in the checkpoints are the log's own and that no event is unread.
    """
    topic, places = read_topic(lab, name), checkpoints(lab, name)
    found = []
    for partition, records in enumerate(topic.records):
        place = places.get(partition, Checkpoint(log_id=""))
        unread = [r for r in records if r.offset >= place.counted and r.count]
        assert not unread, f"events of partition {partition} are unread"
        assert sum(r.count for r in records) == topic.received[partition]
        assert place.counts.received == topic.received[partition]
        found.append(list(log_items([r for r in records if r.offset < place.counted])))
    return found


def check_topic(lab: Lab, name: str) -> dict[StoredKey, OracleBar]:
    """Check counts and ledger of a topic; returns the bars that it must have given."""
    logs = read_items(lab, name)
    sizes = [ms * NS_PER_MS for ms in (BASE_MS, ALLOW_LATE_MS, HORIZON_MS)]
    run = combined(reference_run(items, *sizes) for items in logs)
    counts, wanted = total_counts(lab, name), run.counts
    assert wanted.balanced
    assert counts.holds(), counts
    found = (counts.received, counts.stored, counts.open, counts.deduplicated, counts.late)
    assert found == (wanted.received, wanted.stored, wanted.open, wanted.deduplicated, wanted.late)
    assert (counts.dead_lettered, counts.lost) == (wanted.dead_lettered, 0)
    letters = [letter for letter in dead_letters(lab) if letter.topic == name]
    _check_ledger(logs, run, letters)
    return _bars_of(lab, name, logs, letters)


def _check_ledger(logs: list[list[LogItem]], run: ReferenceRun, letters: list[DeadLetter]) -> None:
    """Every late, contradictory or unusable input is there once, and nothing else is."""
    late = Counter(_event(letter).key for letter in letters if letter.reason == "late")
    assert late == Counter(event.key for event in run.late)
    conflicts = Counter(_event(x) for x in letters if x.reason == "id_conflict")
    assert conflicts == Counter(run.conflicts)
    rest = Counter(x.original for x in letters if x.reason not in ("late", "id_conflict"))
    assert rest == Counter(x.original for items in logs for x in items if isinstance(x, Rejected))


def _event(letter: DeadLetter) -> OracleEvent:
    e = codec.decode(letter.original)
    assert isinstance(e, StreamEvent)
    values = (e.o, e.h, e.l, e.c, e.v)
    return OracleEvent(e.provider, e.symbol, parse_ts(e.src_ts), e.seq, *values)


def _bars_of(
    lab: Lab, name: str, logs: list[list[LogItem]], letters: list[DeadLetter]
) -> dict[StoredKey, OracleBar]:
    """A plain batch computation over the log less the ledger, for every closed window."""
    aside = Counter(_event(x) for x in letters if x.reason in ("late", "id_conflict"))
    places = checkpoints(lab, name)
    bars: dict[StoredKey, OracleBar] = {}
    for partition, items in enumerate(logs):
        kept = []
        for event in (item for item in reversed(items) if isinstance(item, OracleEvent)):
            if aside[event] > 0:  # of equal copies the later ones were set aside
                aside[event] -= 1
            else:
                kept.append(event)
        closed = {s.provider: s.closed for s in places[partition].streams} if kept else {}
        for window in lab.windows:
            length = parse_interval(window)
            for (provider, symbol, ts), bar in batch_bars(reversed(kept), length).items():
                if ts + length <= closed[provider]:
                    bars[provider, symbol, window, ts] = bar
    return bars


def check_published(lab: Lab, topics: list[str]) -> None:
    """The outbox is empty, and the latest version of every published bar is the stored one."""
    assert lab.query("SELECT count(*) FROM outbox") == [(0,)]
    latest: dict[StoredKey, tuple[int, OracleBar]] = {}
    for name in topics:
        told = set[tuple[StoredKey, int]]()
        for record in (r for part in read_topic(lab, name).records for r in part):
            batch, version = BarBatch.decode(record.payload)
            for key, bar in _rows(batch):
                known = latest.get(key)
                assert (key, version) not in told, f"published twice: {key}"
                assert known is None or known[0] != version or known[1] == bar
                told.add((key, version))
                if known is None or known[0] < version:
                    latest[key] = version, bar
    published = {key: bar for key, (_, bar) in latest.items()}
    assert published == stored_bars(lab)


def _rows(batch: BarBatch) -> Iterator[tuple[StoredKey, OracleBar]]:
    columns = (batch.open, batch.high, batch.low, batch.close, batch.volume)
    values = [column.tolist() for column in columns]
    rows = zip(*values, batch.vwap_column(), batch.trade_count.tolist(), strict=True)
    keys = zip(batch.symbol_column(), batch.ts.tolist(), strict=True)
    for (symbol, ts), row in zip(keys, rows, strict=True):
        yield (batch.provider, symbol, batch.interval, ts), OracleBar(*row)


def check_signals(lab: Lab) -> None:
    """The signals are those that the stored bars give, and what was published of them says so."""
    lab.run("verify", "--signals", "--strict")
    rows = lab.query(f"SELECT provider, symbol, {lab.store.start_ns}, name, state FROM signals")
    stored = {(p, s, int(t), n): state for p, s, t, n, state in rows}
    assert len(stored) == len(rows), "duplicate rows"
    assert "active" in stored.values()
    published = {}
    for name in topic_names(lab):
        if name == SIGNALS or name.startswith(f"{SIGNALS}."):
            for record in (r for part in read_topic(lab, name).records for r in part):
                signal = Signal.decode(record.payload)
                published[signal.key] = signal.state
    assert published == stored


def check_files(lab: Lab) -> None:
    """Every file of the deployment is a sound database."""
    for file in lab.files:
        assert file.query("PRAGMA integrity_check") == [("ok",)], file.path
