"""What the parts of a condition work on: columns with unknown values, and three-valued logic.

Numbers are float64 arrays in which NaN stands for unknown; a result that is not finite (a division
by zero, an overflow) is unknown too. Every operation works on each row by itself, so that a row's
result does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Rows

Bools = NDArray[np.bool_]
Binary = Callable[[Floats, Floats], Floats]

_OPPOSITES = {
    "<": (np.less, np.greater_equal),
    "<=": (np.less_equal, np.greater),
    ">": (np.greater, np.less_equal),
    ">=": (np.greater_equal, np.less),
}


class Truth(NamedTuple):
    """Kleene's three-valued logic: where neither holds, the answer is unknown.

    Attributes:
        yes: where it is known to hold.
        no: where it is known not to hold.
    """

    yes: Bools
    no: Bools


class Frame:
    """The columns of some rows, each asked for once.

    Args:
        rows: what is evaluated.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._columns: dict[tuple[str, int], Floats] = {}

    def column(self, name: str, back: int = 0) -> Floats:
        """Shape (n,): the column `back` bars before each row's own bar, NaN where unknown."""
        found = self._columns.get((name, back))
        if found is None:
            found = self._columns[name, back] = known(self._rows.value(name, back))
        return found


def known(values: Floats) -> Floats:
    """`values` with NaN for what is not finite."""
    kept: Floats = np.where(np.isfinite(values), values, np.nan)
    return kept


def power(base: Floats, exponent: int) -> Floats:
    """`base` multiplied with itself; np.power may round differently by position in the array."""
    if exponent == 0:
        return np.where(np.isnan(base), np.nan, 1.0)
    product = reduce(np.multiply, [base] * abs(exponent))
    return known(product if exponent > 0 else np.divide(1.0, product))


def clip(values: Floats, low: Floats, high: Floats) -> Floats:
    """`values`, but at least `low`, and at most `high` even where that is less."""
    return np.minimum(np.maximum(values, low), high)


def compare(operator: str, left: Floats, right: Floats) -> Truth:
    """One of ``< <= > >= == !=``; unknown where either side is, since NaN compares to nothing."""
    if operator in _OPPOSITES:
        holds, fails = _OPPOSITES[operator]
        return Truth(holds(left, right), fails(left, right))
    same = np.equal(left, right)
    other = np.less(left, right) | np.greater(left, right)
    return Truth(same, other) if operator == "==" else Truth(other, same)


def all_of(parts: list[Truth]) -> Truth:
    """``and``: one that does not hold decides, whatever is unknown."""
    return Truth(
        reduce(np.logical_and, [part.yes for part in parts]),
        reduce(np.logical_or, [part.no for part in parts]),
    )


def any_of(parts: list[Truth]) -> Truth:
    """``or``: one that holds decides, whatever is unknown."""
    return negated(all_of([negated(part) for part in parts]))


def negated(part: Truth) -> Truth:
    """``not``: unknown stays unknown."""
    return Truth(part.no, part.yes)
