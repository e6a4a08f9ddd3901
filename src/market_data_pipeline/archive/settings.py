"""How an archiver behaves, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArchiverSettings:
    """How an archiver behaves.

    Attributes:
        group: consumer group of the archive's members.
        member: this worker's name.
        lease_ns: how long an owner may be silent before its partitions are taken over.
        poll_bytes: how much is read at once.
        file_bytes_max: most bytes of one file, and of one partition's events before they are due.
        file_seconds_max: how long events may wait for their file.
        memory_bytes_max: bytes of waiting events at which reading stops.
    """

    group: str
    member: str
    lease_ns: int
    poll_bytes: int
    file_bytes_max: int
    file_seconds_max: float
    memory_bytes_max: int


@dataclass(slots=True)
class Archived:
    """What a run wrote: events, rows that are no events, files, and the files' bytes."""

    events: int = 0
    set_aside: int = 0
    files: int = 0
    size: int = 0
