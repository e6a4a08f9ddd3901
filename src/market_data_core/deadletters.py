"""Dead letters: what could not become a bar, with the reason and the bytes as they came."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from market_data_core.errors import RejectedError

MAGIC = b"MDPD"
"""First bytes of an encoded list of dead letters."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of input that was set aside.

    Attributes:
        reason: a word of ``market_data_core.events.REASONS``.
        detail: a sentence for a person.
        topic: log it was read from; with `partition` and `offset` its position.
        original: the bytes as they came; of an event that could be read, its JSON, written the
            same way whatever it came in, so that readers of the log recognise it.
        log_id: which log of that name it was.
        where: file and line of a recording, "" otherwise.
        provider: the feed, "" where it cannot be told.
        symbol: likewise.
        src_ts: event time, UTC ns, 0 where it cannot be told.
        events: how many events it stands for.
        message: the bytes of an event that came as a message of its own and was written in
            another way than `original`; empty otherwise.
    """

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    original: bytes
    log_id: str = ""
    where: str = ""
    provider: str = ""
    symbol: str = ""
    src_ts: int = 0
    events: int = 1
    message: bytes = b""

    @property
    def as_sent(self) -> bytes:
        """The bytes as they came, as far as they were kept."""
        return self.message or self.original


_decoder = msgspec.msgpack.Decoder(list[DeadLetter])


def encode_letters(letters: Sequence[DeadLetter]) -> bytes:
    """The letters as one message of the dead-letter topic."""
    return MAGIC + msgspec.msgpack.encode(list(letters))


def decode_letters(payload: bytes) -> list[DeadLetter]:
    """The letters of one message.

    Raises:
        RejectedError: reason ``malformed``.
    """
    try:
        if payload[: len(MAGIC)] != MAGIC:
            msg = "not a list of dead letters"
            raise ValueError(msg)
        return _decoder.decode(payload[len(MAGIC) :])
    except (msgspec.MsgspecError, ValueError) as error:
        msg = f"dead-letter message: {error}"
        raise RejectedError(reason="malformed", message=msg) from error
