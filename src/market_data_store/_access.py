"""A store that a client opens when it needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from market_data_core.contracts.store import Store, WriteCounts
from market_data_core.errors import UsageError
from market_data_core.tables import Select, Table
from market_data_store import opening
from market_data_store._query import count
from market_data_store.frames import closing

if TYPE_CHECKING:
    import polars as pl


class StoreAccess:
    """What all clients share: opening, closing, and the way to the tables.

    Nothing is opened before the first use, and every use opens what is not open. Belongs to one
    event loop.

    Args:
        store: an open store, which stays its owner's to close, or the URI of one.
    """

    def __init__(self, store: Store | str) -> None:
        self._uri = store if isinstance(store, str) else None
        self._store = None if isinstance(store, str) else store
        self._opening = asyncio.Lock()
        self._entered = 0
        self._lasting = False  # opened by a call outside of any context: until close()

    @classmethod
    def open(cls, uri: str | None = None) -> Self:
        """A client of the store at `uri`; the store itself is opened at the first use.

        Args:
            uri: ``sqlite:///path`` or ``postgresql://…``; None for that of the environment:
                ``MDS_DSN``, else ``MDP_STORE_URI``, else the embedded store in ``MDP_HOME``.
        """
        return cls(uri or opening.default_uri())

    @property
    def in_use(self) -> bool:
        """Whether it was entered, or has opened a store that only :meth:`close` will close."""
        return self._entered > 0 or self._lasting

    async def __aenter__(self) -> Self:
        """Open the store; contexts may be nested, the outermost one closes it.

        Raises:
            UsageError: there is no such store, or its schema is not of this release.
            TransientError: the store cannot be used now.
        """
        self._entered += 1
        try:
            await self._ready()
        except BaseException:
            self._entered -= 1
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the store, unless it was open before."""
        self._entered -= 1
        if not self._entered and not self._lasting:
            await self.close()

    async def close(self) -> None:
        """Close the store; safe to call again. A store that was given stays open."""
        async with self._opening:
            store, self._lasting = self._store, False
            if self._uri is not None and store is not None:
                self._store = None
                await store.close()

    async def ping(self) -> None:
        """Return if the store can be written.

        Raises:
            TransientError: it cannot now.
        """
        await (await self._ready()).ping()

    async def _ready(self) -> Store:
        if self._store is None:
            async with self._opening:
                if self._store is None:
                    self._store = await opening.open_ready_store(self._uri or "")
                    self._lasting = not self._entered
        return self._store

    async def _upsert(self, table: Table, rows: Sequence[Any]) -> WriteCounts:
        rows = checked_rows(table, rows)
        return await (await self._ready()).upsert(table, rows) if rows else WriteCounts()

    async def _select(self, what: Select) -> pl.DataFrame:
        return await (await self._ready()).select(what)

    def _scan(self, what: Select, rows_max: int) -> AsyncIterator[pl.DataFrame]:
        """Not a generator itself, so that `rows_max` is checked before the first frame."""
        return self._frames(what, count("rows_max", rows_max))

    async def _frames(self, what: Select, rows_max: int) -> AsyncIterator[pl.DataFrame]:
        async with closing((await self._ready()).scan(what, rows_max)) as frames:
            async for frame in frames:
                yield frame


def checked_rows(table: Table, rows: Sequence[Any], *other: type) -> list[Any]:
    """`rows` as a list, each an object with the table's columns or of a type of `other`.

    Raises:
        UsageError: something else is among them.
    """
    if isinstance(rows, str | bytes | dict) or not hasattr(rows, "__iter__"):
        msg = f"rows is a {type(rows).__name__}; give a list of rows of {table.name}"
        raise UsageError(msg)
    given = list(rows)
    for kind, row in {type(row): row for row in given}.items():
        missing = [c.name for c in table.written if not hasattr(row, c.name)]
        if missing and not issubclass(kind, other):
            msg = (
                f"rows: a {kind.__name__} has no {missing[0]!r}; give rows of {table.name}, such "
                "as the records of mds_client.models"
            )
            raise UsageError(msg)
    return given
