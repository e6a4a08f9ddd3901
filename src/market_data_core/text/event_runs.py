"""Runs of single JSON events in the log, read as one block instead of one by one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from market_data_core.events import SRC_TS_MAX, EventBatch, Kind, code_dtype, invalid_rows
from market_data_core.records import Record
from market_data_core.scaled import Scaled
from market_data_core.text.event_lines import EventColumns, event_columns

Built = tuple[Sequence[tuple[EventBatch, Sequence[Record]]], Sequence[tuple[Record, str]]]
"""One batch a stream with the record of each row, and the records that break a rule, with which."""

RUN_MIN = 256
"""So many events in a row are worth a block: parsing one costs half a millisecond and more."""
_RUN_MAX = 4_096
_PARTS = 16
_ALIKE = re.compile(rb"(\{+)|[^{]+")

Rows = NDArray[np.intp]
Ints = NDArray[np.int64]


def event_runs(
    records: Sequence[Record], max_future_ns: int | None = None
) -> Iterator[tuple[Sequence[Record], Built | None]]:
    """Cut records, in their order, into runs of single JSON events and what is between them.

    A run gives exactly what decoding its records and adding them to a ``BatchBuilder`` would.

    Args:
        records: of one partition, in log order.
        max_future_ns: how far ahead of its append an event may be; None for no bound.

    Yields:
        Records, and their events; None where they have to be decoded one by one.
    """
    if len(records) < RUN_MIN:
        yield records, None
        return
    heads = b"".join([record.payload[:1] or b" " for record in records])
    for found in _ALIKE.finditer(heads):
        start, end = found.span()
        for at in range(start, end, _RUN_MAX):
            part = records[at : min(at + _RUN_MAX, end)]
            yield from _parsed(part, max_future_ns) if found[1] else ((part, None),)


def _parsed(
    run: Sequence[Record], max_future_ns: int | None
) -> Iterable[tuple[Sequence[Record], Built | None]]:
    """A run as a block; where that is not certain, in smaller parts."""
    n = len(run)
    if n < RUN_MIN:
        return ((run, None),)
    lines = b"\n".join([record.payload for record in run]) + b"\n"
    found = event_columns(lines, n) if lines.count(b"\n") == n else None
    if found and not found.details:
        return ((run, _built(run, found, max_future_ns)),)
    parts = min(_PARTS, n // RUN_MIN)
    if parts == 1:
        return ((run, None),)
    cuts = [n * i // parts for i in range(parts + 1)]
    pieces = (run[a:b] for a, b in pairwise(cuts))
    return (part for piece in pieces for part in _parsed(piece, max_future_ns))


def _built(run: Sequence[Record], found: EventColumns, max_future_ns: int | None) -> Built:
    appended: Ints = np.fromiter(map(attrgetter("append_ts"), run), np.int64, len(run))
    prices = found.ohl or (found.close,) * 3
    bad = invalid_rows(*prices, found.close, found.volume, found.src_ts)
    if max_future_ns is not None:
        ahead = found.src_ts > np.minimum(appended, SRC_TS_MAX) + max_future_ns
        bad = {"future": ahead, **{why: mask & ~ahead for why, mask in bad.items()}}
    rejected = [(run[i], why) for why, mask in bad.items() for i in np.flatnonzero(mask).tolist()]
    keep = ~np.logical_or.reduce(list(bad.values())) if rejected else None
    batches: list[tuple[EventBatch, Sequence[Record]]] = []
    for provider, kind, rows in _streams(found, keep):
        batch = _batch(found, appended, provider, kind, rows)
        batches.append((batch, run if rows is None else [run[i] for i in rows.tolist()]))
    return batches, rejected


def _streams(
    found: EventColumns, keep: NDArray[np.bool_] | None
) -> Iterator[tuple[str, Kind, Rows | None]]:
    """Provider, kind and rows of each stream, in the order in which they begin.

    Args:
        found: the events.
        keep: which of them to take; None for all.

    Yields:
        None for the rows if they are all rows.
    """
    (providers, p), (kinds, k), (intervals, i) = (
        found.texts[name] for name in ("provider", "kind", "interval")
    )
    joined = (p * np.int64(len(kinds)) + k) * len(intervals) + i
    rows = None if keep is None else np.flatnonzero(keep)
    taken = joined if rows is None else joined[rows]
    if not len(taken):
        return
    if (taken == taken[0]).all():
        at_provider, at_kind = divmod(int(taken[0]) // len(intervals), len(kinds))
        yield providers[at_provider], kinds[at_kind], rows
        return
    streams: dict[tuple[str, Kind, str], list[int]] = {}
    codes, first = np.unique(taken, return_index=True)
    for code in codes[np.argsort(first)].tolist():
        rest, at_interval = divmod(code, len(intervals))
        at_provider, at_kind = divmod(rest, len(kinds))
        kind = kinds[at_kind]
        key = providers[at_provider], kind, intervals[at_interval] if kind == "bar" else ""
        streams.setdefault(key, []).append(code)
    for (provider, kind, _), members in streams.items():
        at = np.flatnonzero(np.isin(taken, members))
        yield provider, kind, at if rows is None else rows[at]


def _batch(
    found: EventColumns, appended: Ints, provider: str, kind: Kind, rows: Rows | None
) -> EventBatch:
    names, codes = found.texts["symbol"]
    intervals, at_interval = found.texts["interval"]
    chosen: Rows | slice = slice(None)
    if rows is not None:
        chosen = rows
        present, codes = np.unique(codes[rows], return_inverse=True)
        names = [names[i] for i in present.tolist()]
    symbols: dict[str, int] = {}
    mapping = [symbols.setdefault(name.upper(), len(symbols)) for name in names]
    dtype = code_dtype(len(symbols))
    ingest_ts = appended if found.ingest_ts is None else found.ingest_ts
    close, ohl = found.close[chosen], None
    if found.ohl:
        o, h, low = (column[chosen] for column in found.ohl)
        if not all(np.array_equal(column, close) for column in (o, h, low)):
            ohl = Scaled.from_floats(o), Scaled.from_floats(h), Scaled.from_floats(low)
    return EventBatch(
        provider=provider,
        kind=kind,
        interval=intervals[int(at_interval[chosen][0])],
        symbols=tuple(symbols),
        codes=np.array(mapping, dtype)[codes],
        src_ts=found.src_ts[chosen],
        seq=found.seq[chosen],
        ingest_ts=ingest_ts[chosen],
        close=Scaled.from_floats(close),
        volume=Scaled.from_floats(found.volume[chosen]),
        ohl=ohl,
    )
