"""Texts in columns as their distinct values."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Coded = tuple[list[Any], NDArray[Any]]
"""Distinct values, and the index of each row's value among them, shape (n,)."""


def text_codes(series: pl.Series) -> Coded:
    """Distinct values of a text column without nulls, and each row's index into them."""
    if len(series) and (series == series[0]).all():
        return [series[0]], np.zeros(len(series), np.uint32)
    distinct = series.unique()
    codes = series.cast(pl.Enum(distinct)).to_physical().to_numpy()
    return distinct.to_list(), codes
