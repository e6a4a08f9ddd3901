"""Where a new owner begins, and what to do about a log of bars that is not what it was."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Tables
from market_data_core.records import TopicInfo
from market_data_core.tables import BARS, Select
from market_data_pipeline.signals.checkpoint import SignalsCheckpoint


class Beginning(NamedTuple):
    """Where to go on, and why the log is not what the checkpoint knows; "" if it is."""

    checkpoint: SignalsCheckpoint
    cause: str = ""


async def beginning(
    bus: Bus, info: TopicInfo, partition: int, known: SignalsCheckpoint | None
) -> Beginning:
    """The checkpoint to go on from: as it was left, or where a log begins that is another one.

    Bars are in the store before they are in this log, so that nothing is lost with it.
    """
    bounds = await bus.bounds(info.name, partition)
    if known is None:
        return Beginning(SignalsCheckpoint(log_id=info.log_id, position=bounds.first))
    same = known.log_id == info.log_id
    cause = "" if same else "log_replaced"
    if same and known.position < bounds.first:
        cause = "log_trimmed"
    elif same and bounds.next < known.position:
        cause = "log_tail_lost"
    elif same and known.position > bounds.first:
        found = await bus.checksum(info.name, partition, known.position - 1)
        cause = "" if (found or 0) == known.checksum else "log_diverged"
    if not cause:
        return Beginning(known)
    renewed = msgspec.structs.replace(known, log_id=info.log_id, position=bounds.first, checksum=0)
    return Beginning(renewed, cause)


async def lost_spans(
    store: Tables, provider: str, interval: str, since: int
) -> dict[str, tuple[int, int]]:
    """Symbol -> starts of the first and last bar stored since a time, UTC ns."""
    import polars as pl

    where = {"provider": [provider], "interval": [interval]}
    frame = await store.select(Select(BARS, where, start=since))
    ts = pl.col("ts").to_physical()
    spans = frame.group_by("symbol").agg(ts.min().alias("first"), ts.max().alias("last"))
    return {symbol: (first, last) for symbol, first, last in spans.iter_rows()}
