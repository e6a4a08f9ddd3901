"""How far an archive has come in a partition, and the commit that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import BadRow, Claim, Gap, Message, PartitionStatus
from market_data_core.errors import DamagedFileError
from market_data_core.signals import Signal

GROUP_SUFFIX = "-archive"
"""Added to the consumer group's name: the archive's members are a group of their own."""
_VERSION = "archive-1"
"""A text, so that nobody takes it for a micro-batcher's checkpoint."""


class ArchiveCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Everything below a position is in the archive, or staged and about to be published.

    Attributes:
        archive: id of the archive that the positions belong to.
        log_id: the log that they are positions of.
        position: from where on nothing is archived.
        checksum: of the record before `position`, 0 if there is none.
        begin: position at which the archive began to read this log.
        missed: events that the log had lost before they could be archived; None if unknown.
        first: where the latest segment begins; with `token` it names the staged files.
        token: of the claim under which that segment was written, 0 for none.
        events: rows archived as events.
        set_aside: rows archived as rejected, or as letters.
        ended: the lane's end mark was read.
    """

    archive: str
    log_id: str
    position: int
    checksum: int = 0
    begin: int = 0
    missed: int | None = 0
    first: int = 0
    token: int = 0
    events: int = 0
    set_aside: int = 0
    ended: bool = False
    version: str = _VERSION

    def encode(self) -> bytes:
        """As bytes."""
        return msgspec.msgpack.encode(self)


_decoder = msgspec.msgpack.Decoder(ArchiveCheckpoint)


def decode_archive_checkpoint(data: bytes) -> ArchiveCheckpoint:
    """The checkpoint from its bytes.

    Raises:
        DamagedFileError: the bytes are not a checkpoint this release can read.
    """
    try:
        found = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        msg = f"a checkpoint of the archive in the store cannot be read: {error}"
        raise DamagedFileError(msg) from error
    if found.version != _VERSION:
        msg = f"a checkpoint of the archive is {found.version!r}, this release reads {_VERSION!r}"
        raise DamagedFileError(msg)
    return found


def reached(
    rows: Sequence[PartitionStatus], until: Mapping[int, int] | None, partitions: int
) -> bool:
    """Whether the archive's checkpoints reach what was asked for.

    Args:
        rows: of one topic.
        until: position that each partition has to have reached; None: the lane's end.
        partitions: of the topic.
    """
    known = {r.key.partition: decode_archive_checkpoint(r.checkpoint) for r in rows if r.checkpoint}
    if until is None:
        return len(known) == partitions and all(c.ended for c in known.values())
    return all(n in known and known[n].position >= end for n, end in until.items())


@dataclass(frozen=True, slots=True)
class ArchiveGroup:
    """Implements :class:`market_data_core.contracts.store.Group`: a position, and nothing else."""

    claim: Claim
    checkpoint: ArchiveCheckpoint
    bars_topic: str = ""
    tells_all: bool = False

    @property
    def bars(self) -> Sequence[BarBatch]:
        """None."""
        return ()

    @property
    def signals(self) -> Sequence[Signal]:
        """None."""
        return ()

    @property
    def gaps(self) -> Sequence[Gap]:
        """None: what the archive misses may well be in bars."""
        return ()

    def finish(self, bad: Sequence[BadRow]) -> tuple[bytes, Sequence[Message]]:  # noqa: ARG002
        """The checkpoint; there are no messages."""
        return self.checkpoint.encode(), ()

    def refused(self, checkpoint: bytes) -> Sequence[BadRow]:  # noqa: ARG002
        """None."""
        return ()
