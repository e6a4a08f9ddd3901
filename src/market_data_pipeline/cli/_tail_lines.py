"""Records of any topic as lines of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from market_data_core import bars, deadletters
from market_data_core.bars import VALUE_COLUMNS, BarBatch
from market_data_core.deadletters import decode_letters
from market_data_core.errors import RejectedError
from market_data_core.events import EventBatch, Rejected, StreamEvent, format_ts
from market_data_core.feedback import decode_feedback
from market_data_core.records import Record
from market_data_core.signals import Signal
from market_data_pipeline import letters
from market_data_pipeline.bus import codec

Item = tuple[Any, str, str]
"""Something ready for JSON, its provider and its symbol, "" where it has none."""


class Lines:
    """Turns records into lines, whatever the topic holds.

    Args:
        symbols: only what concerns one of these, upper case; None for everything.
        provider: only what comes from this feed; None for everything.
        marks: marks of time as well.
        raw: records undecoded, those that hold something of what is wanted.
        registry: topic whose records are JSON, shown as they are.
    """

    def __init__(
        self,
        symbols: frozenset[str] | None,
        provider: str | None,
        marks: bool,
        raw: bool,
        registry: str,
    ) -> None:
        self._symbols, self._provider = symbols, provider
        self._marks, self._raw, self._registry = marks, raw, registry

    def of(self, record: Record, topic: str) -> Iterator[bytes]:
        """The lines of one record of a topic."""
        every = self._symbols is None and self._provider is None
        items = _entered(record) if topic == self._registry else _items(record)
        if self._raw:
            if every or any(self._wanted(item) for item in items):
                yield msgspec.json.encode({"topic": topic, **_undecoded(record)})
            return
        for item in items:
            if self._wanted(item) and (self._marks or not _is_mark(item[0])):
                yield msgspec.json.encode(item[0])

    def _wanted(self, item: Item) -> bool:
        _, provider, symbol = item
        return self._provider in (None, provider) and (
            self._symbols is None or symbol in self._symbols
        )


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and "mark" in value


def _undecoded(record: Record) -> dict[str, object]:
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


def _entered(record: Record) -> Iterator[Item]:
    """What a record of the registry of generations says."""
    try:
        yield msgspec.json.decode(record.payload), "", ""
    except msgspec.MsgspecError:
        yield from _items(record)


def _items(record: Record) -> Iterator[Item]:
    """What a record holds."""
    payload = record.payload
    try:
        if payload.startswith(bars.MAGIC):
            yield from _bars(*BarBatch.decode(payload))
            return
        if payload.startswith(deadletters.MAGIC):
            yield from _letters(record)
            return
        if payload.startswith(letters.MAGIC):
            yield {"replay": letters.decode_replay(payload)}, "", ""
            return
        item = codec.decode(payload)
    except RejectedError as error:
        told = _signal(payload) or _feedback(payload)
        if told:
            yield told
            return
        item = Rejected(error.reason, str(error), payload)
    if isinstance(item, EventBatch):
        yield from ((event, event.provider, event.symbol) for event in item.events())
    elif isinstance(item, StreamEvent):
        yield item, item.provider, item.symbol.upper()
    elif isinstance(item, Rejected):
        fields = {"reason": item.reason, "detail": item.detail, "where": item.where}
        yield {"rejected": {**fields, "original": _text(item.original)}}, "", ""
    else:
        yield {"mark": item}, item.provider, ""


def _signal(payload: bytes) -> Item | None:
    try:
        signal = Signal.decode(payload)
    except RejectedError:
        return None
    return msgspec.Raw(signal.encode()), signal.provider, signal.symbol


def _feedback(payload: bytes) -> Item | None:
    try:
        return msgspec.to_builtins(decode_feedback(payload)), "", ""
    except RejectedError:
        return None


def _bars(batch: BarBatch, version: int) -> Iterator[Item]:
    columns: dict[str, Any] = {name: getattr(batch, name).tolist() for name in VALUE_COLUMNS}
    columns |= {"vwap": batch.vwap_column(), "trade_count": batch.count_column()}
    for i, symbol in enumerate(batch.symbol_column()):
        fields = {
            "ver": 1,
            "provider": batch.provider,
            "symbol": symbol,
            "interval": batch.interval,
            "ts": format_ts(int(batch.ts[i])),
            **{name: values[i] for name, values in columns.items()},
            "state": batch.state,
            "version": version,
        }
        yield fields, batch.provider, symbol


def _letters(record: Record) -> Iterator[Item]:
    for i, letter in enumerate(decode_letters(record.payload)):
        fields = msgspec.structs.asdict(letter) | {
            "src_ts": format_ts(letter.src_ts) if letter.src_ts else None,
            "original": _text(letter.as_sent),
        }
        del fields["message"]
        yield {"id": f"{record.offset}.{i}", **fields}, letter.provider, letter.symbol
