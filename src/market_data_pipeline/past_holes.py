"""Reading for people, who want to see what is left of a log that has lost some of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache

from market_data_core.contracts.bus import Bus
from market_data_core.errors import LogHoleError
from market_data_core.records import Record


async def poll_past_holes(
    bus: Bus, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
) -> dict[int, list[Record]]:
    """What :meth:`Bus.poll` gives, behind holes too; standard error is told of each once.

    Raises:
        LogLostError: as that does, but for holes.
    """
    while True:
        try:
            return await bus.poll(topic, positions, max_bytes, timeout_s)
        except LogHoleError as hole:
            _tell(topic, hole.partition, hole.position, hole.events)


@lru_cache(256)  # a command may read the same with several clients
def _tell(topic: str, partition: int, position: int, events: int) -> None:
    what = "1 event is" if events == 1 else f"{events:,} events are"
    sys.stderr.write(
        f"warning: {what} missing in partition {partition} of {topic} before position {position}: "
        "somebody has removed them; going on behind\n"
    )
