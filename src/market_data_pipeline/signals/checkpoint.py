"""How far inference has come in a partition of bars, and the commit that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import BadRow, Claim, Gap, Message
from market_data_core.errors import DamagedFileError
from market_data_core.signals import Signal, bundled

GROUP_SUFFIX = "-infer"
"""Added to the consumer group's name: the workers of inference are a group of their own."""
_VERSION = "signals-2"
"""A text, so that nobody takes it for a micro-batcher's checkpoint."""
_AT_ONCE = 1_000


NEVER = -(2**62)
"""Before all times, UTC ns."""

Key = tuple[str, str]
"""Provider and interval."""


class Series(msgspec.Struct, frozen=True, array_like=True):
    """How far one provider's bars of one interval were evaluated.

    Attributes:
        reached: start of the newest bar, UTC ns.
    """

    provider: str
    interval: str
    reached: int


class Edition(msgspec.Struct, frozen=True, array_like=True):
    """Rules and models, and the bars that they are for.

    Attributes:
        version: what identifies them all.
        text: of the rules, so that they can be read again once their file has changed.
        behind: what was evaluated by earlier ones; they are for the bars behind that.
    """

    version: str
    text: str = ""
    behind: tuple[Series, ...] = ()

    def after(self, key: Key) -> int:
        """They are for bars of that kind which begin after this, UTC ns."""
        ends = (s.reached for s in self.behind if (s.provider, s.interval) == key)
        return next(ends, NEVER)


class SignalsCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Everything below a position was evaluated, and its signals are stored.

    Attributes:
        log_id: the log that it is a position of.
        position: from where on nothing was evaluated.
        checksum: of the record before `position`, 0 if there is none.
        series: what was evaluated.
        editions: of rules and models, the latest last.
        signals: signals that were given so far, retractions not counted.
        index: partition of an index -> from where on its changes were not followed.
    """

    log_id: str
    position: int
    checksum: int = 0
    series: list[Series] = []
    editions: list[Edition] = []
    signals: int = 0
    index: dict[int, int] = {}
    version: str = _VERSION

    def encode(self) -> bytes:
        """As bytes."""
        return msgspec.msgpack.encode(self)


class _Release(msgspec.Struct):
    version: str


_decoder = msgspec.msgpack.Decoder(SignalsCheckpoint)
_release = msgspec.msgpack.Decoder(_Release)


def decode_signals_checkpoint(data: bytes) -> SignalsCheckpoint:
    """The checkpoint from its bytes.

    Raises:
        DamagedFileError: the bytes are not a checkpoint this release can read.
    """
    try:
        version = _release.decode(data).version
        if version == _VERSION:
            return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        msg = f"a checkpoint of inference in the store cannot be read: {error}"
        raise DamagedFileError(msg) from error
    msg = (
        f"a checkpoint of inference is {version!r}, this release reads {_VERSION!r}: go on with "
        "the release that wrote it, or let inference begin anew with mdp stream forget-group"
    )
    raise DamagedFileError(msg)


@dataclass(frozen=True, slots=True)
class SignalsGroup:
    """Implements :class:`market_data_core.contracts.store.Group`: signals, and a position.

    Attributes:
        topic: where the signals are published; its partitions are those of the bars.
    """

    claim: Claim
    checkpoint: SignalsCheckpoint
    signals: Sequence[Signal]
    topic: str
    bars_topic: str = ""
    tells_all: bool = False

    @property
    def bars(self) -> Sequence[BarBatch]:
        """None."""
        return ()

    @property
    def gaps(self) -> Sequence[Gap]:
        """None: what bars lack is in the ledger already."""
        return ()

    def finish(self, bad: Sequence[BadRow]) -> tuple[bytes, Sequence[Message]]:  # noqa: ARG002
        """The checkpoint, and the signals in bundles: a row of the outbox each would cost more."""
        claim, key = self.claim, self.claim.key
        origin = f"{key.group}/{key.topic}/{key.partition}/{claim.token}/{claim.sequence}"
        messages = [
            Message(
                self.topic,
                f"{origin}/{at}",
                bundled(self.signals[at : at + _AT_ONCE]),
                len(self.signals[at : at + _AT_ONCE]),
            )
            for at in range(0, len(self.signals), _AT_ONCE)
        ]
        return self.checkpoint.encode(), messages

    def refused(self, checkpoint: bytes) -> Sequence[BadRow]:  # noqa: ARG002
        """None."""
        return ()
