"""``mdp stream tail``: the last of what a topic holds, one JSON object a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_core.config import Settings
    from market_data_core.contracts.bus import Bus
    from market_data_core.records import Record, TopicInfo

_POLL_BYTES = 8 << 20
_FOLLOW_S = 0.5
_FIRST_RECORDS = 16


def tail(
    topic: Annotated[str, typer.Option(help="Topic to read.")] = "mdp.events",
    limit: Annotated[int, typer.Option(help="How many of the last lines.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    symbol: Annotated[str | None, typer.Option(help="Only this symbol, in any case.")] = None,
    partition: Annotated[int | None, typer.Option(help="Only this partition.")] = None,
    marks: Annotated[bool, typer.Option("--marks", help="Marks of time as well.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Records as they stand in the log, undecoded.")
    ] = False,
    config: _output.ConfigOption = None,
) -> None:
    """The last events, bars or dead letters of a topic as JSON lines."""
    _output.check_limit(limit)
    chosen = _Lines(symbol.strip().upper() if symbol else None, marks, raw)
    settings = _output.load_settings(config)
    _output.run_async(_tail(settings, topic, partition, limit, follow, chosen))


async def _tail(
    settings: Settings,
    topic: str,
    partition: int | None,
    limit: int,
    follow: bool,
    chosen: _Lines,
) -> None:
    from market_data_pipeline.backends import open_bus

    bus = open_bus(settings)
    try:
        if follow:
            await _wait_for(bus, settings, topic)
        info = await _topic(bus, topic)
        numbers = _partitions(info, partition)
        lines: list[tuple[tuple[int, int, int, int], bytes]] = []
        positions = {}
        for number in numbers:
            positions[number] = (await bus.bounds(topic, number)).next
            lines += await _last(bus, topic, number, positions[number], limit, chosen)
        lines.sort(key=lambda line: line[0])
        _output.write_lines(line for _, line in lines[-limit:])
        while follow:
            found = await bus.poll(topic, positions, _POLL_BYTES, _FOLLOW_S)
            for number, records in found.items():
                positions[number] = records[-1].offset + 1
                _output.write_lines(line for r in records for line in chosen.of(r))
    finally:
        await bus.close()


async def _wait_for(bus: Bus, settings: Settings, name: str) -> None:
    """A topic that a stage will create is waited for, so that tail can be started first."""
    import asyncio

    from market_data_core.feedback import FEEDBACK_TOPIC
    from market_data_pipeline.assembly import LETTERS_TOPIC

    made = (settings.bus.events_topic, settings.bus.bars_topic, LETTERS_TOPIC, FEEDBACK_TOPIC)
    if name in made:
        while await bus.find_topic(name) is None:  # noqa: ASYNC110  (another process makes it)
            await asyncio.sleep(_FOLLOW_S)


async def _topic(bus: Bus, name: str) -> TopicInfo:
    from market_data_core._suggest import did_you_mean
    from market_data_core.errors import UsageError

    info = await bus.find_topic(name)
    if info is None:
        names = [topic.name for topic in await bus.topics()]
        msg = f"there is no topic {name!r}; {did_you_mean(name, names)}"
        raise UsageError(msg)
    return info


def _partitions(info: TopicInfo, wanted: int | None) -> list[int]:
    from market_data_core.errors import UsageError

    if wanted is None:
        return list(range(info.partitions))
    if not 0 <= wanted < info.partitions:
        msg = f"--partition {wanted}: topic {info.name!r} has 0 to {info.partitions - 1}"
        raise UsageError(msg)
    return [wanted]


async def _last(
    bus: Bus, topic: str, partition: int, end: int, limit: int, chosen: _Lines
) -> list[tuple[tuple[int, int, int, int], bytes]]:
    """The last `limit` lines of a partition, each with its place in time.

    Reads backwards in growing steps, because how many lines a record gives is not known before.
    """
    first = (await bus.bounds(topic, partition)).first
    lines: list[tuple[tuple[int, int, int, int], bytes]] = []
    step = _FIRST_RECORDS
    while end > first and len(lines) < limit:
        start = position = max(first, end - step)
        block: list[tuple[tuple[int, int, int, int], bytes]] = []
        while position < end:
            records = (await bus.poll(topic, {partition: position}, _POLL_BYTES, 0))[partition]
            for record in records:
                if record.offset < end:
                    place = (record.append_ts, partition, record.offset)
                    block += [((*place, i), line) for i, line in enumerate(chosen.of(record))]
            position = records[-1].offset + 1
            block = block[-limit:]
        lines = (block + lines)[-limit:]
        end, step = start, step * 2
    return lines


class _Lines:
    """Turns records into lines, whatever the topic holds.

    Args:
        symbol: only what concerns this symbol; None for everything.
        marks: marks as well.
        raw: records undecoded.
    """

    def __init__(self, symbol: str | None, marks: bool, raw: bool) -> None:
        self._symbol, self._marks, self._raw = symbol, marks, raw

    def of(self, record: Record) -> Iterator[bytes]:
        """The lines of one record."""
        import msgspec

        if self._raw:
            yield msgspec.json.encode(_undecoded(record))
            return
        for item, symbol in _items(record):
            wanted = self._symbol in (None, symbol)
            if wanted and (self._marks or not (isinstance(item, dict) and "mark" in item)):
                yield msgspec.json.encode(item)


def _undecoded(record: Record) -> dict[str, object]:
    from market_data_core.events import format_ts

    return {
        "partition": record.partition,
        "offset": record.offset,
        "append_ts": format_ts(record.append_ts),
        "count": record.count,
        "payload": _text(record.payload),
    }


def _text(data: bytes) -> str:
    """Bytes as text: what is printable ASCII as it is, the rest escaped."""
    return repr(data)[2:-1]


def _items(record: Record) -> Iterator[tuple[Any, str]]:
    """What a record holds, ready for JSON, each with its symbol ("" for none)."""
    from market_data_core import bars, deadletters
    from market_data_core.errors import RejectedError
    from market_data_core.events import EventBatch, Rejected, StreamEvent
    from market_data_pipeline.bus import codec

    payload = record.payload
    try:
        if payload.startswith(bars.MAGIC):
            yield from _bars(*bars.BarBatch.decode(payload))
            return
        if payload.startswith(deadletters.MAGIC):
            yield from _letters(record)
            return
        item = codec.decode(payload)
    except RejectedError as error:
        told = _feedback(payload)
        if told:
            yield told, ""
            return
        item = Rejected(error.reason, str(error), payload)
    if isinstance(item, EventBatch):
        yield from ((event, event.symbol) for event in item.events())
    elif isinstance(item, StreamEvent):
        yield item, item.symbol.upper()
    elif isinstance(item, Rejected):
        fields = {"reason": item.reason, "detail": item.detail, "where": item.where}
        yield {"rejected": {**fields, "original": _text(item.original)}}, ""
    else:
        yield {"mark": item}, ""


def _feedback(payload: bytes) -> dict[str, Any] | None:
    from msgspec import to_builtins

    from market_data_core.errors import RejectedError
    from market_data_core.feedback import decode_feedback

    try:
        told: dict[str, Any] = to_builtins(decode_feedback(payload))
    except RejectedError:
        return None
    return told


def _bars(batch: Any, version: int) -> Iterator[tuple[dict[str, object], str]]:
    from market_data_core.bars import VALUE_COLUMNS
    from market_data_core.events import format_ts

    columns = {name: getattr(batch, name).tolist() for name in VALUE_COLUMNS}
    columns |= {"vwap": batch.vwap_column(), "trade_count": batch.count_column()}
    for i, symbol in enumerate(batch.symbol_column()):
        yield (
            {
                "ver": 1,
                "provider": batch.provider,
                "symbol": symbol,
                "interval": batch.interval,
                "ts": format_ts(int(batch.ts[i])),
                **{name: values[i] for name, values in columns.items()},
                "state": batch.state,
                "version": version,
            },
            symbol,
        )


def _letters(record: Record) -> Iterator[tuple[dict[str, object], str]]:
    import msgspec

    from market_data_core.deadletters import decode_letters
    from market_data_core.events import format_ts

    for i, letter in enumerate(decode_letters(record.payload)):
        fields = msgspec.structs.asdict(letter) | {
            "src_ts": format_ts(letter.src_ts) if letter.src_ts else None,
            "original": _text(letter.as_sent),
        }
        del fields["message"]
        yield {"id": f"{record.offset}.{i}", **fields}, letter.symbol
