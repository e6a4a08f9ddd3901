"""What a rule or a model is for: which feeds, and which symbols of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_data_core.contracts.inference import Rows
from market_data_core.events import OFFICIAL_SUFFIX


@dataclass(frozen=True, slots=True)
class Scope:
    """Some names: exact ones, and beginnings of names.

    Attributes:
        exact: whole names.
        prefixes: beginnings.
    """

    exact: frozenset[str]
    prefixes: tuple[str, ...]

    @classmethod
    def of(cls, patterns: Collection[str]) -> Scope:
        """The names that `patterns` stand for; a ``*`` at the end of one stands for anything."""
        return cls(
            frozenset(pattern for pattern in patterns if not pattern.endswith("*")),
            tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*")),
        )

    def __bool__(self) -> bool:
        return bool(self.exact or self.prefixes)

    def __contains__(self, name: str) -> bool:
        return name in self.exact or name.startswith(self.prefixes)


@dataclass(frozen=True, slots=True)
class FeedScope:
    """Feeds, and symbols of them.

    Attributes:
        computed: feeds, by the bars we compute.
        official: feeds, by their own bars, without ``:official``.
        symbols: None for all.
    """

    computed: Scope
    official: Scope
    symbols: Scope | None

    @classmethod
    def of(cls, providers: Collection[str], symbols: Collection[str]) -> FeedScope:
        """What the settings of these names stand for.

        Args:
            providers: patterns; none: all feeds, by the bars we compute.
            symbols: patterns; none: all.
        """
        named = providers or ("*",)
        official = [name for name in named if name.endswith(OFFICIAL_SUFFIX)]
        computed = [name for name in named if not name.endswith(OFFICIAL_SUFFIX)]
        return cls(
            computed=Scope.of(computed),
            official=Scope.of([name.removesuffix(OFFICIAL_SUFFIX) for name in official]),
            symbols=Scope.of(symbols) if symbols else None,
        )

    def is_for(self, provider: str) -> bool:
        """Whether the bars of `provider` are in it, whatever their symbols."""
        stem = provider.removesuffix(OFFICIAL_SUFFIX)
        return stem in (self.computed if stem == provider else self.official)

    def within(self, rows: Rows, index: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those rows of `index`, shape (n,), whose symbols are in it; looks at each symbol once."""
        if self.symbols is None or not len(index):
            return index
        wanted = np.zeros(len(rows.symbols), np.bool_)
        codes = rows.codes[index]
        wanted[codes] = True
        for code in np.flatnonzero(wanted).tolist():
            wanted[code] = rows.symbols[code] in self.symbols
        kept: NDArray[np.intp] = index[wanted[codes]]
        return kept
