"""Parts of the Kafka bus that need no broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from structlog.testing import capture_logs

from market_data_core import registry
from market_data_core.clock import SystemClock
from market_data_core.config import BusSettings, KafkaBusSettings
from market_data_core.errors import LogLostError, MdpError, TransientError, UsageError
from market_data_core.records import Entry, Record, TopicInfo
from market_data_core.redaction import redact_value
from market_data_pipeline.bus._kafka_appender import Append, Known
from market_data_pipeline.bus._kafka_browser import _joined
from market_data_pipeline.bus._kafka_bus import KafkaBus
from market_data_pipeline.bus._kafka_heads import (
    HEADER,
    Admission,
    Head,
    head_of,
    header_of,
    settled_by,
)
from market_data_pipeline.bus._kafka_link import Link
from market_data_pipeline.bus._kafka_member import Member
from market_data_pipeline.bus._kafka_reader import _Part

# ---- heads ---------------------------------------------------------------------------------


def message(headers: Any = None, value: bytes = b"x", offset: int = 0) -> Message:
    return Message("t", 0, offset, None, value, headers)


def test_a_head_comes_back() -> None:
    e = Entry(0, b"x", 3, "p", -5, 7, 9, "k")
    ((name, value),) = header_of(e, 77).items()
    assert head_of(message([("other", b"1"), (name, value)])) == Head(3, "p", -5, 7, 9, "k", 77)
    assert head_of(message(list(header_of(Entry(0, b"x", 0), 0).items()))) == Head(0)


@pytest.mark.parametrize("value", [b"", b"\x91\xff", b"\x91\xa1x", b"\xc1", None, b"\x80"])
def test_a_head_that_is_none_counts_as_one_event(value: bytes | None) -> None:
    """Also one that counts fewer than no events."""
    assert head_of(message([(HEADER, value)])) == Head(1)


def admitted(*heads: tuple[int, Head], admission: Admission | None = None) -> list[int]:
    found = admission or Admission()
    return [offset for offset, head in heads if found.admits(offset, head)]


def of(source: int, settled: int | None = None) -> Head:
    return Head(1, source=source, settled=source if settled is None else settled)


def test_what_the_log_has_all_of_already_has_no_effect() -> None:
    """However the messages of two feeders lie between each other, and wherever reading begins."""
    dead = [of(3), of(5), of(6), of(9)]  # what follows the 3 comes late
    heir = [of(5), of(6), of(9), of(11)]  # begins behind the 3
    mixed = list(enumerate([dead[0], heir[0], dead[1], dead[2], heir[1], dead[3], *heir[2:]]))
    assert admitted(*mixed) == [0, 1, 3, 5, 7]
    for begin in range(len(mixed)):
        found = admitted(*mixed[begin:])
        assert {5, 6, 9, 11} - {mixed[at][1].source for at in found} <= {
            head.source for _, head in mixed[:begin]
        }
    assert admitted((0, of(7)), (1, Head(1)), (2, of(7)), (3, Head(0))) == [0, 1, 3]


def test_an_append_that_was_cut_off_is_brought_again() -> None:
    """Nothing counts as there while something of the same append that begins before is to come."""
    cut, again = of(99, 1), [of(98, 2), of(99, 99), of(200, 200)]
    assert admitted((0, cut), *enumerate(again, 1)) == [0, 1, 2, 3]
    assert admitted(*enumerate([cut, of(98, 98), of(99, 1), of(98, 98), of(200, 200)])) == [
        0, 1, 2, 4,
    ]  # fmt: skip


def test_what_is_settled_by_each_entry() -> None:
    entries = [
        Entry(0, b"", source=100, begin=40), Entry(1, b"", source=60, begin=41),
        Entry(0, b"", source=51, begin=50), Entry(1, b"mark"), Entry(0, b"", source=73, begin=72),
    ]  # fmt: skip
    assert settled_by(entries) == [50, 60, 72, 0, 100]
    assert settled_by(entries[:1]) == [100]
    alike = [Entry(0, b"", source=9)] * 3
    assert settled_by(alike) == [0, 0, 9]


def test_a_key_has_effect_where_it_comes_first() -> None:
    """Also when it is read again from an earlier place."""
    heads = [(o, Head(1, key=key)) for o, key in enumerate("abacba")]
    admission = Admission()
    for begin in (0, 0, 2, 1, 0):
        expected = [o for o in (0, 1, 3) if o >= begin]
        admission.rewind()
        assert admitted(*heads[begin:], admission=admission) == expected
    late = Admission()
    assert admitted(*heads[2:], admission=late) == [2, 3, 4]
    assert admitted(*heads, admission=late) == [0, 1, 3]


# ---- appending -----------------------------------------------------------------------------


class FakeProducer:
    """Takes messages; the test says what becomes of them."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.sent: list[tuple[bytes, Callable[[KafkaError | None, Any], None]]] = []

    def produce(self, *message: Any, **more: Any) -> None:
        if len(self.sent) >= self.room:
            msg = "full"
            raise BufferError(msg)
        self.sent.append((message[1], more["on_delivery"]))

    def report(self, failing: bytes = b"") -> list[bytes]:
        """Confirm all but those whose payload is in `failing`; what was sent."""
        sent, self.sent = self.sent, []
        error = KafkaError(KafkaError._MSG_TIMED_OUT)
        for value, told in sent:
            told(error if value in failing else None, None)
        return [value for value, _ in sent]


def letters(text: str) -> list[Entry]:
    return [Entry(0, letter.encode(), 1) for letter in text]


async def test_only_what_failed_is_sent_again() -> None:
    """In its order, as often as it takes."""
    producer: Any = FakeProducer()
    entries = letters("abcdef")
    append = Append("t", entries, [0, 1, 3, 4, 5])
    for failing, sent in ((b"bef", b"abdef"), (b"e", b"bef"), (b"", b"e")):
        append.send(producer, 1)
        await asyncio.sleep(0)
        assert not append.done.is_set()
        assert b"".join(producer.report(failing)) == sent
        await asyncio.wait_for(append.done.wait(), 1)
        assert append.settled == (not failing)
        assert (append.error is not None) == bool(failing)
    append.send(producer, 1)
    assert producer.sent == []


async def test_a_full_line_is_gone_on_with() -> None:
    """What is in line is not put there twice."""
    producer: Any = FakeProducer(room=2)
    append = Append("t", letters("abc"), [0, 1, 2])
    with pytest.raises(BufferError):
        append.send(producer, 0.01)
    assert producer.report() == [b"a", b"b"]
    await asyncio.sleep(0)
    assert not append.done.is_set()
    append.send(producer, 0.01)
    assert producer.report() == [b"c"]
    await asyncio.wait_for(append.done.wait(), 1)
    assert append.settled


async def test_a_list_that_is_used_again_is_another_append() -> None:
    entries = letters("abc")
    append = Append("t", entries, [0, 1, 2])
    assert append.is_of("t", entries)
    assert not append.is_of("u", entries)
    entries[1] = Entry(0, b"x", 1)
    assert not append.is_of("t", entries)


def test_what_is_known_is_left_out() -> None:
    known = Known()
    entries = [
        Entry(0, b"", source=2), Entry(0, b"", source=2), Entry(1, b"", source=1),
        Entry(0, b"", key="k"), Entry(1, b"", key="k"), Entry(0, b""),
    ]  # fmt: skip
    assert known.new_of(entries) == [0, 1, 2, 3, 5]
    known.appended(entries)
    assert known.new_of([*entries, Entry(0, b"", source=3)]) == [5, 6]


# ---- reading -------------------------------------------------------------------------------


def offsets(part: _Part) -> list[int]:
    return [record.offset for records, _ in part.runs for record in records]


def run_of(first: int, last: int, size: int = 10) -> list[Record]:
    return [Record(0, offset, bytes(size), 0, 1) for offset in range(first, last + 1)]


def test_runs_of_others_are_taken_whole_or_not_at_all() -> None:
    part = _Part(2, 0, 20)
    assert not part.put_all(run_of(0, 3))  # what is before the position has to be looked at
    for offset in (0, 1):
        part.put(message(offset=offset))
    assert part.put_all(run_of(2, 5))
    assert not part.put_all(run_of(7, 9))  # 6 is missing
    assert not part.put_all([*run_of(6, 7), *run_of(9, 9)])
    assert part.put_all(run_of(6, 9))
    part.doubted = True
    assert not part.put_all(run_of(10, 11))
    assert (offsets(part), part.size, part.fetched) == (list(range(2, 10)), 80, 10)


def test_a_share_is_not_exceeded_but_by_a_single_record() -> None:
    part = _Part(0, 0, 20)
    for records in (run_of(0, 3), run_of(4, 5), run_of(6, 6, 50)):
        assert part.put_all(records)
    assert [r.offset for r in part.give(25)] == [0, 1]
    assert [r.offset for r in part.give(45)] == [2, 3, 4, 5]
    assert [r.offset for r in part.give(1)] == [6]
    assert (part.size, part.start, list(part.runs)) == (0, 7, [])


def test_going_on_further_behind_leaves_out_what_is_before() -> None:
    part = _Part(0, 0, 20)
    for records in (run_of(0, 3), run_of(4, 7)):
        assert part.put_all(records)
    part.skip_to(5)
    assert (offsets(part), part.size, part.start) == ([5, 6, 7], 30, 5)


def test_a_hole_is_believed_when_it_is_seen_twice() -> None:
    """So that nothing is passed over because of messages that came out of turn."""
    part = _Part(0, 0, 9)
    for offset in (0, 1, 4, 5):
        part.put(message(offset=offset))
    assert part.doubted
    assert offsets(part) == [0, 1]
    part.doubted = False  # it was fetched again, from 2 on
    for offset in (4, 5):
        part.put(message(offset=offset))
    assert not part.doubted
    assert offsets(part) == [0, 1, 4, 5]
    part.put(message(offset=7))
    part.doubted = False
    for offset in (6, 7):
        part.put(message(offset=offset))
    assert offsets(part) == [0, 1, 4, 5, 6, 7]


def test_ranges_that_are_near_are_fetched_at_once() -> None:
    assert _joined([]) == []
    assert _joined([(1, 2), (60, 70), (300, 300), (310, 400)]) == [(1, 70), (300, 400)]


# ---- options, errors and secrets -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no.such.option": 1}, "no.such.option"),
        ({"security.protocol": "both"}, "security.protocol"),
        ({"enable.idempotence": False}, "enable.idempotence has to be true"),
        ({"enable.gapless.guarantee": False}, "enable.gapless.guarantee has to be true"),
        ({"acks": 1}, "acks has to be all"),
        ({"batch.size": "many"}, "batch.size"),
        ({"enable.auto.commit": True}, "enable.auto.commit has to be false"),
        ({"isolation.level": "read_uncommitted"}, "isolation.level"),
        ({"bootstrap.servers": "x"}, "set by bus.kafka.bootstrap_servers"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    """At once, with the option's name."""
    settings = BusSettings(kafka=KafkaBusSettings(options=options))
    with pytest.raises(UsageError, match=message):
        registry.backend("bus", "kafka").create(settings, SystemClock())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._TRANSPORT, TransientError),
        (KafkaError.NOT_ENOUGH_REPLICAS, TransientError),
        (KafkaError.KAFKA_STORAGE_ERROR, TransientError),
        (KafkaError._LOG_TRUNCATION, LogLostError),
        (KafkaError._AUTO_OFFSET_RESET, LogLostError),
        (KafkaError.MSG_SIZE_TOO_LARGE, UsageError),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, UsageError),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, LogLostError),
    ],
)
def test_errors_in_the_platforms_words(code: int, kind: type[MdpError]) -> None:
    link = Link(KafkaBusSettings(bootstrap_servers="127.0.0.1:1"), "group")
    error = link.error(KafkaError(code, "password=secret1 is wrong"), "topic 't'")
    assert type(error) is kind
    assert "topic 't'" in str(error)
    assert "secret1" not in str(error)


def test_a_cluster_that_has_just_started_is_waited_for() -> None:
    """It knows its brokers, and does not trust them yet."""
    link = Link(KafkaBusSettings(bootstrap_servers="127.0.0.1:1"), "group")
    said = "Unable to replicate the partition 1 time(s): All brokers are currently fenced."
    error = link.error(KafkaError(KafkaError.INVALID_REPLICATION_FACTOR, said), "topic 't'")
    assert type(error) is TransientError
    said = "Replication factor: 3 larger than available brokers: 1."
    error = link.error(KafkaError(KafkaError.INVALID_REPLICATION_FACTOR, said), "topic 't'")
    assert type(error) is UsageError


def test_secrets_among_the_options_are_not_shown() -> None:
    options = {
        "sasl.password": "s1", "ssl.key.password": "s2", "ssl.key.pem": "s3",
        "sasl.oauthbearer.client.secret": "s4", "ssl.keystore.password": "s5",
        "sasl.username": "shown",
    }  # fmt: skip
    settings = KafkaBusSettings(options=options)
    shown = redact_value("kafka", settings.model_dump())
    assert isinstance(shown, dict)
    assert set(shown["options"].values()) == {"***", "shown"}
    assert not [s for s in ("s1", "s2", "s3", "s4", "s5") if s in repr(settings)]


# ---- members -------------------------------------------------------------------------------


class FailingOnce:
    """A consumer whose first poll fails, as where a rebalance comes to nothing."""

    failures = 1

    def subscribe(self, *_: Any, **__: Any) -> None: ...

    def poll(self, timeout_s: float) -> None:
        time.sleep(timeout_s)
        if FailingOnce.failures:
            FailingOnce.failures -= 1
            raise KafkaException(KafkaError(KafkaError._STATE))

    def close(self) -> None: ...


def test_a_member_outlives_a_failing_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so once, and joins again; else its worker would wait for partitions for ever."""
    link = Link(KafkaBusSettings(timeout_ms=1_000), "g")
    made: list[FailingOnce] = []

    def consumer(**_: str) -> FailingOnce:
        made.append(FailingOnce())
        return made[-1]

    monkeypatch.setattr(link, "consumer", consumer)
    member = Member(link, "t", "g")
    try:
        deadline = time.monotonic() + 5
        while len(made) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(TransientError, match="group 'g'"):
            member.partitions()
        assert member.partitions() == frozenset()
        assert len(made) == 2
    finally:
        member.leave()


async def test_a_producer_that_cannot_be_made_ready_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a line without secrets; nobody waits for it."""
    bus = KafkaBus(BusSettings(kafka=KafkaBusSettings(bootstrap_servers="127.0.0.1:1")))

    def prepare(_: str) -> None:
        raise RuntimeError("password=secret1 is wrong")

    monkeypatch.setattr(bus._topics, "create", lambda name, count: TopicInfo(name, "id", count))
    monkeypatch.setattr(bus._appender, "prepare", prepare)
    with capture_logs() as lines:
        await bus.create_topic("t", 1)
        async with asyncio.timeout(5):
            while not lines:
                await asyncio.sleep(0.001)
    await bus.close()
    assert "made ready" in lines[0]["event"]
    assert "is wrong" in lines[0]["error"]
    assert "secret1" not in lines[0]["error"]
