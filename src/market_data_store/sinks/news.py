"""News on their way into a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from market_data_core.contracts.store import WriteCounts
from market_data_store.sinks._base import ClientSink


class NewsClient(Protocol):
    """What the sink needs of a client."""

    async def upsert_news(self, rows: Sequence[Any], /) -> WriteCounts:
        """Store the rows and tell what was done to them."""
        ...


class NewsSink(ClientSink[NewsClient]):
    """Writes news: batches of records such as :class:`mds_client.models.NewsItem`.

    Args:
        client: such as ``AMDS.from_env()``.
        name: label of its metrics.
    """

    def __init__(self, client: NewsClient, name: str = "news") -> None:
        super().__init__(client, name)

    async def _write(self, batch: Sequence[Any]) -> WriteCounts:
        return await self._client.upsert_news(batch)
