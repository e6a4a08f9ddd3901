"""The number of partitions changes while feeds run, workers die and producers sleep."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import pytest
from tests.faults import checks
from tests.faults.lab import EVENTS, LETTERS, Lab, Worker, wait_until

from market_data_core.clock import SystemClock
from market_data_core.contracts.bus import Bus
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.events import StreamEvent, format_ts, parse_ts
from market_data_core.intervals import NS_PER_S, parse_interval
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Record
from market_data_core.testing.oracle import LogItem, OracleBar, OracleEvent, batch_bars
from market_data_pipeline.generations import Generations
from market_data_pipeline.timeline import Generation
from market_data_pipeline.windows.checkpoint import Counts

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

DEPLOYMENTS = ("embedded-sqlite", "kafka-postgres")
PARTITIONS = 4

SYMBOLS = [f"S{number:02d}" for number in range(24)]
WINDOWS = ("2s", "4s")
LIVE = {"symbols": SYMBOLS, "tick_rate": 10}


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    quick = {"revise_horizon_ms": 2_000, "max_future_ms": 500}
    return make_lab(micro_batch=quick, synthetic=LIVE, windows=WINDOWS)


# ---- looking ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """One generation as the bus holds it, with what the store says of it."""

    home: Generation
    items: list[list[LogItem]]

    def own(self, partition: int) -> list[OracleEvent]:
        """Events of a partition that belong there, in log order."""
        events = [e for e in self.items[partition] if isinstance(e, OracleEvent)]
        return [e for e in events if self.at_home(e, partition)]

    def at_home(self, event: OracleEvent, partition: int) -> bool:
        here = partition_of(event.symbol, self.home.partitions) == partition
        return here and self.home.from_ts <= event.src_ts < self.home.until


def generations(lab: Lab) -> Sequence[Generation]:
    """What the registry tells."""

    async def look(bus: Bus) -> Sequence[Generation]:
        return (await Generations(bus, EVENTS, SystemClock()).look(PARTITIONS)).generations

    return lab.topics.ask(look)


def records(lab: Lab, topic: str) -> list[list[Record]]:
    """All that a topic holds, by partition."""
    return checks.read_topic(lab, topic).records


def letters(lab: Lab) -> list[DeadLetter]:
    return [x for part in records(lab, LETTERS) for r in part for x in decode_letters(r.payload)]


def unread(lab: Lab, topic: str) -> int:
    """Records that no checkpoint counts."""
    places = checks.checkpoints(lab, topic)
    return sum(
        record.offset >= (places[number].counted if number in places else 0)
        for number, part in enumerate(records(lab, topic))
        for record in part
    )


def is_sealed(lab: Lab, topic: str) -> bool:
    places = checks.checkpoints(lab, topic).values()
    return not unread(lab, topic) and not any(place.holds_events for place in places)


def check(lab: Lab, produced: int) -> None:
    """Bars are those of a batch computation over all logs, and no event is missing or twice."""
    logs = [
        Log(g, [list(checks.log_items(part)) for part in records(lab, g.topic)])
        for g in generations(lab)
    ]
    aside = Counter(
        (x.topic, e.symbol, e.provider, parse_ts(e.src_ts), e.seq)
        for x in letters(lab)
        for e in [msgspec.json.decode(x.original, type=StreamEvent)]
    )
    assert {x.reason for x in letters(lab)} <= {"late"}
    total, expected = Counts(), {}
    for log in logs:
        topic, places = log.home.topic, checks.checkpoints(lab, log.home.topic)
        assert not unread(lab, topic)
        for number in range(log.home.partitions):
            own = log.own(number)
            counts = places[number].counts
            assert counts.holds(), counts
            assert counts.received == len(own), (topic, number)
            assert (counts.dead_lettered, counts.lost, counts.deduplicated) == (0, 0, 0)
            total.add(counts)
            kept = [e for e in own if not aside[topic, e.symbol, e.provider, e.src_ts, e.seq]]
            assert len(own) - len(kept) == counts.late
            closed = {s.provider: s.closed for s in places[number].streams}
            for window in WINDOWS:
                length = parse_interval(window)
                for (provider, symbol, ts), bar in batch_bars(kept, length).items():
                    if ts + length <= closed[provider]:
                        key = provider, symbol, window, ts
                        assert key not in expected, "a window in two generations"
                        expected[key] = bar
    assert total.received == produced
    ids = [e.key for log in logs for n in range(log.home.partitions) for e in log.own(n)]
    assert len(ids) == len(set(ids)) == produced
    assert checks.stored_bars(lab) == expected
    check_published(lab, expected)


def check_published(lab: Lab, expected: dict[checks.StoredKey, OracleBar]) -> None:
    """The latest version of every bar is on the topic, all of a symbol's in one partition."""
    from market_data_core.bars import BarBatch

    latest: dict[checks.StoredKey, tuple[int, OracleBar]] = {}
    for number, part in enumerate(records(lab, "mdp.bars")):
        for record in part:
            batch, version = BarBatch.decode(record.payload)
            assert {partition_of(s, PARTITIONS) for s in batch.symbols} == {number}
            for key, bar in checks._rows(batch):
                assert key not in latest or latest[key][0] != version, f"published twice: {key}"
                latest[key] = max(latest.get(key, (0, bar)), (version, bar))
    assert lab.query("SELECT count(*) FROM outbox") == [(0,)]
    assert {key: bar for key, (_, bar) in latest.items()} == expected


# ---- doing ------------------------------------------------------------------------------------


def publish(lab: Lab, topic: str, partition: int, events: Sequence[StreamEvent]) -> None:
    """Append events as somebody does who knows nothing of partitions and generations."""

    entries = [Entry(partition, msgspec.json.encode(event), 1) for event in events]
    lab.topics.ask(lambda bus: bus.append(topic, entries))


def foreign(symbol: str, src_ts: int, seq: int) -> StreamEvent:
    ts = format_ts(src_ts)
    return StreamEvent(
        ver=1, provider="foreign", symbol=symbol, src_ts=ts, o=1.0, h=1.0, l=1.0, c=1.0, v=1.0,
        seq=seq, event_id=f"foreign|{symbol}|{ts}|{seq}",
    )  # fmt: skip


def repartition(lab: Lab, partitions: int, *at: str) -> Generation:
    told = lab.run("stream", "repartition", "--partitions", str(partitions), *at)
    newest = generations(lab)[-1]
    assert format_ts(newest.from_ts) in told
    assert newest.topic in told
    assert newest.partitions == partitions
    return newest


def wait_till(ts: int, what: str) -> None:
    wait_until(lambda: SystemClock().now_ns() >= ts, what, 60)


def written(producer: Worker) -> int:
    found = re.search(r"([\d,]+) events written", producer.output)
    assert found, producer.output
    return int(found[1].replace(",", ""))


def wait_stored(lab: Lab, topic: str) -> None:
    sql = f"SELECT count(*) FROM partitions WHERE topic = '{topic}' AND checkpoint IS NOT NULL"
    count = next(g.partitions for g in generations(lab) if g.topic == topic)
    wait_until(lambda: lab.number(sql) == count, f"all partitions of {topic} are counted")


def test_partitions_change_while_feeds_run_and_processes_die(lab: Lab) -> None:
    feeds = [
        lab.start("stream", "produce", config=lab.config(name=name)) for name in ("one", "two")
    ]
    workers = [lab.start("stream", "micro-batch") for _ in range(2)]
    wait_until(lambda: lab.number("SELECT count(*) FROM bars_ohlcv") > 20, "bars")
    feeds[1].send(signal.SIGSTOP)  # it learns of the change when it is long over
    grid = max(map(parse_interval, WINDOWS))
    begins = (SystemClock().now_ns() + 45 * NS_PER_S) // grid * grid  # commands take their time
    second = repartition(lab, 7, "--at", format_ts(begins))
    assert second.from_ts == begins
    assert "nothing to do" in lab.run("stream", "repartition", "--partitions", "7")
    told = lab.run("stream", "repartition", "--partitions", "5", code=2)
    assert f"begins at {format_ts(second.from_ts)}" in told
    wait_till(second.from_ts - NS_PER_S // 2, "the change is near")
    assert workers[0].kill()
    wait_till(second.from_ts + NS_PER_S // 2, "the change")
    workers[0] = lab.start("stream", "micro-batch")
    feeds[1].send(signal.SIGCONT)
    wait_stored(lab, second.topic)
    # whoever knows only the first topic, and somebody whose clock is behind
    publish(lab, EVENTS, 3, [foreign(s, second.from_ts + i, 1) for i, s in enumerate(SYMBOLS)])
    publish(
        lab, second.topic, 0, [foreign(s, second.from_ts - 1 - i, 2) for i, s in enumerate(SYMBOLS)]
    )
    wait_until(lambda: is_sealed(lab, EVENTS), "the first generation is sealed", 40)
    third = repartition(lab, 2)
    assert (third.number, third.topic) == (3, f"{EVENTS}-g3")
    wait_till(third.from_ts, "the second change")
    assert workers[1].kill()
    workers[1] = lab.start("stream", "micro-batch")
    wait_stored(lab, third.topic)
    wait_until(lambda: is_sealed(lab, second.topic), "the second generation is sealed", 40)
    for feed in feeds:
        feed.stop()
    wait_until(lambda: not unread(lab, third.topic), "all is read")
    for worker in workers:
        worker.stop()
    produced = sum(map(written, feeds)) + 2 * len(SYMBOLS)
    forwarded = sum(
        c.forwarded for g in generations(lab) for c in checks.checkpoints(lab, g.topic).values()
    )
    # and whatever the feed that slept wrote before it looked again, which may be nothing
    assert forwarded >= 2 * len(SYMBOLS)
    check(lab, produced)
    assert "no difference" in lab.run("verify")
    assert lab.run("conservation").count(" yes") == PARTITIONS + 7 + 2 + 1
