from __future__ import annotations

import numpy as np
import pytest

from market_data_core.scaled import Scaled, concat_scaled


def column(*values: float) -> Scaled:
    return Scaled.from_floats(np.array(values, np.float64))


def exact(found: Scaled) -> list[tuple[int, int]]:
    return [(int(m), found.scale) for m in found.mantissa]


@pytest.mark.parametrize(
    ("values", "mantissa", "scale"),
    [
        ((425.15, 1.0), [42515, 100], 2),
        ((0.1, 0.2, 0.3), [1, 2, 3], 1),
        ((61837.63, 1e-8), [6183763000000, 1], 8),
        ((999_999_999_999_999.0,), [999_999_999_999_999], 0),
        ((0.0, 0.0), [0, 0], 0),
        ((-1.5,), [-15], 1),
        ((), [], 0),
    ],
)
def test_short_decimals_are_integers_at_the_least_scale(
    values: tuple[float, ...], mantissa: list[int], scale: int
) -> None:
    found = column(*values)
    assert (found.mantissa.tolist(), found.scale) == (mantissa, scale)
    assert found.mantissa.dtype == np.int64


@pytest.mark.parametrize(
    ("value", "mantissa", "scale"),
    [
        (0.1 + 0.2, 30000000000000004, 17),
        (1e22, 10**22, 0),
        (5e-324, 5, 324),
        (1e15 + 0.125, 10**16 + 1, 1),
        (2.0**53 + 2, 2**53 + 2, 0),
    ],
)
def test_long_decimals_keep_every_digit(value: float, mantissa: int, scale: int) -> None:
    assert exact(column(value)) == [(mantissa, scale)]
    assert column(value).to_floats().tolist() == [value]


def test_long_decimals_share_one_scale_with_short_ones() -> None:
    found = column(5e-324, 1e15, 0.1)
    assert found.to_floats().tolist() == [5e-324, 1e15, 0.1]


def test_a_negative_zero_becomes_zero() -> None:
    assert not np.signbit(column(-0.0).to_floats()).any()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_has_no_decimal(bad: float) -> None:
    for values in ([bad], [1.0, bad, 0.1]):
        with pytest.raises(ValueError, match="finite"):
            Scaled.from_floats(np.array(values))


@pytest.mark.parametrize("hint", [0, 2, 8, 15, 16, 40, 400])
def test_a_hint_never_changes_the_value(hint: int) -> None:
    values = np.array([425.15, 0.0, 1200.0])
    assert Scaled.from_floats(values, hint).to_floats().tolist() == values.tolist()


def test_zeros_can_join_a_column_of_any_scale() -> None:
    joined = concat_scaled([column(0.0, 0.0), column(5e-324), column(1e300)])
    assert joined.to_floats().tolist() == [0.0, 0.0, 5e-324, 1e300]


def test_joining_nothing_gives_an_empty_column() -> None:
    assert len(concat_scaled([])) == 0
    assert len(concat_scaled([column(), column()])) == 0


def test_columns_leave_64_bits_only_when_they_must() -> None:
    wide = column(1e14).rescaled(10)
    assert wide.mantissa.dtype == object
    assert column(1e8).rescaled(10).mantissa.dtype == np.int64
    assert wide.compacted().mantissa.dtype == object
    assert Scaled(np.array([5], object), 3).compacted().mantissa.dtype == np.int64


def test_sums_of_runs_are_exact_where_floats_are_not() -> None:
    tenths = column(*[0.1] * 10, 1e15, 0.1)
    sums = tenths.sum_runs(np.array([0, 10]))
    assert sums.to_floats().tolist() == [1.0, 1000000000000000.1]
    assert sum([0.1] * 10) != 1.0  # what the column is for


def test_sums_do_not_overflow_64_bits() -> None:
    large = Scaled(np.full(10, 2**61), 0)
    assert exact(large.sum_runs(np.array([0, 5]))) == [(5 * 2**61, 0)] * 2
    uneven = Scaled(np.array([2**61, 1, 1, 1]), 0)  # 4 * 2**61 does not fit, the sum does
    assert uneven.sum_runs(np.array([0])).mantissa.dtype == np.int64


def test_products_can_be_summed_without_overflow() -> None:
    prices, sizes = column(*[61837.63] * 1000), column(*[123456.78901] * 1000)
    total = prices.times(sizes).sum_runs(np.array([0]))
    assert exact(total) == [(6183763 * 12345678901 * 1000, 7)]


def test_empty_columns_pass_through_everything() -> None:
    none = column()
    assert len(none.to_floats()) == 0
    assert len(none.times(none)) == 0
    assert len(none.sum_runs(np.zeros(0, np.intp))) == 0


def test_what_exceeds_float64_is_infinite() -> None:
    top = column(1.7976931348623157e308, 1.7976931348623157e308)
    assert top.sum_runs(np.array([0])).to_floats().tolist() == [np.inf]
    assert column(-1.7976931348623157e308).times(column(2.0)).to_floats().tolist() == [-np.inf]


def test_rows_are_taken_by_index_slice_and_mask() -> None:
    found = column(1.5, 2.5, 3.5)
    assert found.take(np.array([2, 0])).to_floats().tolist() == [3.5, 1.5]
    assert found.take(slice(1, None)).to_floats().tolist() == [2.5, 3.5]
    assert found.take(np.array([True, False, True])).to_floats().tolist() == [1.5, 3.5]
