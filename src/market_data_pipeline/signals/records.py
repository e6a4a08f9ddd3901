"""The records of the topic of bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import structlog

from market_data_core.bars import MAGIC, BarBatch
from market_data_core.errors import RejectedError
from market_data_core.records import Record
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
