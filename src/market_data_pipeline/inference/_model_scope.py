"""Which bars a model is for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_data_core._config_inference import OFFICIAL
from market_data_core.contracts.inference import Rows
from market_data_pipeline.inference.rules_file import Scope


@dataclass(frozen=True, slots=True)
class ModelScope:
    """Providers and symbols.

    Attributes:
        computed: providers, by the bars we compute.
        official: providers, by their own bars, without ``:official``.
        symbols: None for all.
    """

    computed: Scope
    official: Scope
    symbols: Scope | None

    @classmethod
    def of(cls, providers: Collection[str], symbols: Collection[str]) -> ModelScope:
        """What the settings of these names stand for; none: all that we compute."""
        official = [name.removesuffix(OFFICIAL) for name in providers if name.endswith(OFFICIAL)]
        computed = [name for name in providers or "*" if not name.endswith(OFFICIAL)]
        return cls(Scope.of(computed), Scope.of(official), Scope.of(symbols) if symbols else None)

    def of_rows(self, rows: Rows) -> NDArray[np.intp]:
        """Indices of the rows that are in it, ascending."""
        stem = rows.provider.removesuffix(OFFICIAL)
        if stem not in (self.computed if stem == rows.provider else self.official):
            return np.empty(0, np.intp)
        if self.symbols is None:
            return np.arange(len(rows), dtype=np.intp)
        wanted = np.fromiter((name in self.symbols for name in rows.symbols), np.bool_)
        return np.flatnonzero(wanted[rows.codes])
