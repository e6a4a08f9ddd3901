"""Numbers in columns: texts, integers and decimals to the nearest float64, ids to int64."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[Any]


def float_column(column: pl.Series) -> tuple[Floats, Mask]:
    """Values as float64, and which rows hold no number (their value is 0).

    Texts and decimals become the nearest float64. float32 becomes the float64 nearest to its
    shortest decimal, which is what was rounded to float32 in the first place.
    """
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif column.dtype == pl.Float32 or column.dtype.is_decimal():
        column = column.cast(pl.String)
    elif not column.dtype.is_numeric():
        return np.zeros(len(column)), np.ones(len(column), bool)
    values = column.cast(pl.Float64, strict=False)
    bad = values.is_null().to_numpy()
    return values.fill_null(0.0).to_numpy(), bad


def id_column(column: pl.Series) -> tuple[Ints, Mask]:
    """Vendor ids as int64, and which rows hold none (their value is 0)."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif not column.dtype.is_numeric():
        return np.zeros(len(column), np.int64), np.ones(len(column), bool)
    values = column.cast(pl.Int64, strict=False)
    if not (column.dtype == pl.String or column.dtype.is_integer()):
        fractional = (values.cast(column.dtype, strict=False) != column).fill_null(value=True)
        values = values.set(fractional, None)
    bad = values.is_null().to_numpy()
    return values.fill_null(0).to_numpy(), bad
