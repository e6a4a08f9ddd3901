from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.scaled import Scaled, concat_scaled
from market_data_core.testing.strategies import decimals

if TYPE_CHECKING:
    from collections.abc import Sequence

doubles = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
columns = st.one_of(st.lists(doubles, max_size=8), st.lists(decimals(), max_size=30))


def bits(values: Sequence[float]) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


def decimal_of(value: float) -> Fraction:
    return Fraction(repr(value))


def rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def scaled(values: Sequence[float], hint: int = 0) -> Scaled:
    return Scaled.from_floats(np.array(values, np.float64), hint)


@given(columns, st.integers(0, 15))
def test_every_double_returns_bit_for_bit(values: list[float], hint: int) -> None:
    found = scaled(values, hint)
    assert bits(found.to_floats().tolist()) == bits(values)
    held = [Fraction(int(m), 10**found.scale) for m in found.mantissa]
    assert held == [decimal_of(value) for value in values]


@given(st.lists(columns, max_size=4))
def test_joined_columns_keep_every_value(parts: list[list[float]]) -> None:
    joined = concat_scaled([scaled(part) for part in parts])
    assert bits(joined.to_floats().tolist()) == bits([v for part in parts for v in part])


@given(st.data(), st.lists(st.one_of(doubles, decimals()), min_size=1, max_size=40))
def test_sums_are_rounded_once(data: st.DataObject, values: list[float]) -> None:
    picked = data.draw(st.sets(st.integers(1, len(values)), max_size=6))
    starts = [0, *sorted(picked - {len(values)})]
    found = scaled(values).sum_runs(np.array(starts)).to_floats().tolist()

    runs = zip(starts, [*starts[1:], len(values)], strict=True)
    sums = [sum((decimal_of(v) for v in values[a:b]), Fraction()) for a, b in runs]
    assert bits(found) == bits([rounded(total) for total in sums])


@given(st.lists(st.tuples(decimals(), decimals()), min_size=1, max_size=30))
def test_sums_of_products_are_rounded_once(pairs: list[tuple[float, float]]) -> None:
    prices, sizes = (list(side) for side in zip(*pairs, strict=True))
    found = scaled(prices).times(scaled(sizes)).sum_runs(np.array([0])).to_floats()

    total = sum((decimal_of(p) * decimal_of(v) for p, v in pairs), Fraction())
    assert bits(found.tolist()) == bits([rounded(total)])


@given(st.lists(decimals(), min_size=2, max_size=20), st.data())
def test_sums_do_not_depend_on_order_or_grouping(values: list[float], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(values))
    cut = data.draw(st.integers(1, len(values) - 1))
    start = np.array([0])
    parts = [scaled(shuffled[:cut]).sum_runs(start), scaled(shuffled[cut:]).sum_runs(start)]
    merged = concat_scaled(parts).sum_runs(start)
    assert bits(merged.to_floats().tolist()) == bits(
        scaled(values).sum_runs(start).to_floats().tolist()
    )
