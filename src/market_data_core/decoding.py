"""Records as what they hold; single events that follow each other as batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from market_data_core.contracts.bus import Codec
from market_data_core.errors import RejectedError
from market_data_core.events import REASONS, SRC_TS_MAX, EventBatch, Rejected, StreamEvent
from market_data_core.records import Mark, Record
from market_data_core.text.event_runs import Built, event_runs
from market_data_core.wire import BatchBuilder

Refused = tuple[Record, Rejected, StreamEvent | None]
"""A record, why it cannot be used, and the event in it if that was understood."""


@dataclass(frozen=True, slots=True)
class Singles:
    """Single events of records that follow each other.

    Attributes:
        batches: one a stream, each with the record of every row.
        refused: records whose events cannot be used.
    """

    batches: Sequence[tuple[EventBatch, Sequence[Record]]]
    refused: Sequence[Refused]


def latest_of(record: Record, max_future_ns: int | None) -> int:
    """Greatest time that is believed of a record, UTC ns; measured against its append, not now."""
    return SRC_TS_MAX if max_future_ns is None else record.append_ts + max_future_ns


class Decoder:
    """Reads records of one partition.

    Args:
        codec: how payloads are read.
        max_future_ns: how far ahead of its append a single event may be; None for no bound.
    """

    def __init__(self, codec: Codec, max_future_ns: int | None = None) -> None:
        self._codec, self._max_future_ns = codec, max_future_ns
        self._builder = BatchBuilder()
        self._singles: list[Record] = []
        self._refused: list[Refused] = []

    def items(
        self, records: Sequence[Record]
    ) -> Iterator[tuple[Sequence[Record], Singles | EventBatch | Mark | Rejected]]:
        """Records in log order, at least one at a time, and what they hold."""
        for run, built in event_runs(records, self._max_future_ns):
            if built is None:
                for record in run:
                    item = self._decoded(record)
                    if item is not None:
                        yield from self._held()
                        yield (record,), item
            else:
                yield from self._held()
                yield run, self._singles_of(built)
        yield from self._held()

    def _decoded(self, record: Record) -> EventBatch | Mark | Rejected | None:
        """What a record holds; None for a single event, which is kept until the next other item."""
        try:
            item = self._codec.decode(record.payload)
        except RejectedError as error:
            return Rejected(error.reason, str(error), record.payload)
        if not isinstance(item, StreamEvent):
            return item
        self._singles.append(record)
        try:
            latest = latest_of(record, self._max_future_ns)
            self._builder.add(item, record.append_ts, record, latest)
        except RejectedError as error:
            why = Rejected(error.reason, str(error), record.payload)
            self._refused.append((record, why, item))
        return None

    def _held(self) -> Iterator[tuple[Sequence[Record], Singles]]:
        if self._singles:
            singles, self._singles = self._singles, []
            refused, self._refused = self._refused, []
            built = self._singles_of(self._builder.build_with_tokens())
            yield singles, Singles(built.batches, [*refused, *built.refused])

    def _singles_of(self, built: Built) -> Singles:
        batches, rejected = built
        return Singles(batches, [self._refusal(record, why) for record, why in rejected])

    def _refusal(self, record: Record, reason: str) -> Refused:
        item = self._codec.decode(record.payload)
        event = item if isinstance(item, StreamEvent) else None
        return record, Rejected(reason, REASONS[reason], record.payload), event
