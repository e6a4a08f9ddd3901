"""Signals on their way into a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from market_data_core.contracts.store import WriteCounts
from market_data_store.sinks._base import ClientSink


class SignalsClient(Protocol):
    """What the sink needs of a client."""

    async def upsert_signals(self, rows: Sequence[Any], /) -> WriteCounts:
        """Store the rows and tell what was done to them."""
        ...


class SignalsSink(ClientSink[SignalsClient]):
    """Writes signals: batches of records such as :class:`mds_client.models.SignalRow`.

    Args:
        client: such as ``AMDS.from_env()``.
        name: label of its metrics.
    """

    def __init__(self, client: SignalsClient, name: str = "signals") -> None:
        super().__init__(client, name)

    async def _write(self, batch: Sequence[Any]) -> WriteCounts:
        return await self._client.upsert_signals(batch)
