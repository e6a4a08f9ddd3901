"""Which column of a table holds what, and tables of trades or bars to rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import polars as pl

from market_data_core.errors import UsageError
from market_data_core.events import Kind
from market_data_core.intervals import canonical_interval, format_interval
from market_data_core.text.codes import Coded, text_codes
from market_data_pipeline.providers._formats.numbers import float_column, id_column
from market_data_pipeline.providers._formats.options import RecordingOptions, TimeUnit
from market_data_pipeline.providers._formats.rows import (
    DEFAULT_PROVIDER,
    Array,
    Ints,
    Problems,
    Rows,
    Session,
    stream_column,
)
from market_data_pipeline.providers._formats.times import time_column

ALIASES: dict[str, tuple[str, ...]] = {
    "symbol": ("symbol", "ticker", "sym", "instrument"),
    "timestamp": ("timestamp", "time", "ts", "src_ts", "datetime", "date", "ts_event"),
    "price": ("price", "px", "last", "p"),
    "size": ("size", "qty", "quantity", "volume", "amount", "q", "v", "vol"),
    "trade_id": ("trade_id", "id", "seq", "sequence", "tradeid"),
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c"),
    "provider": ("provider",),
    "interval": ("interval",),
    "ingest_ts": ("ingest_ts", "ts_recv"),
}
"""What a column can hold -> the names under which it is found, the likeliest first."""

_BAR_PRICES = ("open", "high", "low", "close")
_TICK_INTERVAL = "1s"
_KINDS = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one file's columns are to be read.

    Attributes:
        label: the file, for messages.
        kind: ``bar`` if there are open, high, low and close; of rows that do not say it.
        columns: what (a key of `ALIASES`, or ``kind``) -> the column's name in the file.
        symbol: the symbol of every row, where no column tells.
        interval: the interval of every row, where no column tells; "" until it is inferred.
        time_unit: unit of numeric times.
    """

    label: str
    kind: Kind
    columns: Mapping[str, str]
    symbol: str
    interval: str
    time_unit: TimeUnit


def layout_of(label: str, names: Sequence[str], options: RecordingOptions) -> Layout:
    """Find the columns that are needed.

    Raises:
        UsageError: a column that is needed, or one named in the options, is not there.
    """
    mapped = _mapped(label, names, options.columns)
    by_name = {name.strip().lower(): name for name in reversed(names)}
    found = {}
    is_bar = all(_find(what, ALIASES[what], mapped, by_name) for what in _BAR_PRICES)
    for what, aliases in ALIASES.items():
        name = _find(what, aliases, mapped, by_name)
        if name:
            found[what] = name
    needed = ["timestamp", "size", *(_BAR_PRICES if is_bar else ["price"])]
    if options.symbol is None:
        needed.append("symbol")
    missing = [what for what in needed if what not in found]
    if missing:
        hint = " or give --symbol" if "symbol" in missing else ""
        msg = (
            f"{label}: no column for {', '.join(missing)}; the file has "
            f"{', '.join(names)}. Name it with --column {missing[0]}=NAME{hint}"
        )
        raise UsageError(msg)
    interval = (options.interval or "") if is_bar else _TICK_INTERVAL
    return Layout(
        label, "bar" if is_bar else "tick", found, options.symbol or "", interval, options.time_unit
    )


def _mapped(label: str, names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    mapped = {}
    for key, name in given.items():
        what = next((w for w, aliases in ALIASES.items() if key.lower() in aliases), None)
        if what is None:
            msg = f"column mapping {key}={name}: {key!r} is none of {', '.join(ALIASES)}"
            raise UsageError(msg)
        if name and name not in names:
            msg = (
                f"{label}: column mapping {key}={name}: there is no column {name!r}; "
                f"the file has {', '.join(names)}"
            )
            raise UsageError(msg)
        mapped[what] = name
    return mapped


def _find(
    what: str, aliases: Sequence[str], mapped: Mapping[str, str], by_name: Mapping[str, str]
) -> str:
    if what in mapped:
        return mapped[what]
    return next((by_name[alias] for alias in aliases if alias in by_name), "")


def table_rows(
    session: Session,
    layout: Layout,
    frame: pl.DataFrame,
    problems: Problems,
    original: Callable[[int], tuple[bytes, str]],
) -> Rows:
    """Rows of a table whose columns are named as in `ALIASES`.

    Args:
        session: gives names their numbers.
        layout: how to read the columns.
        frame: one row a line; texts, numbers or times.
        problems: rows already known to be unusable; filled up here.
        original: gives a row's bytes and place.
    """
    count = len(frame)
    columns = {series.name: series for series in frame.iter_columns()}
    src_ts, details = time_column(columns["timestamp"], layout.time_unit)
    _note(problems, "bad_timestamp", details)
    ingest_ts = src_ts
    if "ingest_ts" in columns:
        ingest_ts, details = time_column(columns["ingest_ts"], layout.time_unit)
        _note(problems, "bad_timestamp", details)
    values = {}
    for what in ("size", *(_BAR_PRICES if layout.kind == "bar" else ["price"])):
        values[what], bad = float_column(columns[what])
        _note(problems, "bad_type", _bad_values(columns[what], bad, f"{what} {{}} is no number"))
    close = values["close" if layout.kind == "bar" else "price"]
    seq = np.zeros(count, np.int64)
    if "trade_id" in columns:
        seq, bad = id_column(columns["trade_id"])
        text = "trade id {} is no 64-bit integer; if the column holds no ids, map trade_id to ''"
        _note(problems, "bad_type", _bad_values(columns["trade_id"], bad, text))
    rows = Rows(
        _streams(session, layout, columns, problems, count),
        _symbols(session, layout, columns, problems, count),
        src_ts,
        seq,
        ingest_ts,
        close,
        values["size"],
        (values["open"], values["high"], values["low"]) if layout.kind == "bar" else None,
    )
    return session.checked(rows, problems, original)


def _note(problems: Problems, reason: str, details: Mapping[int, str]) -> None:
    for i, detail in details.items():
        problems.setdefault(i, (reason, detail))


def _bad_values(column: pl.Series, bad: Array, text: str) -> dict[int, str]:
    return {i: text.format(repr(column[i])[:64]) for i in np.flatnonzero(bad).tolist()}


def _texts(column: pl.Series) -> pl.Series:
    """The column as texts without surrounding space; "" where there is nothing."""
    return column.cast(pl.String, strict=False).str.strip_chars().fill_null("")


def _symbols(
    session: Session,
    layout: Layout,
    columns: Mapping[str, pl.Series],
    problems: Problems,
    count: int,
) -> Array:
    if "symbol" not in columns:
        return np.repeat(session.symbol_ids([layout.symbol]), count)
    texts = _texts(columns["symbol"])
    empty = np.flatnonzero((texts == "").to_numpy()).tolist()
    _note(problems, "bad_type", dict.fromkeys(empty, "the symbol is missing"))
    names, codes = text_codes(texts)
    return session.symbol_ids(names)[codes]


def _streams(
    session: Session,
    layout: Layout,
    columns: Mapping[str, pl.Series],
    problems: Problems,
    count: int,
) -> Array:
    nothing = np.zeros(count, np.uint32)
    provider: Coded = [DEFAULT_PROVIDER], nothing
    if "provider" in columns:
        names, codes = text_codes(_texts(columns["provider"]))
        provider = [name or DEFAULT_PROVIDER for name in names], codes
    interval: Coded = [layout.interval], nothing
    if layout.kind == "bar" and "interval" in columns:
        texts, codes = text_codes(_texts(columns["interval"]))
        lengths = []
        for number, text in enumerate(texts):
            try:
                lengths.append(canonical_interval(text))
            except UsageError as error:
                at = np.flatnonzero(codes == number).tolist()
                _note(problems, "bad_type", dict.fromkeys(at, str(error)))
                lengths.append(_TICK_INTERVAL)
        interval = lengths, codes
    kind: Coded = [layout.kind], nothing
    if "kind" in columns:
        texts, codes = text_codes(_texts(columns["kind"]))
        for number, text in enumerate(texts):
            if text not in _KINDS:
                at = np.flatnonzero(codes == number).tolist()
                _note(problems, "bad_type", dict.fromkeys(at, f"kind {text!r} is not known"))
        kind = [text if text in _KINDS else layout.kind for text in texts], codes
    return stream_column(session, count, provider, kind, interval)


def needs_interval(layout: Layout) -> bool:
    """Whether the interval of bars has to be told from their times."""
    return layout.kind == "bar" and not layout.interval and "interval" not in layout.columns


def inferred_interval(label: str, symbols: Array, src_ts: Ints) -> str:
    """The smallest step between two bars of one symbol.

    Args:
        label: the file, for the message.
        symbols: shape (n,), numbers of symbols.
        src_ts: shape (n,), UTC ns, in any order.

    Raises:
        UsageError: no symbol has two bars, or the step is no interval.
    """
    order = np.lexsort((src_ts, symbols))
    same = symbols[order][1:] == symbols[order][:-1]
    steps = np.diff(src_ts[order])[same]
    steps = steps[steps > 0]
    try:
        return format_interval(int(steps.min(initial=2**62)) if len(steps) else 0)
    except UsageError as error:
        msg = f"{label}: the times do not tell the interval of the bars; give it with --interval"
        raise UsageError(msg) from error
