"""What all sinks share."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from market_data_core.contracts.store import WriteCounts
from market_data_store._access import StoreAccess
from market_data_store.metrics import SINK_WRITE_LATENCY_SECONDS, SINK_WRITES

C = TypeVar("C")


class ClientSink(Generic[C]):
    """Writes batches through a client; an async context manager.

    Entering opens a client of ours that is not open yet, and leaving closes it then; a client of
    another kind is its owner's to open and close.

    Args:
        client: has the method that the sink writes with.
        name: label of its metrics.
    """

    def __init__(self, client: C, name: str) -> None:
        self._client, self._name = client, name

    async def __aenter__(self) -> Self:
        """Open the client, if it is one of ours.

        Raises:
            UsageError: there is no such store, or its schema is not of this release.
            TransientError: the store cannot be used now.
        """
        if isinstance(self._client, StoreAccess):
            await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client if the sink has opened it."""
        if isinstance(self._client, StoreAccess):
            await self._client.__aexit__(kind, error, trace)

    async def ping(self) -> None:
        """Return if the store can be written; a client without a ``ping`` is taken to be well.

        Raises:
            TransientError: it cannot now.
        """
        ping = getattr(self._client, "ping", None)
        if ping is not None:
            await ping()

    async def write(self, batch: Sequence[Any]) -> WriteCounts:
        """Store all of the batch or nothing of it; storing it twice has the effect of once.

        Raises:
            UsageError: something in the batch is no row of this kind.
            RejectedError: the database refuses a row for good.
            TransientError: the store cannot be used now.
        """
        began, status = perf_counter(), "failure"
        try:
            counts = await self._write(batch)
            status = "success"
        finally:
            SINK_WRITES.labels(self._name, status).inc()
            SINK_WRITE_LATENCY_SECONDS.labels(self._name).observe(perf_counter() - began)
        return counts

    async def _write(self, batch: Sequence[Any]) -> WriteCounts:
        raise NotImplementedError
