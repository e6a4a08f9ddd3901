"""Bars on their way into a store."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Protocol

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import WriteCounts
from market_data_store.metrics import STORE_BARS_WRITE_LATENCY_SECONDS, STORE_BARS_WRITTEN
from market_data_store.sinks._base import ClientSink

_METHOD = "upsert"


class BarsClient(Protocol):
    """What the sink needs of a client."""

    async def upsert_bars(self, rows: Sequence[Any], /) -> WriteCounts:
        """Store the bars and tell what was done to them."""
        ...


class BarsSink(ClientSink[BarsClient]):
    """Writes bars.

    A batch holds records such as :class:`mds_client.models.Bar`, or
    :class:`market_data_core.bars.BarBatch`, or both.

    Args:
        client: such as ``AMDS.from_env()``.
        name: label of its metrics.
    """

    def __init__(self, client: BarsClient, name: str = "bars") -> None:
        super().__init__(client, name)

    async def _write(self, batch: Sequence[Any]) -> WriteCounts:
        began = perf_counter()
        try:
            counts = await self._client.upsert_bars(batch)
        except BaseException:
            rows = sum(len(item) if isinstance(item, BarBatch) else 1 for item in batch)
            STORE_BARS_WRITTEN.labels(_METHOD, "failure").inc(rows)
            raise
        finally:
            STORE_BARS_WRITE_LATENCY_SECONDS.labels(_METHOD).observe(perf_counter() - began)
        for status in ("inserted", "updated", "unchanged", "kept"):
            STORE_BARS_WRITTEN.labels(_METHOD, status).inc(getattr(counts, status))
        return counts
