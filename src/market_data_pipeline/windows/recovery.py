"""What is checked of a log: by a new owner, whether it is what it was; at its end, its count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import structlog

from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Gap
from market_data_core.records import Bounds, Mark, Record, TopicInfo
from market_data_pipeline.windows.assigner import NEVER, floor_to
from market_data_pipeline.windows.checkpoint import Checkpoint, StreamState

log = structlog.get_logger("recovery")


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where to go on, and what is missing.

    Attributes:
        checkpoint: to go on from.
        gaps: for the ledger; empty if nothing was lost.
        cause: why something is missing; empty if nothing was lost.
        lost: events that were read, or only appended, and are in no bar.
    """

    checkpoint: Checkpoint
    gaps: list[Gap] = field(default_factory=list)
    cause: str = ""
    lost: int = 0


async def recover(
    bus: Bus, info: TopicInfo, partition: int, checkpoint: Checkpoint | None, base_ns: int
) -> Recovered:
    """Compare the checkpoint with the log it was made from.

    If the log was replaced, cut short, or trimmed past what still had to be read, bars that were
    stored stay as they are: their windows are fenced off. What was read but not stored is lost,
    and windows that hold some of it are marked.
    """
    bounds = await bus.bounds(info.name, partition)
    if checkpoint is None:
        return Recovered(await _first(bus, info, partition, bounds))
    cause = await loss(bus, info, partition, checkpoint)
    if not cause:
        return Recovered(checkpoint)
    counted, at = await _restart(bus, info, partition, checkpoint, bounds)
    counts = msgspec.structs.replace(checkpoint.counts)
    seen = counts.received - checkpoint.received_before + checkpoint.forwarded
    same = checkpoint.log_id == info.log_id
    unread = max(0, at - seen) if same else 0
    lost = counts.open + unread
    counts.received += unread
    counts.lost += lost
    counts.open = 0
    gaps = [
        Gap(s.provider, "*", *_span(s, base_ns), cause, f"{info.name}, partition {partition}")
        for s in checkpoint.streams
        if s.kind == "tick" and s.greatest > NEVER
    ]
    renewed = Checkpoint(
        log_id=info.log_id,
        resume=counted,
        counted=counted,
        checksum=await bus.checksum(info.name, partition, counted - 1) or 0,
        received_before=counts.received + checkpoint.forwarded - at,
        forwarded=checkpoint.forwarded,
        ended=checkpoint.ended and same,
        bars=checkpoint.bars,
        counts=counts,
        streams=[_fenced(s, base_ns) for s in checkpoint.streams],
    )
    return Recovered(renewed, gaps, cause, lost)


def tell_losses(topic: str, found: Mapping[int, Recovered]) -> bool:
    """Log what partitions of a topic have lost, one line for each cause; whether there was any."""
    causes = {recovered.cause for recovered in found.values()} - {""}
    for cause in sorted(causes):
        hit = {number: r.lost for number, r in found.items() if r.cause == cause}
        log.error(
            "the log has lost events",
            topic=topic,
            partitions=sorted(hit),
            cause=cause.replace("_", " "),
            lost=sum(hit.values()),
            message="events that were in no bar yet are lost, stored bars stay as they are, "
            "and the gap ledger has the rest",
        )
    return bool(causes)


async def loss(bus: Bus, info: TopicInfo, partition: int, checkpoint: Checkpoint) -> str:
    """Why the log is not the one the checkpoint knows, as a cause of a gap; empty if it is."""
    if checkpoint.log_id != info.log_id:
        return "log_replaced"
    bounds = await bus.bounds(info.name, partition)
    if bounds.next < checkpoint.counted:
        return "log_tail_lost"
    if bounds.first > checkpoint.resume:
        return "log_trimmed"
    if checkpoint.counted > bounds.first:
        found = await bus.checksum(info.name, partition, checkpoint.counted - 1)
        if found != checkpoint.checksum:
            return "log_diverged"
    return ""


async def _first(bus: Bus, info: TopicInfo, partition: int, bounds: Bounds) -> Checkpoint:
    """Where a new group begins: at the oldest record kept; what was before is not its business."""
    at = await _received_before(bus, info, partition, bounds.first, bounds)
    return Checkpoint(
        log_id=info.log_id,
        resume=bounds.first,
        counted=bounds.first,
        received_before=-at,
    )


async def _received_before(
    bus: Bus, info: TopicInfo, partition: int, offset: int, bounds: Bounds
) -> int:
    """Events that the log received before the record at `offset`."""
    if offset == bounds.next:
        return bounds.received
    found = await bus.poll(info.name, {partition: offset}, 1, 0)
    return found[partition][0].received


async def _restart(
    bus: Bus, info: TopicInfo, partition: int, checkpoint: Checkpoint, bounds: Bounds
) -> tuple[int, int]:
    """Position to go on from, and the events the log received before it."""
    if checkpoint.log_id == info.log_id:
        if bounds.first <= checkpoint.resume:
            return bounds.next, bounds.received  # tail lost or diverged: go on behind what is there
        start = max(bounds.first, checkpoint.counted)
    else:
        start = bounds.first
    return start, await _received_before(bus, info, partition, start, bounds)


def _span(state: StreamState, base_ns: int) -> tuple[int, int]:
    """From the first window that was not stored to the end of the last one begun."""
    last = floor_to(state.greatest, base_ns)
    start = state.closed if state.closed > NEVER else last
    return min(start, last), last + base_ns


def _fenced(state: StreamState, base_ns: int) -> StreamState:
    if state.kind != "tick" or state.greatest <= NEVER:
        return state
    taint = max(state.taint, floor_to(state.greatest, base_ns) + base_ns)
    fence = max(state.fence, state.closed)
    return msgspec.structs.replace(state, fence=fence, taint=taint)


def tell_difference(topic: str, end: Mark, record: Record) -> None:
    """Log an error if a recording's log holds other events than its feeder has read.

    Args:
        topic: the recording's.
        end: its end mark, with the feeder's count.
        record: the mark's record, with the log's.
    """
    if end.count is not None and end.count != record.received:
        log.error(
            "the log and its recording differ in events; those that the log lacks are lost to "
            "the bars, those that it has twice are counted as duplicates",
            topic=topic,
            partition=record.partition,
            recording=end.count,
            log=record.received,
        )
