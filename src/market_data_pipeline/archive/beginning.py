"""Where a new owner begins to archive, and what is missing before that."""

from __future__ import annotations

from typing import NamedTuple

import structlog
from msgspec.structs import replace

from market_data_core.contracts.bus import Bus
from market_data_core.records import Bounds, TopicInfo
from market_data_pipeline.archive.checkpoint import ArchiveCheckpoint

log = structlog.get_logger("archive")


class Beginning(NamedTuple):
    """Where to go on, and why the log is not what the checkpoint knows; "" if it is."""

    checkpoint: ArchiveCheckpoint
    cause: str = ""


async def beginning(
    bus: Bus, info: TopicInfo, partition: int, known: ArchiveCheckpoint | None, archive: str
) -> Beginning:
    """The checkpoint to go on from: as it was left, unless the log is not what it was.

    What is archived stays. Of a log whose end was lost, what was written in its place is archived
    from where the log ends now, or from the old position if that lies before.

    Args:
        bus: holds the log.
        info: the topic.
        partition: its number.
        known: what the last owner left.
        archive: id of the archive.
    """
    bounds = await bus.bounds(info.name, partition)
    if known is None:
        missed = await bus.received(info.name, partition, bounds.first)
        if missed:
            log.warning(
                "the log does not hold its beginning any more, the archive lacks it",
                topic=info.name,
                partition=partition,
                events=missed,
            )
        first = bounds.first
        return Beginning(
            ArchiveCheckpoint(
                archive=archive, log_id=info.log_id, position=first, begin=first, missed=missed
            )
        )
    cause, position = await _difference(bus, info, partition, known, bounds)
    if not cause:
        return Beginning(known)
    log.error(
        "the log may have lost events before they were archived",
        topic=info.name,
        partition=partition,
        cause=cause,
    )
    begin = known.begin if known.log_id == info.log_id else position
    left = replace(known, log_id=info.log_id, position=position, begin=begin, ended=False)
    return Beginning(replace(left, checksum=0, missed=None), cause)


async def _difference(
    bus: Bus, info: TopicInfo, partition: int, known: ArchiveCheckpoint, bounds: Bounds
) -> tuple[str, int]:
    """Why the log is not the one that was archived, "" if it is; and where to go on."""
    if known.log_id != info.log_id:
        return "it was replaced by another", bounds.first
    if bounds.first > known.position:
        return "it was trimmed", bounds.first
    if bounds.next < known.position:
        return "its end was lost", bounds.next
    if known.checksum and known.position > bounds.first:
        found = await bus.checksum(info.name, partition, known.position - 1)
        if found != known.checksum:
            return "its end was lost, and others were written in its place", known.position
    return "", known.position
