"""What a partition's owner leaves in the store, so that the next one goes on where it stood."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from market_data_core.errors import DamagedFileError
from market_data_core.scaled import Scaled
from market_data_pipeline.windows.aggregate import SCALED_COLUMNS, Bars
from market_data_pipeline.windows.assigner import NEVER

CHECKPOINT_VERSION = 1


class Counts(msgspec.Struct):
    """The conservation equation's terms, absolute since the partition began.

    ``received = stored + open + deduplicated + late + dead_lettered + lost``
    """

    received: int = 0
    stored: int = 0
    open: int = 0
    deduplicated: int = 0
    late: int = 0
    dead_lettered: int = 0
    lost: int = 0

    def holds(self) -> bool:
        """Whether the equation is exact."""
        return self.received == self.accounted()

    def accounted(self) -> int:
        """The right-hand side."""
        return (
            self.stored + self.open + self.deduplicated + self.late + self.dead_lettered + self.lost
        )

    def moved(self, events: int) -> Counts:
        """The terms after so many stored events have turned out to be dead letters."""
        return msgspec.structs.replace(
            self, stored=self.stored - events, dead_lettered=self.dead_lettered + events
        )

    def add(self, other: Counts) -> None:
        """Add `other`, term by term."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class StreamState(msgspec.Struct, kw_only=True):
    """One provider's place in time.

    Attributes:
        watermark: event time up to which windows are closed.
        closed: end of the last closed base window.
        fence: windows that end at or below it are never written again (after a lost log).
        taint: base windows that begin before it lack events; NEVER for none.
        greatest: greatest event time seen, of events or progress marks.
        paused: the producer said that it is away.
        replay: watermark before the first record that is to be read again, where closing was
            held back below the final watermark; NEVER otherwise.
        intervals: the window lengths in use, ns.
        since: interval in ns -> start of the first window that it was in use for as a whole.
        symbols: what the settled rows' codes mean.
        settled: interval in ns -> settled rows.
        bars: vendor bars above the final watermark, encoded; empty for a stream of ticks.
    """

    provider: str
    kind: str = "tick"
    interval: str = ""
    watermark: int = NEVER
    closed: int = NEVER
    fence: int = NEVER
    taint: int = NEVER
    greatest: int = NEVER
    paused: bool = False
    replay: int = NEVER
    intervals: list[int] = []
    since: dict[int, int] = {}
    symbols: list[str] = []
    settled: dict[int, Any] = {}
    bars: bytes = b""


class Checkpoint(msgspec.Struct, kw_only=True):
    """A partition's state between two groups.

    Attributes:
        log_id: the log that the positions belong to.
        resume: position from which a new owner reads (R).
        counted: position up to which everything is counted (K).
        checksum: of the record before `counted`, 0 if there is none.
        received_before: events received from earlier logs of this name.
        forwarded: events that belonged to another partition and were sent there.
        ended: the lane's end mark was read.
        bars: bars given to the store, not counting new versions.
        bad: (batch, row) of the latest group's bars that the database refused, for its owner if
            the answer of that commit was lost.
    """

    log_id: str
    version: int = CHECKPOINT_VERSION
    resume: int = 0
    counted: int = 0
    checksum: int = 0
    received_before: int = 0
    forwarded: int = 0
    ended: bool = False
    bars: int = 0
    bad: list[tuple[int, int]] = []
    counts: Counts = msgspec.field(default_factory=Counts)
    streams: list[StreamState] = []

    @property
    def holds_events(self) -> bool:
        """Whether something that was read is in a window that waits for its end, or above F.

        What is settled of a window that has ended waits for nothing: only a late event needs it.
        """
        waiting = (
            unpack_bars(rows).start + length > state.closed
            for state in self.streams
            for length, rows in state.settled.items()
        )
        held = any(ends.any() for ends in waiting)
        return held or self.counts.open > 0 or self.resume < self.counted

    def encode(self) -> bytes:
        """As bytes."""
        return msgspec.msgpack.encode(self)


_decoder = msgspec.msgpack.Decoder(Checkpoint)


def decode_checkpoint(data: bytes) -> Checkpoint:
    """The checkpoint from its bytes.

    Raises:
        DamagedFileError: the bytes are not a checkpoint this release can read.
    """
    try:
        found = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        msg = f"a checkpoint in the store cannot be read: {error}"
        raise DamagedFileError(msg) from error
    if found.version != CHECKPOINT_VERSION:
        msg = f"a checkpoint has version {found.version}, this release reads {CHECKPOINT_VERSION}"
        raise DamagedFileError(msg)
    return found


def pack_bars(bars: Bars) -> list[Any]:
    """Exact bars as plain values for a checkpoint."""
    scaled = [
        (c.scale, [str(m) for m in c.mantissa.tolist()])
        if c.mantissa.dtype == object
        else (c.scale, c.mantissa.tobytes())
        for c in (getattr(bars, name) for name in SCALED_COLUMNS)
    ]
    integers = [bars.codes.astype(np.int64), bars.start, bars.count, bars.own]
    return [[a.astype(np.int64).tobytes() for a in integers], scaled]


def unpack_bars(packed: Any) -> Bars:
    """The bars from :func:`pack_bars`."""
    codes, start, count, own = (np.frombuffer(b, np.int64) for b in packed[0])
    scaled = []
    for scale, data in packed[1]:
        if isinstance(data, bytes):
            mantissa = np.frombuffer(data, np.int64)
        else:
            mantissa = np.empty(len(data), object)
            mantissa[:] = [int(m) for m in data]
        scaled.append(Scaled(mantissa, scale))
    o, h, low, c, volume, notional = scaled
    return Bars(codes.astype(np.uint32), start, o, h, low, c, volume, notional, count, own)
