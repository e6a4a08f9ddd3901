"""Kafka, 3.x and 4.x, and what speaks its protocol.

A topic is a Kafka topic. Records bear a header with what the platform has to know of them; messages
without one are other people's and count as one event. Kafka's own retention is switched off for
topics that are made here: records are trimmed when every reader has passed them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from market_data_core.clock import Clock
from market_data_core.config import KafkaBusSettings
from market_data_core.registry import Backend

if TYPE_CHECKING:
    from market_data_pipeline.bus._kafka_bus import KafkaBus


def _open(settings: Any, clock: Clock) -> KafkaBus:
    from market_data_pipeline.bus._kafka_bus import KafkaBus

    del clock  # the brokers' tells when records were appended
    return KafkaBus(settings)


BACKEND = Backend(
    "kafka", "Kafka brokers, and what speaks their protocol.", KafkaBusSettings, _open, "kafka"
)
