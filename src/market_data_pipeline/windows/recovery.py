"""What is checked of a log: by a new owner, whether it is what it was; at its end, its count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import structlog

from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Gap
from market_data_core.records import Bounds, TopicInfo
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
    same = checkpoint.log_id == info.log_id
    counted = _restart(cause, checkpoint, bounds) if same else bounds.first
    counts = msgspec.structs.replace(checkpoint.counts)
    seen = counts.received - checkpoint.received_before + checkpoint.forwarded if same else 0
    at = await bus.received(info.name, partition, counted)
    if at is None:  # the log cannot tell how much of it nobody has read
        at = seen
    unread = max(0, at - seen) if same else 0
    lost = counts.open + unread
    counts.received += unread
    counts.lost += lost
    counts.open = 0
    gaps = gaps_of(checkpoint.streams, base_ns, cause, f"{info.name}, partition {partition}")
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
        streams=[fenced(s, base_ns) for s in checkpoint.streams],
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
        if (found or 0) != checkpoint.checksum:
            return "log_tail_lost" if found is None else "log_diverged"
    return ""


async def _first(bus: Bus, info: TopicInfo, partition: int, bounds: Bounds) -> Checkpoint:
    """Where a new group begins: at the oldest record kept; what was before is not its business."""
    return Checkpoint(
        log_id=info.log_id,
        resume=bounds.first,
        counted=bounds.first,
        received_before=-(await bus.received(info.name, partition, bounds.first) or 0),
    )


def _restart(cause: str, checkpoint: Checkpoint, bounds: Bounds) -> int:
    """Position to go on from in a log that has lost something."""
    if cause == "log_diverged":
        return bounds.next  # other records have taken the places of those that were read
    if cause == "log_tail_lost":
        return min(bounds.next, checkpoint.counted)
    return max(bounds.first, checkpoint.counted)


def gaps_of(states: Iterable[StreamState], base_ns: int, cause: str, where: str) -> list[Gap]:
    """For the ledger: what the log has lost of the streams of one partition."""
    return [
        Gap(s.provider, "*", *_span(s, base_ns), cause, where)
        for s in states
        if s.kind == "tick" and s.greatest > NEVER
    ]


def _span(state: StreamState, base_ns: int) -> tuple[int, int]:
    """From the first window that was not stored to the end of the last one begun."""
    last = floor_to(state.greatest, base_ns)
    start = state.closed if state.closed > NEVER else last
    return min(start, last), last + base_ns


def fenced(state: StreamState, base_ns: int) -> StreamState:
    """The stream with its stored windows fenced off, and those marked that may lack something."""
    if state.kind != "tick" or state.greatest <= NEVER:
        return state
    taint = max(state.taint, floor_to(state.greatest, base_ns) + base_ns)
    fence = max(state.fence, state.closed)
    return msgspec.structs.replace(state, fence=fence, taint=taint)


def tell_difference(topic: str, partition: int, wanted: int | None, found: int) -> None:
    """Log an error if a recording's log holds other events than its feeder has read.

    Args:
        topic: the recording's.
        partition: of the topic.
        wanted: events that its end mark speaks of; None if it does not.
        found: events that its log holds.
    """
    if wanted is not None and wanted != found:
        log.error(
            "the log and its recording differ in events; those that the log lacks are lost to "
            "the bars, those that it has twice are counted as duplicates",
            topic=topic,
            partition=partition,
            recording=wanted,
            log=found,
        )
