"""The latest bars of every symbol, in rings: what live features are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core.bars import BarBatch
from market_data_core.contracts.feature import index_of
from market_data_pipeline.features._bars import Strip
from market_data_pipeline.features._log import log
from market_data_pipeline.features.levels import NO_LEVELS, Levels
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.features.selection import Selection

AT_ONCE = 6
"""A change of one of so many newest bars is worked out from memory, an older one from the store;
and so many bars of a symbol are taken in at once."""
_MARGIN = 2 * AT_ONCE
"""Bars kept beyond what a feature looks at: all of those taken in may come behind the others."""
_DERIVED = ("available", "log_return")
_DTYPES: Mapping[str, Any] = {"ts": np.int64, "available": np.int32}


@dataclass(frozen=True, slots=True)
class Put:
    """What came of new or changed bars.

    Attributes:
        selection: the bars whose values may change by them, themselves among them.
        old: (symbol, start in UTC ns) of those too old to be worked out from what is kept.
    """

    selection: Selection
    old: list[tuple[str, int]]


class History:
    """Rings of bars, one for each symbol of a provider and interval.

    Memory: 24 bytes for each bar of the longest look-back in an ordinary configuration (time,
    close, return), and 8 for each further column as far as it is looked at.

    Args:
        interval_ns: the bars' length.
        depths: column -> how many bars of it are looked at.
        session_gap_ns: a hole at least this long begins a new session; 0: never.
    """

    def __init__(self, interval_ns: int, depths: Mapping[str, int], session_gap_ns: int) -> None:
        deepest = max(depths.values(), default=1)
        self._interval_ns, self._gap_ns = interval_ns, session_gap_ns
        wanted = {**depths, "close": max(depths.get("close", 0), 2), "ts": deepest}
        wanted["available"] = 2
        self._caps = {name: depth + _MARGIN for name, depth in wanted.items()}
        self._own = [name for name in wanted if name not in _DERIVED and index_of(name) is None]
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        self._forgotten: set[str] = set()
        self._room = 0
        self._columns = {
            name: np.zeros((cap, 0), _DTYPES.get(name, np.float64))
            for name, cap in self._caps.items()
        }
        self._count: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def bars_max(self) -> int:
        """How many bars of a symbol are worth loading."""
        return self._caps["ts"]

    @property
    def nbytes(self) -> int:
        """Memory of the rings, in bytes."""
        return sum(column.nbytes for column in self._columns.values()) + self._count.nbytes

    def unknown(self, symbols: Iterable[str]) -> list[str]:
        """Those of the symbols that nothing is known of yet, or any more."""
        return [s for s in symbols if s not in self._codes or s in self._forgotten]

    def forget(self, symbols: Iterable[str]) -> None:
        """Empty the rings of symbols: they are to be loaded again."""
        for symbol in self._codes.keys() & set(symbols):
            self._count[self._codes[symbol]] = 0
            self._forgotten.add(symbol)

    def load(self, symbols: Sequence[str], panel: Panel) -> None:
        """Begin rings of symbols with what was stored of them; of some that may be nothing."""
        self._grow([symbol for symbol in symbols if symbol not in self._codes])
        self._forgotten.difference_update(symbols)
        ends = np.flatnonzero(np.diff(panel.codes, append=-1)) + 1
        begins = np.concatenate([[0], ends[:-1]]).astype(np.intp)
        begins = np.maximum(begins, ends - self.bars_max)
        codes = np.array([self._codes[s] for s in panel.symbols], np.intp)
        for step in range(int((ends - begins).max(initial=0))):
            here = begins + step < ends
            rows = begins[here] + step
            values: dict[str, NDArray[Any]]
            values = {"ts": panel.ts[rows], "available": panel.available[rows]}
            values |= {name: column[rows] for name, column in panel.columns.items()}
            self._push(codes[here], values)

    def put(self, batch: BarBatch, levels: Levels = NO_LEVELS) -> Iterator[Put]:
        """Take bars in; every answer has to be dealt with before the next one is asked for.

        Args:
            batch: of known symbols; of a symbol that has one of that time already, it is changed.
            levels: of the symbols that others are compared with, as of these bars.
        """
        codes = np.array([self._codes[symbol] for symbol in batch.symbols], np.intp)[batch.codes]
        order = np.lexsort((batch.ts, codes))
        batch, codes = batch.take(order), codes[order]
        first = np.flatnonzero(np.diff(codes, prepend=-1))
        place = np.arange(len(codes)) - np.repeat(first, np.diff(first, append=len(codes)))
        for begin in range(0, int(place.max(initial=-1)) + 1, AT_ONCE):
            part = (place >= begin) & (place < begin + AT_ONCE)
            taken = batch.take(part)
            bars = {name: getattr(taken, name) for name in self._own} | levels.columns(taken.ts)
            yield self._put(bars, codes[part], place[part] - begin)

    def _put(
        self, bars: dict[str, NDArray[Any]], codes: NDArray[np.intp], place: NDArray[Any]
    ) -> Put:
        if "trade_count" in bars:  # a vendor's own bar may not tell
            counts = bars["trade_count"]
            bars["trade_count"] = np.where(counts < 0, np.nan, counts)
        touched = np.zeros(len(self._names), np.int64)
        old: list[tuple[str, int]] = []
        for turn in range(int(place.max()) + 1):
            here = place == turn
            mine, part = codes[here], {name: values[here] for name, values in bars.items()}
            newer = (self._count[mine] == 0) | (self._newest("ts", mine) < part["ts"])
            self._append(mine[newer], {name: values[newer] for name, values in part.items()})
            touched[mine[newer]] += 1
            for row in np.flatnonzero(~newer).tolist():
                one = slice(row, row + 1)
                before = self._count[mine[row]]
                back = self._change(mine[one], {name: v[one] for name, v in part.items()})
                if back is None:
                    old.append((self._names[mine[row]], int(part["ts"][row])))
                    continue
                # one that was put in between makes those that were to be done older
                put_in = self._count[mine[row]] - before
                touched[mine[row]] = max(touched[mine[row]] + put_in, back + 1)
        symbols = np.flatnonzero(touched)
        number = touched[symbols]
        rows = np.repeat(symbols, number)
        last = np.repeat(np.cumsum(number), number)
        return Put(self._select(rows, last - 1 - np.arange(len(rows))), old)

    def _select(self, codes: NDArray[np.intp], back: NDArray[np.int64]) -> Selection:
        strips = {
            name: Strip(column.ravel(), self._at(name, codes, back), self._room)
            for name, column in self._columns.items()
            if name != "available"
        }
        available = self._columns["available"].ravel()[self._at("available", codes, back)]
        kept = np.minimum(self._count[codes], self._caps["ts"]) - back
        available = np.minimum(available.astype(np.int64), kept)
        return Selection(self._interval_ns, tuple(self._names), codes, strips, available)

    def _at(self, name: str, codes: NDArray[np.intp], back: Any = 0) -> NDArray[np.intp]:
        """Indices into a column's flat values."""
        row = (self._count[codes] - 1 - back) % self._caps[name]
        return np.asarray(row * self._room + codes, np.intp)

    def _newest(self, name: str, codes: NDArray[np.intp], back: int = 0) -> NDArray[Any]:
        return self._columns[name].ravel()[self._at(name, codes, back)]

    def _append(self, codes: NDArray[np.intp], values: Mapping[str, NDArray[Any]]) -> None:
        """Bars newer than what is there, at most one of a symbol."""
        known = self._count[codes] > 0
        hole = values["ts"] - self._newest("ts", codes) - self._interval_ns
        goes_on = known & ((hole < self._gap_ns) if self._gap_ns else True)
        returns = np.full(len(codes), np.nan)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            returns[known] = log(values["close"][known] / self._newest("close", codes[known]))
        before = self._newest("available", codes).astype(np.int64)
        available = np.where(goes_on, before + 1, 1)
        self._push(codes, {**values, "available": available, "log_return": returns})

    def _push(self, codes: NDArray[np.intp], values: Mapping[str, NDArray[Any]]) -> None:
        self._count[codes] += 1
        for name, column in self._columns.items():
            column.ravel()[self._at(name, codes)] = values[name]

    def _change(self, code: NDArray[np.intp], bar: Mapping[str, NDArray[Any]]) -> int | None:
        """Replace or insert a bar behind newer ones; how many are newer, None for too many.

        Args:
            code: shape (1,): the symbol.
            bar: shape (1,) each: the values.
        """
        newer: list[dict[str, NDArray[Any]]] = []
        for back in range(min(AT_ONCE, int(self._count[code[0]]))):
            ts = int(self._newest("ts", code, back)[0])
            if ts <= bar["ts"][0]:
                # what follows depends on it: it is taken off and put on again
                self._count[code] -= len(newer) + (ts == bar["ts"][0])
                for values in (bar, *reversed(newer)):
                    self._append(code, values)
                return len(newer)
            newer.append({name: self._newest(name, code, back) for name in self._columns})
        return None

    def _grow(self, symbols: Sequence[str]) -> None:
        """Make room for symbols that are new."""
        for symbol in symbols:
            self._codes[symbol] = len(self._names)
            self._names.append(symbol)
        if len(self._names) <= self._room:
            self._count = np.pad(self._count, (0, len(self._names) - len(self._count)))
            return
        room = len(self._names) if not self._room else len(self._names) * 5 // 4
        for name, column in self._columns.items():
            wider = np.zeros((len(column), room), column.dtype)
            wider[:, : self._room] = column
            self._columns[name] = wider
        self._room = room
        self._count = np.pad(self._count, (0, len(self._names) - len(self._count)))
