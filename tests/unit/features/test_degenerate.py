"""Features of bars that formulas do not foresee: no movement, no volume, extreme prices."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
from tests.unit.features._walks import INDEX, INTERVAL_NS, compute, feature, last, prices

from market_data_core import registry
from market_data_core.config import FeaturesSettings
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.levels import Levels

MINUTES_NS = 60 * 10**9
COLUMNS = catalog(FeaturesSettings(windows=(), index=INDEX), INTERVAL_NS)
BARE = {name: COLUMNS[name] for name in COLUMNS}

CONSTANT = {
    "atr": 0.0,
    "beta": 0.0,
    "bollinger": nan,
    "bollinger_bandwidth": 0.0,
    "bollinger_lower": 0.1,
    "bollinger_upper": 0.1,
    "correlation": nan,
    "ema": 0.1,
    "kurtosis": nan,
    "log_ret": 0.0,
    "macd": 0.0,
    "macd_hist": 0.0,
    "macd_signal": 0.0,
    "momentum": 0.0,
    "ret": 0.0,
    "rsi": 50.0,
    "skewness": nan,
    "sma": 0.1,
    "vol": 0.0,
    "volatility": 0.0,
    "volume_ratio": 1.0,
    "vwap": 0.1,
    "zscore": nan,
}


@pytest.mark.parametrize("name", sorted(BARE.keys() - {"excess"}))  # which is what the index did
def test_a_constant_price(name: str) -> None:
    """0.1 is no binary fraction: sums of it are rounded, and must not look like movement."""
    value = last(name, prices([0.1] * 200))
    np.testing.assert_equal(value, CONSTANT[name])


def test_one_bar() -> None:
    values = compute(BARE, prices([100.0]))
    assert {name for name, value in values.items() if np.isfinite(value[0])} == {"vwap"}


@pytest.mark.parametrize(
    ("name", "bars"),
    [
        ("atr", 15), ("bollinger", 20), ("ema", 20), ("kurtosis", 5), ("log_ret", 2), ("macd", 34),
        ("macd_signal", 34), ("macd_hist", 34), ("momentum", 31), ("ret", 2), ("rsi", 15),
        ("skewness", 4), ("sma", 20), ("vol", 3), ("volatility", 3), ("volume_ratio", 21),
        ("vwap", 1), ("zscore", 20),
    ],
)  # fmt: skip
def test_the_first_value(name: str, bars: int) -> None:
    rng = np.random.default_rng(1)
    values = compute({name: BARE[name]}, prices(100 + rng.random(60)))[name]
    assert np.isnan(values[: bars - 1]).all()
    assert np.isfinite(values[bars - 1 :]).all()


def test_bars_without_volume_weigh_nothing() -> None:
    frame = prices([10, 20, 30], volume=[2.0, 0.0, 6.0], vwap=[10.0, nan, 30.0])
    assert last("vwap", frame) == 25
    assert np.isnan(last("vwap", prices([10, 20], volume=[0.0, 0.0], vwap=[nan, nan])))


def test_volume_without_a_vwap_is_not_guessed() -> None:
    assert np.isnan(last("vwap", prices([10, 20], vwap=[nan, 20.0])))
    assert last("vwap", prices([10, 20], vwap=[nan, 20.0]), bars=1) == 20


def test_no_volume_before() -> None:
    quiet = prices([10] * 21, volume=[0.0] * 20 + [5.0])
    assert np.isnan(last("volume_ratio", quiet))
    assert last("volume_ratio", prices([10] * 21, volume=[5.0] * 20 + [0.0])) == 0


@pytest.mark.parametrize(("step", "value"), [(1, 100.0), (-1, 0.0)])
def test_a_price_that_moves_one_way(step: int, value: float) -> None:
    assert last("rsi", prices(1_000.0 + step * np.arange(200))) == value


@pytest.mark.parametrize("price", [5e-324, 1e-300, 1e-9, 1e9, 1e300, 1.7e308])
@pytest.mark.parametrize("name", BARE)
def test_prices_of_any_size(name: str, price: float) -> None:
    """Nothing is infinite, and nothing is warned of."""
    moves = 1 + np.arange(200) % 7 / 100
    with np.errstate(over="ignore"):
        values = compute({name: BARE[name]}, prices(price * moves, volume=[1e300] * 200))[name]
    assert not np.isinf(values).any()
    if 1e-10 < price < 1e10 and name != "vwap":
        assert np.isfinite(values[-1])


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("strange", [0.0, nan, inf])
def test_one_strange_price(name: str, strange: float) -> None:
    """It is gone from every feature once it is out of its set of bars."""
    frame = prices(100 + np.random.default_rng(2).random(600))
    values = compute({name: BARE[name]}, frame)[name]
    row, names = 200, ("open", "high", "low", "close", "vwap")
    columns = {
        key: np.where(np.arange(600) == row, strange, frame[key].to_numpy()) for key in names
    }
    other = compute({name: BARE[name]}, prices(**columns))[name]
    depth = BARE[name].span.depth(INTERVAL_NS)
    assert not np.isinf(other).any()
    assert other[:row].tobytes() == values[:row].tobytes()
    assert other[row + depth :].tobytes() == values[row + depth :].tobytes()


def test_small_moves_of_a_large_price_are_not_lost() -> None:
    """Deviations are taken from the mean, not by subtracting squares."""
    moves = np.random.default_rng(4).normal(0, 1e-4, 20)
    base = 2.0**20
    moves = (base + moves) - base  # what the sums have left of them
    value = last("zscore", prices(base + moves))
    assert value == pytest.approx((moves[-1] - moves.mean()) / moves.std(ddof=1), rel=1e-9)


@pytest.mark.parametrize("name", sorted(registry.backends("feature")))
def test_bars_longer_than_the_default_horizon(name: str) -> None:
    """Every bare family has values for bars of any length."""
    one_hour = 60 * MINUTES_NS
    one = feature(name, interval_ns=one_hour)
    frame = prices(100 + np.random.default_rng(3).random(60))
    frame = frame.with_columns(frame["ts"] * 1_800)
    ts = frame["ts"].to_numpy()
    index = Levels(one_hour, int(ts[0]), int(ts[-1]), {INDEX: (ts, 50 + np.arange(60.0) ** 2)})
    values = compute({name: one}, frame, interval_ns=one_hour, index=index)[name]
    assert np.isfinite(values[-20:]).all()
