"""Bars with their features, as rules and models see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from market_data_core.config import BAR_COLUMNS
from market_data_core.contracts.feature import Feature, Floats
from market_data_core.intervals import format_interval
from market_data_pipeline.features.levels import indices_of
from market_data_pipeline.features.selection import Selection

_STORED = {"bar_vwap": "vwap"}


@dataclass(frozen=True, slots=True)
class Needs:
    """What has to be computed, and kept, for the bars of one interval.

    Attributes:
        features: by column name.
        backs: column -> how many bars before a row's own it is looked at too.
        depths: column of the bars -> how many bars of it are looked at.
    """

    features: Mapping[str, Feature]
    backs: Mapping[str, int]
    depths: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, catalog: Mapping[str, Feature], backs: Mapping[str, int], interval_ns: int
    ) -> Needs:
        """What the columns of `backs` need; `catalog` has every feature by name."""
        features = {name: catalog[name] for name in backs if name not in BAR_COLUMNS}
        depths: dict[str, int] = {"ts": 1 + max(backs.values(), default=0), "close": 1}
        for name, back in backs.items():
            if name in features:
                feature = features[name]
                depth = feature.span.depth(interval_ns) + back
                columns: Iterable[str] = (*feature.columns, "ts")
            else:
                depth, columns = 1 + back, (_STORED.get(name, name),)
            for column in columns:
                depths[column] = max(depths.get(column, 0), depth)
        return cls(features, backs, depths)

    @property
    def indices(self) -> tuple[str, ...]:
        """The symbols that others are compared with."""
        return indices_of(self.depths)

    @property
    def reach(self) -> int:
        """A changed bar changes what is computed at so many bars, its own among them."""
        return max(self.depths.values())


class SelectedRows:
    """Implements :class:`market_data_core.contracts.inference.Rows`.

    Args:
        provider: the feed's name.
        selection: the bars.
        needs: what can be asked for.
    """

    def __init__(self, provider: str, selection: Selection, needs: Needs) -> None:
        self.provider, self.interval = provider, format_interval(selection.interval_ns)
        self.symbols: Sequence[str] = selection.symbols
        self.codes: NDArray[np.intp] = selection.codes
        self.ts: NDArray[np.int64] = selection.starts + selection.interval_ns
        self._selection, self._needs = selection, needs
        self._values: dict[tuple[str, int], Floats] = {}

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Shape (n,): start of each row's bar, UTC ns."""
        return self.ts - self._selection.interval_ns

    def value(self, column: str, back: int = 0) -> Floats:
        """Shape (n,): a column of the row's bar, or of the one `back` bars before it."""
        found = self._values.get((column, back))
        if found is None:
            self._compute(back, [column] if back else self._needs.backs)
            found = self._values[column, back]
        return found

    def compute(self) -> None:
        """Work the features of the rows' own bars out, all of them in one pass."""
        self._compute(0, self._needs.backs)

    def _compute(self, back: int, columns: Iterable[str]) -> None:
        selection, known = self._selection.before(back)
        features: dict[str, Feature] = {}
        made: dict[str, Floats] = {}
        for name in columns:
            if name in self._needs.features:
                features[name] = self._needs.features[name]
                made[name] = np.full(len(self), np.nan)
            else:
                stored = selection.stored(_STORED.get(name, name))
                made[name] = np.where(known, stored, np.nan)
        for place, bars in selection.chunks(self._needs.depths) if features else ():
            for name, feature in features.items():
                values = feature.compute(bars)[: place.stop - place.start]
                made[name][place] = np.where(known[place], values, np.nan)
        for name, values in made.items():  # whole, since several threads may look
            self._values[name, back] = values
