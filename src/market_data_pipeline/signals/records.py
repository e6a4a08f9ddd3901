"""The records of the topic of bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import structlog

from market_data_core.bars import MAGIC, BarBatch
from market_data_core.errors import RejectedError
from market_data_core.records import Record
from market_data_pipeline.signals.checkpoint import Key
from market_data_pipeline.signals.observe import SignalsObserver

log = structlog.get_logger("inference")


def bars_of(
    records: Iterable[Record], topic: str, observer: SignalsObserver
) -> Iterator[tuple[BarBatch, int]]:
    """The batches of bars in records of `topic`, each with its version.

    What cannot be read is told, and passed over.
    """
    for record in records:
        try:
            if not record.payload.startswith(MAGIC):
                raise RejectedError(reason="malformed", message="not a batch of bars")
            batch, version = BarBatch.decode(record.payload)
        except RejectedError as error:
            log.warning(
                "a record among the bars cannot be read, and is passed over",
                topic=topic,
                partition=record.partition,
                offset=record.offset,
                error=str(error),
            )
            observer.error(error.reason)
            continue
        if len(batch):
            yield batch, version


class Polled:
    """Records that were read of some partitions, and the bars in them.

    Args:
        records: by partition.
        topic: of which.
        observer: counts what cannot be read.

    Attributes:
        records: by partition.
    """

    def __init__(
        self, records: Mapping[int, Sequence[Record]], topic: str, observer: SignalsObserver
    ) -> None:
        self.records = dict(records)
        self._bars = {n: list(bars_of(some, topic, observer)) for n, some in records.items()}

    def drop(self, number: int) -> None:
        """Leave a partition out."""
        self.records.pop(number, None)
        self._bars.pop(number, None)

    def batches(self) -> dict[Key, list[tuple[BarBatch, int]]]:
        """The batches, with their versions, of each kind."""
        found: dict[Key, list[tuple[BarBatch, int]]] = {}
        for some in self._bars.values():
            for batch, version in some:
                found.setdefault((batch.provider, batch.interval), []).append((batch, version))
        return found

    def reached(self, number: int, before: Mapping[Key, int]) -> dict[Key, int]:
        """Start of the newest bar of each kind in a partition, UTC ns, these and those before."""
        found = dict(before)
        for batch, _ in self._bars[number]:
            key, last = (batch.provider, batch.interval), int(batch.ts.max())
            found[key] = max(found.get(key, last), last)
        return found
