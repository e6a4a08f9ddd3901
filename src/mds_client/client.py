"""The clients under the names that applications know."""

from __future__ import annotations

from typing import Self

from market_data_store._client_sync import StoreClient
from market_data_store.client import AsyncStoreClient


class AMDS(AsyncStoreClient):
    """Market data in and out of a store, for asyncio; see :class:`AsyncStoreClient`.

    ::

        async with AMDS.from_env() as db:
            await db.upsert_bars([Bar(symbol="SPY", open=1, high=2, low=1, close=2, volume=10)])
            frame = await db.bars("SPY", "1m", "2025-10-24")
    """

    @classmethod
    def from_env(cls) -> Self:
        """A client of the store that ``MDS_DSN`` names; nothing is opened before the first use.

        Without that variable it is ``MDP_STORE_URI``, else the embedded store in ``MDP_HOME``.
        """
        return cls.open()


class MDS(StoreClient):
    """As :class:`AMDS`, for programs without asyncio; every call returns when it is done.

    ::

        with MDS.from_env() as db:
            frame = db.bars("SPY", "1m", "2025-10-24")
    """

    @classmethod
    def from_env(cls) -> Self:
        """A client of the store that ``MDS_DSN`` names; nothing is opened before the first use.

        Without that variable it is ``MDP_STORE_URI``, else the embedded store in ``MDP_HOME``.
        """
        return cls.open()
