"""The one way of commands into the store: records of a table through its sink."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from market_data_core._suggest import did_you_mean
from market_data_core.bars import BarBatch
from market_data_core.config import Settings
from market_data_core.contracts.store import Store, WriteCounts
from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import parse_ts
from market_data_core.tables import BARS, FUNDAMENTALS, NEWS, OPTIONS, SIGNALS, TABLES, Column
from market_data_pipeline.patience import patient
from market_data_store.coordinator import Sink
from market_data_store.coordinator.item_codec import type_name
from market_data_store.opening import open_ready_store
from market_data_store.sinks import (
    BarsSink,
    FundamentalsSink,
    NewsSink,
    OptionsSink,
    SignalsSink,
)
from mds_client import AMDS
from mds_client.models import Bar, FundamentalPoint, NewsItem, OptionSnap, SignalRow

KINDS: dict[str, type] = {
    BARS.name: Bar,
    SIGNALS.name: SignalRow,
    OPTIONS.name: OptionSnap,
    FUNDAMENTALS.name: FundamentalPoint,
    NEWS.name: NewsItem,
}
"""Table -> the record that a row of it is."""

_SINKS: dict[str, Callable[[AMDS], Sink[Any]]] = {
    BARS.name: BarsSink,
    SIGNALS.name: SignalsSink,
    OPTIONS.name: OptionsSink,
    FUNDAMENTALS.name: FundamentalsSink,
    NEWS.name: NewsSink,
}

TABLE_OF = {type_name(kind): table for table, kind in KINDS.items()} | {
    type_name(BarBatch): BARS.name
}
"""Qualified name of a record's type -> the table that it goes to."""


@asynccontextmanager
async def open_ready(settings: Settings) -> AsyncIterator[Store]:
    """The configured store, ready to be used, and closed at the end; one that is away is awaited.

    Raises:
        UsageError: the backend is not known, its driver is not installed, or the schema of a
            server is not of this release.
        DamagedFileError: the file is not what it should be.
    """
    store = await patient(lambda: open_ready_store(settings.store.uri))
    try:
        yield store
    finally:
        await store.close()


class Tally:
    """A sink that adds up what the one behind it did.

    Args:
        sink: where batches go.
        item_of: what to give it for each item.

    Attributes:
        counts: over all that was written so far.
    """

    def __init__(self, sink: Sink[Any], item_of: Callable[[Any], Any] = lambda item: item) -> None:
        self._sink, self._item_of = sink, item_of
        self.counts = WriteCounts()

    async def ping(self) -> None:
        """Raises while the store cannot be used."""
        ping = getattr(self._sink, "ping", None)
        if ping is not None:
            await ping()

    async def write(self, batch: Sequence[Any]) -> None:
        """Give the batch on.

        Raises:
            Exception: whatever the sink raises.
        """
        done = await self._sink.write([self._item_of(item) for item in batch])
        if isinstance(done, WriteCounts):
            self.counts.add(done)


def shown_counts(counts: WriteCounts) -> str:
    """What was done to rows, as a person reads it."""
    terms = {name: getattr(counts, name) for name in ("inserted", "updated", "unchanged")}
    if counts.kept:
        terms["kept, because the stored bar is made of more events"] = counts.kept
    return ", ".join(f"{number:,} {name}" for name, number in terms.items())


def record_of(table: str, row: Mapping[str, Any]) -> Any:
    """A row of a file as the record that is written.

    Args:
        table: one of :data:`KINDS`.
        row: column -> value; times are datetimes with a zone or ISO texts, days are dates or ISO
            texts, JSON is a value or its text. What the store fills in by itself is passed over.

    Raises:
        UsageError: a column is not known or missing, or a value cannot stand in it.
    """
    about = TABLES[table]
    known = {column.name: column for column in about.columns}
    values = {}
    for name, value in row.items():
        if name not in known:
            msg = f"column {name!r} is not known; {did_you_mean(name, known)}"
            raise UsageError(msg)
        if name not in about.stamps:
            values[name] = _value(known[name], value)
    missing = [name for name in about.key if name not in values]
    if missing:
        msg = f"a value for {', '.join(missing)} is missing, which the row's key needs"
        raise UsageError(msg)
    try:
        return msgspec.convert(values, KINDS[table])
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from error


def _value(column: Column, value: Any) -> Any:
    if isinstance(value, str) and column.kind == "json":
        return _json(column.name, value)
    if isinstance(value, str) and column.kind == "time":
        _check_precision(column.name, value)
    return value


def _check_precision(name: str, text: str) -> None:
    try:
        ts = parse_ts(text)
    except RejectedError as error:
        msg = f"{name}: {error}"
        raise UsageError(msg) from error
    if ts % 1000:
        msg = f"{name} is {text!r}; records hold microseconds, and it would have to be rounded"
        raise UsageError(msg)


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        msg = f"{name} is not JSON: {error}"
        raise UsageError(msg) from error


def sink_of(store: Store, table: str) -> Sink[Any]:
    """The sink of a table, over an open store that stays its owner's to close."""
    return _SINKS[table](AMDS(store))
