"""What the checkpoints of a store say, whoever wrote them: workers, archivers, or inference.

Each of them is a consumer group of its own beside the others. A checkpoint tells by its version
whose it is, so that no group's name is taken for more than a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from market_data_core.contracts.store import PartitionStatus
from market_data_pipeline.archive.checkpoint import GROUP_SUFFIX as ARCHIVE_SUFFIX
from market_data_pipeline.archive.checkpoint import ArchiveCheckpoint, decode_archive_checkpoint
from market_data_pipeline.signals.checkpoint import GROUP_SUFFIX as INFER_SUFFIX
from market_data_pipeline.signals.checkpoint import SignalsCheckpoint, decode_signals_checkpoint
from market_data_pipeline.windows.checkpoint import Checkpoint, decode_checkpoint

Role = Literal["workers", "archive", "infer"]
AnyCheckpoint = Checkpoint | ArchiveCheckpoint | SignalsCheckpoint

_SUFFIXES: Mapping[Role, str] = {"workers": "", "archive": ARCHIVE_SUFFIX, "infer": INFER_SUFFIX}
_DECODERS: Mapping[str, Callable[[bytes], AnyCheckpoint]] = {
    "archive": decode_archive_checkpoint,
    "signals": decode_signals_checkpoint,
}


class _Version(msgspec.Struct):
    version: int | str = 0


_version_decoder = msgspec.msgpack.Decoder(_Version)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a group has come in a partition.

    Attributes:
        log_id: the log that it is a position of.
        resume: from where a new owner reads.
        counted: up to where everything is done; None if that is told by the whole log alone.
        pending: events that wait in open windows; None where there are no windows.
        finished: read to the end of a recording.
    """

    log_id: str
    resume: int | None
    counted: int | None
    pending: int | None
    finished: bool


def groups_of(group: str) -> dict[Role, str]:
    """The groups that work beside each other under one configured name."""
    return {role: group + suffix for role, suffix in _SUFFIXES.items()}


def decode_any(data: bytes) -> AnyCheckpoint:
    """A checkpoint from its bytes, whoever wrote it.

    Raises:
        DamagedFileError: the bytes are not a checkpoint this release can read.
    """
    try:
        version = _version_decoder.decode(data).version
    except msgspec.MsgspecError:
        version = 0  # what is wrong is told by the decoder of the most common one
    kind = version.partition("-")[0] if isinstance(version, str) else ""
    return _DECODERS.get(kind, decode_checkpoint)(data)


def role_of(group: str) -> Role:
    """What a group does, as far as its name tells, which also one of damaged checkpoints has."""
    others: tuple[Role, ...] = ("archive", "infer")
    return next((role for role in others if group.endswith(_SUFFIXES[role])), "workers")


def batch_checkpoints(
    rows: Iterable[PartitionStatus],
) -> Iterator[tuple[PartitionStatus, Checkpoint]]:
    """The checkpoints of micro-batchers among those of the rows.

    Raises:
        DamagedFileError: one cannot be read.
    """
    for row in rows:
        checkpoint = decode_any(row.checkpoint) if row.checkpoint else None
        if isinstance(checkpoint, Checkpoint):
            yield row, checkpoint


def position_of(row: PartitionStatus, lane: bool) -> Position | None:
    """What a row's checkpoint says; None if there is none yet.

    Args:
        row: of any group.
        lane: whether its topic belongs to a recording. Inference evaluates one as a whole, and
            has then no position in it.

    Raises:
        DamagedFileError: it cannot be read.
    """
    if not row.checkpoint:
        return None
    found = decode_any(row.checkpoint)
    if isinstance(found, Checkpoint):
        pending = found.counts.open
        return Position(found.log_id, found.resume, found.counted, pending, found.ended)
    if isinstance(found, ArchiveCheckpoint):
        return Position(found.log_id, found.position, found.position, None, found.ended)
    if lane:
        return Position(found.log_id, None, None, None, found.position >= 0)
    return Position(found.log_id, found.position, found.position, None, False)
