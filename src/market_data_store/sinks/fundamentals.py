"""Fundamentals on their way into a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from market_data_core.contracts.store import WriteCounts
from market_data_store.sinks._base import ClientSink


class FundamentalsClient(Protocol):
    """What the sink needs of a client."""

    async def upsert_fundamentals(self, rows: Sequence[Any], /) -> WriteCounts:
        """Store the rows and tell what was done to them."""
        ...


class FundamentalsSink(ClientSink[FundamentalsClient]):
    """Writes fundamentals: batches of records such as :class:`mds_client.models.FundamentalPoint`.

    Args:
        client: such as ``AMDS.from_env()``.
        name: label of its metrics.
    """

    def __init__(self, client: FundamentalsClient, name: str = "fundamentals") -> None:
        super().__init__(client, name)

    async def _write(self, batch: Sequence[Any]) -> WriteCounts:
        return await self._client.upsert_fundamentals(batch)
