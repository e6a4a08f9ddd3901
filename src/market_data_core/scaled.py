"""Exact decimal columns.

A vendor's price is a decimal; a float64 is the nearest binary number to it. Sums of floats depend
on their order, sums of decimals do not. A :class:`Scaled` column holds decimals as integers with
one power of ten for all of them, so that sums and products are exact and the result is rounded
once, at the end.

Why the integers are *the* decimals: a decimal of at most 15 significant digits is recovered by its
float64 (IEEE 754, Goldberg 1991, theorem 15), so if ``m / 10**s == x`` with ``|m| < 10**15``, then
``m * 10**-s`` is the shortest decimal that gives ``x``. Values that need more digits take a
slower path over Python integers, with the same code: NumPy arrays of dtype object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MANTISSA_LIMIT = 10**15
"""Magnitude below which an integer mantissa identifies its float64 uniquely."""
_INT64_SAFE = 2**62
_FLOAT_EXACT = 2**53
_SCALE_MAX = 15
_POWER_EXACT_MAX = 22  # 10**22 is the largest power of ten that float64 holds exactly


def _magnitude(mantissa: Array) -> int:
    """Largest absolute value, as a Python integer."""
    if len(mantissa) == 0:
        return 0
    return max(int(mantissa.max()), -int(mantissa.min()))


@dataclass(frozen=True, slots=True)
class Scaled:
    """A column of exact decimals, ``mantissa[i] * 10**-scale``.

    Attributes:
        mantissa: shape (n,), dtype int64, or object (Python int) where 64 bits do not suffice.
        scale: number of decimal places, >= 0, the same for the whole column.
    """

    mantissa: Array
    scale: int

    def __len__(self) -> int:
        return len(self.mantissa)

    @classmethod
    def from_floats(cls, values: NDArray[np.float64], hint: int = 0) -> Scaled:
        """The shortest decimals that give `values` (shape (n,), float64, finite).

        A negative zero becomes zero.

        Args:
            values: finite numbers.
            hint: number of decimal places to try first, 0 to 15.

        Raises:
            ValueError: a value is not finite.
        """
        for scale in (min(hint, _SCALE_MAX), *range(_SCALE_MAX + 1)):
            power = 10.0**scale
            with np.errstate(over="ignore"):
                rounded = np.rint(values * power)
            exact = (rounded / power == values).all()
            if exact and (np.abs(rounded) < MANTISSA_LIMIT).all():  # an infinity is not below it
                return cls(rounded.astype(np.int64), scale)
        if not np.isfinite(values).all():
            msg = "only finite numbers have a decimal"
            raise ValueError(msg)
        return cls._from_decimals([Decimal(repr(v)) for v in values.tolist()])

    @classmethod
    def _from_decimals(cls, decimals: Sequence[Decimal]) -> Scaled:
        places = [max(0, -int(d.normalize().as_tuple().exponent)) for d in decimals]
        scale = max(places, default=0)
        out = np.empty(len(decimals), dtype=object)
        for i, d in enumerate(decimals):
            out[i] = int(Fraction(d) * 10**scale)
        return cls(out, scale).compacted()

    def to_floats(self) -> NDArray[np.float64]:
        """Each decimal rounded once to float64, shape (n,); infinite where it does not fit."""
        mantissa, scale = self.mantissa, self.scale
        if (
            mantissa.dtype != object
            and scale <= _POWER_EXACT_MAX
            and _magnitude(mantissa) < _FLOAT_EXACT
        ):
            return np.true_divide(mantissa, 10.0**scale)
        power = 10**scale  # Python divides integers of any size with one correct rounding
        out = np.empty(len(mantissa))
        for i, m in enumerate(mantissa.tolist()):
            try:
                out[i] = m / power
            except OverflowError:
                out[i] = np.inf if m > 0 else -np.inf
        return out

    def rescaled(self, scale: int) -> Scaled:
        """The same decimals with `scale` >= ``self.scale`` decimal places."""
        if scale == self.scale:
            return self
        factor = 10 ** (scale - self.scale)
        mantissa = self.mantissa
        # a column of zeros needs the factor itself to fit
        if mantissa.dtype != object and max(1, _magnitude(mantissa)) * factor >= _INT64_SAFE:
            mantissa = mantissa.astype(object)
        return Scaled(mantissa * factor, scale)

    def compacted(self) -> Scaled:
        """The same column as int64 if every mantissa fits."""
        if self.mantissa.dtype == object and _magnitude(self.mantissa) < _INT64_SAFE:
            return Scaled(self.mantissa.astype(np.int64), self.scale)
        return self

    def take(self, index: Array | slice) -> Scaled:
        """Rows at `index` (integers, a slice or a boolean mask of shape (n,))."""
        return Scaled(self.mantissa[index], self.scale)

    def times(self, other: Scaled) -> Scaled:
        """Element-wise exact product, safe to sum over any of its rows afterwards."""
        a, b = self.mantissa, other.mantissa
        if object not in (a.dtype, b.dtype):
            # max|a| * sum|b| bounds every partial sum of the products
            top = _magnitude(b)
            if top * len(b) < _INT64_SAFE and _magnitude(a) * int(np.abs(b).sum()) < _INT64_SAFE:
                return Scaled(a * b, self.scale + other.scale)
        return Scaled(a.astype(object) * b.astype(object), self.scale + other.scale)

    def sum_runs(self, starts: NDArray[np.intp]) -> Scaled:
        """Exact sums over the runs that begin at `starts` (ascending, first one 0)."""
        mantissa = self.mantissa
        if mantissa.dtype != object and _magnitude(mantissa) * len(mantissa) >= _INT64_SAFE:
            total = int(np.abs(mantissa.astype(np.float64)).sum() * 1.001)  # a tighter bound
            if total >= _INT64_SAFE:
                mantissa = mantissa.astype(object)
        return Scaled(np.add.reduceat(mantissa, starts), self.scale)


def concat_scaled(columns: Sequence[Scaled]) -> Scaled:
    """The columns one after the other, at the largest of their scales."""
    if len(columns) == 1:
        return columns[0]
    scale = max((c.scale for c in columns), default=0)
    parts = [c.rescaled(scale).mantissa for c in columns]
    return Scaled(np.concatenate(parts) if parts else np.empty(0, np.int64), scale)
