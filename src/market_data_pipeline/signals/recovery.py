"""Where a new owner begins, and what to do about a log of bars that is not what it was."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from market_data_core.contracts.bus import Bus
from market_data_core.records import TopicInfo
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
    renewed = msgspec.structs.replace(
        known, log_id=info.log_id, position=bounds.first, checksum=0, index={}
    )
    return Beginning(renewed, cause)
