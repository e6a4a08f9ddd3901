"""What a queue tells those who fill it: go on, slow down, stop."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from market_data_core.errors import RejectedError

FeedbackLevel = Literal["ok", "soft", "hard"]
"""``ok``: full rate; ``soft``: half of it; ``hard``: nothing until further notice."""

FEEDBACK_TOPIC = "mdp.feedback"
STORE_COORDINATOR = "store_coordinator"
"""``source`` of the events that the store's write coordinators send."""


class FeedbackEvent(msgspec.Struct, frozen=True, kw_only=True):
    """How full a queue is, as it stands on the wire.

    Attributes:
        coordinator_id: which coordinator speaks; a later event of one replaces its earlier ones.
        source: what kind of component it is; a metric label, so one of few.
        level: what producers are asked to do.
        queue_size: rows that wait.
        capacity: rows that fit.
        ts: when it was so; has a time zone, UTC as we write it.
        reason: a sentence for a person.
    """

    coordinator_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = STORE_COORDINATOR
    level: FeedbackLevel
    queue_size: Annotated[int, msgspec.Meta(ge=0)]
    capacity: Annotated[int, msgspec.Meta(ge=1)]
    ts: Annotated[datetime, msgspec.Meta(tz=True)] = msgspec.field(
        default_factory=lambda: datetime.now(UTC)
    )
    reason: Annotated[str, msgspec.Meta(max_length=512)] = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(FeedbackEvent)


def encode_feedback(event: FeedbackEvent) -> bytes:
    """The event as compact JSON."""
    return _encoder.encode(event)


def decode_feedback(payload: bytes | str) -> FeedbackEvent:
    """The event of :func:`encode_feedback`'s bytes, or of anybody's JSON of that shape.

    Raises:
        RejectedError: reason ``malformed``.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        msg = f"feedback event: {error}"
        raise RejectedError(reason="malformed", message=msg) from error
