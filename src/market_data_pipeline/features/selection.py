"""Rows to compute features for, wherever their bars are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from market_data_core.contracts.feature import Floats
from market_data_pipeline.features._bars import ROWS_MIN, StoredBars, Strip

_CHUNK = 1_024
"""Rows whose windows are worked on together, so that they stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Bars of one provider and interval for which something is to be computed.

    Attributes:
        interval_ns: the bars' length.
        symbols: what `codes` point into.
        codes: shape (n,), the symbol of each row.
        strips: where the columns stand.
        available: shape (n,): bars in each row's session up to and including its own.
    """

    interval_ns: int
    symbols: tuple[str, ...]
    codes: NDArray[np.intp]
    strips: Mapping[str, Strip]
    available: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Shape (n,): start of each row's bar, UTC ns."""
        strip = self.strips["ts"]
        return strip.values.take(strip.newest, mode="wrap")

    def take(self, rows: NDArray[np.intp]) -> Selection:
        """Some of the rows."""
        strips = {
            name: replace(strip, newest=strip.newest[rows]) for name, strip in self.strips.items()
        }
        return replace(self, codes=self.codes[rows], strips=strips, available=self.available[rows])

    def before(self, back: int) -> tuple[Selection, NDArray[np.bool_]]:
        """The bars `back` bars before, and whether there are any; where not, the row's own."""
        known = self.available > back
        shift = np.where(known, back, 0)
        strips = {
            name: replace(strip, newest=strip.newest - shift * strip.step)
            for name, strip in self.strips.items()
        }
        return replace(self, strips=strips, available=self.available - shift), known

    def chunks(self, depths: Mapping[str, int]) -> Iterator[tuple[slice, StoredBars]]:
        """The rows in parts: the place of each among all, and the bars to compute from.

        The last part may be filled up with copies of a row: results behind the place's end are to
        be left out.
        """
        for at in range(0, len(self), _CHUNK):
            rows = np.arange(at, min(at + _CHUNK, len(self)), dtype=np.intp)
            place = slice(at, at + len(rows))
            if len(rows) < ROWS_MIN:
                rows = np.concatenate([rows, np.full(ROWS_MIN - len(rows), rows[0])])
            part = self.take(rows)
            yield place, StoredBars(self.interval_ns, part.strips, part.available, depths)

    def stored(self, name: str) -> Floats:
        """Shape (n,): the value of a column of the bars, at each row's own bar."""
        strip = self.strips[name]
        values: Floats = strip.values.take(strip.newest, mode="wrap").astype(np.float64, copy=False)
        return values
