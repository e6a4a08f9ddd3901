"""Messages of others that know nothing of partitions, sorted into those of their symbols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from market_data_core.decoding import Decoder, Singles
from market_data_core.errors import RejectedError
from market_data_core.events import EventBatch, Rejected, StreamEvent, parse_ts
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Record
from market_data_pipeline.bus import codec


def sorted_out(records: Sequence[Record], partitions: int) -> list[Entry]:
    """Entries that carry what stands in the records, each in the partition of its symbols.

    Single events are put together in columns. What cannot be read goes to partition 0 as it is,
    where it is set aside and counted like any other.
    """
    entries: list[Entry] = []
    for read, item in Decoder(codec).items(records):
        if isinstance(item, Singles):
            for batch, _ in item.batches:
                entries += _by_owner(batch, partitions)
            entries += [Entry(0, record.payload, 1) for record, _, _ in item.refused]
        elif isinstance(item, EventBatch):
            entries += _by_owner(item, partitions)
        elif isinstance(item, Rejected):
            entries.append(Entry(0, read[0].payload, 1))
        else:  # only those who write to all partitions know what time it is
            refused = Rejected("bad_type", "a mark is of one partition", read[0].payload)
            entries.append(Entry(0, codec.encode_rejected(refused), 1))
    return entries


def _by_owner(batch: EventBatch, partitions: int) -> list[Entry]:
    owners = np.array([partition_of(s, partitions) for s in batch.symbols])[batch.codes]
    found = []
    for partition in np.unique(owners).tolist():
        part = batch.take(owners == partition)
        span = int(part.src_ts.min()), int(part.src_ts.max())
        found.append(Entry(partition, codec.encode_columns(part), len(part), part.provider, *span))
    return found


def span_of(payload: bytes) -> tuple[str, int, int, int] | None:
    """Provider, least and greatest src_ts (UTC ns) and number of events of a payload of others.

    Returns:
        None if it holds no event that can be read.
    """
    try:
        item = codec.decode(payload)
        if isinstance(item, StreamEvent):
            ts = parse_ts(item.src_ts)
            return item.provider, ts, ts, 1
    except RejectedError:
        return None
    if not isinstance(item, EventBatch):
        return None
    return item.provider, int(item.src_ts.min()), int(item.src_ts.max()), len(item)
