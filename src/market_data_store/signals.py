"""Signals: written, read, and taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import UsageError
from market_data_core.tables import SIGNALS, Select
from market_data_store._access import StoreAccess
from market_data_store._query import Texts, When, moment, selection

if TYPE_CHECKING:
    import polars as pl

SignalKey = tuple[str, str, When, str]
"""Provider, symbol, time, name."""


class SignalsStoreClient(StoreAccess):
    """Writes and reads the table of signals.

    Frames have the columns ``provider symbol ts name value score state metadata created_at``:
    texts, times as Datetime("ns", "UTC"), numbers as Float64, `metadata` as the text of its JSON.

    Args:
        store: an open store, which stays its owner's to close, or the URI of one.
    """

    async def upsert_signals(self, rows: Sequence[Any]) -> WriteCounts:
        """Insert signals, or update those that differ from what is stored, in one transaction.

        Args:
            rows: such as :class:`mds_client.models.SignalRow`; of one key the last one counts.

        Raises:
            UsageError: something else is among the rows.
            RejectedError: the database refuses a row for good; nothing was written.
            TransientError: the store cannot be used now; nothing was written.
        """
        return await self._upsert(SIGNALS, rows)

    async def signals(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        name: Texts | None = None,
        provider: Texts | None = None,
        state: Texts | None = None,
    ) -> pl.DataFrame:
        """Signals with start <= ts < end, ordered by provider, symbol, ts, name.

        Args:
            symbols: one or several; None for all, as for all of the following.
            start: a datetime with its zone, ISO 8601 text (a day is its midnight UTC), or UTC ns.
            end: likewise, exclusive.
            name: of the rule or model.
            provider: the feed's name.
            state: ``active`` or ``retracted``.

        Raises:
            UsageError: an argument makes no sense.
            TransientError: the store cannot be used now.
        """
        where = {"symbol": symbols, "name": name, "provider": provider, "state": state}
        return await self._select(selection(SIGNALS, where, start, end))

    async def latest_signals(
        self,
        symbols: Texts | None = None,
        n: int = 1,
        *,
        name: Texts | None = None,
        provider: Texts | None = None,
    ) -> pl.DataFrame:
        """The newest `n` signals of each provider, symbol and name; as :meth:`signals`."""
        where = {"symbol": symbols, "name": name, "provider": provider}
        return await self._select(selection(SIGNALS, where, last=n))

    def iter_signals(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        name: Texts | None = None,
        provider: Texts | None = None,
        state: Texts | None = None,
        rows_max: int = 100_000,
    ) -> AsyncIterator[pl.DataFrame]:
        """As :meth:`signals`, in frames of at most `rows_max` rows, all as of one moment."""
        where = {"symbol": symbols, "name": name, "provider": provider, "state": state}
        return self._scan(selection(SIGNALS, where, start, end), rows_max)

    async def retract(self, keys: Sequence[SignalKey]) -> WriteCounts:
        """Give stored signals the state ``retracted``, because what caused them holds no more.

        Args:
            keys: (provider, symbol, ts, name) of each.

        Returns:
            `updated`: how many were retracted now; `unchanged`: how many were already.

        Raises:
            UsageError: one of them is not stored, or is no key; none was retracted then.
            TransientError: the store cannot be used now; some may be retracted.
        """
        wanted = dict.fromkeys(map(_checked_key, keys))
        if not wanted:
            return WriteCounts()
        found = await self._stored(list(wanted))
        missing = [key for key in wanted if key not in found]
        if missing:
            provider, symbol, ts, name = missing[0]
            msg = f"keys: no signal {name!r} of {provider} {symbol} at {_datetime(ts)} is stored"
            raise UsageError(msg)
        counts = WriteCounts()
        for key, row in found.items():
            if await self._retract(key, row):
                counts.updated += 1
            else:
                counts.unchanged += 1
        return counts

    async def _retract(self, key: _Key, row: dict[str, Any] | None) -> bool:
        """Whether it was this call that retracted it; somebody else may write it meanwhile."""
        store = await self._ready()
        while row is not None and row["state"] != "retracted":
            old, new = SimpleNamespace(**row), SimpleNamespace(**row | {"state": "retracted"})
            if await store.replace(SIGNALS, old, new):
                return True
            row = (await self._stored([key])).get(key)
        return False

    async def _stored(self, keys: list[_Key]) -> dict[_Key, dict[str, Any]]:
        """The rows of those keys that are stored."""
        providers, symbols, times, names = (list(dict.fromkeys(c)) for c in zip(*keys, strict=True))
        where = {"provider": providers, "symbol": symbols, "name": names}
        frame = await self._select(Select(SIGNALS, where, min(times), max(times) + 1))
        wanted, found = set(keys), {}
        for ts, row in zip(frame["ts"].to_physical(), frame.iter_rows(named=True), strict=True):
            key = (row["provider"], row["symbol"], ts, row["name"])
            if key in wanted:
                metadata = msgspec.json.decode(row["metadata"])
                found[key] = row | {"ts": _datetime(ts), "metadata": metadata}
        return found


_Key = tuple[str, str, int, str]


def _checked_key(key: object) -> _Key:
    if not isinstance(key, tuple) or len(key) != 4:
        msg = f"keys: {key!r} is not a tuple (provider, symbol, ts, name)"
        raise UsageError(msg)
    provider, symbol, ts, name = key
    return provider, str(symbol).upper(), moment("keys: ts", ts), name


def _datetime(ts_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ts_ns // 1_000)
