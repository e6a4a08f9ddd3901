"""Quix Streams: a keyed tumbling window, driven without its broker.

Its windows are part of an application that reads from Kafka. Here the topic's description is filled
in by hand and the compiled dataframe is called row by row, as its consumer loop does, so neither
a broker nor decoding nor commits are counted: the figure is an upper bound. State is its own, in
RocksDB behind a cache that is never written out.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from time import perf_counter
from typing import Any

from benchmarks import servers
from benchmarks.contender import BarRow, Contender, Result, answer_of
from benchmarks.python_loop import bar_of
from benchmarks.servers import Messages
from benchmarks.workload import LATENESS_NS, SYMBOLS, WINDOW_NS, Cache

_NS_PER_MS = 1_000_000
_TOPIC = "ticks"
_QUIET_S = 15.0
Message = tuple[bytes, int, list[Any]]
"""Key, time in ms, and src_ts, seq, price, size."""


def _messages(cache: Cache) -> list[Message]:
    return [
        (
            event["symbol"].encode(),
            event["src_ts"] // _NS_PER_MS,
            [event["src_ts"], event["seq"], event["price"], event["size"]],
        )
        for event in cache.load().dicts()
    ]


def run(messages: list[Message]) -> Result:
    from quixstreams.context import MessageContext, set_message_context

    bars: list[BarRow] = []
    end_ms = max(ts for _, ts, _ in messages) + 3_600_000
    ends: list[Message] = [(symbol.encode(), end_ms, [0, 0, 0.0, 0.0]) for symbol in SYMBOLS]

    def close(window: Any, *_: Any) -> None:
        bars.append(bar_of([tuple(row) for row in window["value"]]))

    with tempfile.TemporaryDirectory() as directory:
        step = _compiled(directory, close)
        started = perf_counter()
        for offset, (key, ts, value) in enumerate([*messages, *ends]):
            context = MessageContext(topic=_TOPIC, partition=0, offset=offset, size=1)
            set_message_context(context)
            step(value, key, ts, None)
        seconds = perf_counter() - started
    return Result(seconds, answer_of(bars, len(messages) - sum(bar[6] for bar in bars)))


def _compiled(directory: str, close: Any) -> Any:
    """The dataframe as one function of (value, key, time in ms, headers)."""
    from quixstreams import Application
    from quixstreams.models.topics import Topic, TopicConfig

    application = Application(
        "127.0.0.1:9",  # never connected to
        consumer_group="bench",
        state_dir=directory,
        use_changelog_topics=False,
        loglevel=None,
    )
    topic = Topic(_TOPIC)
    retention = {"retention.ms": "3600000", "retention.bytes": "-1"}
    topic.broker_config = TopicConfig(1, 1, extra_config=retention)
    windows = (
        application.dataframe(topic)
        .tumbling_window(WINDOW_NS // _NS_PER_MS, LATENESS_NS // _NS_PER_MS)
        .collect()
        .final()
    )
    context = application._processing_context
    context.state_manager.on_partition_assign(windows.stream_id, 0, {})
    context.init_checkpoint()
    return windows.compose(sink=close)[_TOPIC]


def run_kafka(prepared: Messages) -> Result:
    """A whole application on a broker: single JSON messages in, bars to a Python function."""
    from quixstreams import Application

    bars: list[BarRow] = []

    def event_ms(value: Any, *_: Any) -> int:
        return int(datetime.fromisoformat(value["src_ts"]).timestamp() * 1_000)

    def row(value: Any) -> list[Any]:
        return [value[name] for name in ("src_ts", "seq", "c", "v")]  # times of equal width

    with servers.kafka() as broker, tempfile.TemporaryDirectory() as directory:
        servers.topic(broker)
        broker.fill(prepared.rows)
        application = Application(
            broker.address,
            consumer_group="bench",
            auto_offset_reset="earliest",
            state_dir=directory,
            use_changelog_topics=False,
            loglevel=None,
        )
        topic = application.topic(
            broker.topic, value_deserializer="json", timestamp_extractor=event_ms
        )
        windows = (
            application.dataframe(topic)
            .apply(row)
            .tumbling_window(WINDOW_NS // _NS_PER_MS, LATENESS_NS // _NS_PER_MS)
            .collect()
            .final(closing_strategy="partition")  # one message ends a partition's windows
        )
        started = done = perf_counter()

        def close(window: Any) -> None:
            nonlocal done
            bars.append(bar_of([tuple(r) for r in window["value"]]))
            done = perf_counter()

        windows.update(close)
        application.run(timeout=_QUIET_S)  # its count does not always come to an end
        seconds = done - started
    return Result(seconds, answer_of(bars, prepared.events - sum(bar[6] for bar in bars)))


CONTENDERS = (
    Contender(
        "quixstreams-kafka",
        "kafka",
        run_kafka,
        servers.messages,
        requires=("quixstreams",),
        optional=True,
        rounds_max=1,
        fresh=True,
        remark="from single JSON messages; nothing stored, float sums",
    ),
    Contender(
        "quixstreams",
        "engine",
        run,
        _messages,
        cores=1,
        requires=("quixstreams",),
        optional=True,
        rounds_max=2,
        fresh=True,
        remark="without broker, decoding and commits; float sums",
    ),
)
