"""The outbox's columns, which are the same in every store."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from market_data_core.contracts.store import Message

MESSAGE = "destination, key, payload, count, to_partition, provider, min_ts, max_ts"
message_row: Callable[[Message], tuple[Any, ...]] = attrgetter(
    "destination", "key", "payload", "count", "partition", "provider", "min_ts", "max_ts"
)
"""A message's values in the order of :data:`MESSAGE`."""
