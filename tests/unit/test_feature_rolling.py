"""Every feature family against an independent implementation, on the bars it looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import talib
from numpy.typing import NDArray
from scipy import stats
from tests.unit.features._walks import INDEX, INTERVAL_NS, compute, feature, levels, walks

from market_data_core import registry

Reference = Callable[[pd.DataFrame], Any]

# as many bars as each family's warm-up needs, one fewer, and more than any set holds
LENGTHS = (1, 2, 3, 4, 5, 13, 14, 15, 19, 20, 21, 33, 34, 35, 240)


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return walks(np.random.default_rng(7), LENGTHS)


def over(horizon: str, formula: Callable[[pd.DataFrame], float]) -> Reference:
    """`formula` of the bars that begin less than the horizon before each."""

    def values(bars: pd.DataFrame) -> list[float]:
        begins = bars.index.searchsorted(bars.index - pd.Timedelta(horizon), side="right")
        return [formula(bars[begin : end + 1]) for end, begin in enumerate(begins)]

    return values


def newest(count: int, formula: Callable[[pd.DataFrame], float]) -> Reference:
    """`formula` of the newest so many bars there are."""
    return lambda bars: [
        formula(bars[max(0, end - count) : end]) for end in range(1, len(bars) + 1)
    ]


def ago(horizon: str, column: str = "close") -> Callable[[pd.DataFrame], NDArray[np.float64]]:
    """A column as of a horizon ago, from pandas' merge of the nearest earlier key."""

    def values(bars: pd.DataFrame) -> NDArray[np.float64]:
        wanted = pd.DataFrame({"key": bars.index - pd.Timedelta(horizon)})
        there = pd.DataFrame({"key": bars.index, "value": bars[column].to_numpy()})
        limit = pd.Timedelta(horizon) - pd.Timedelta(1, "ns")
        found = pd.merge_asof(wanted, there, on="key", tolerance=limit)
        return np.asarray(found["value"], dtype=float)

    return values


def index_as_of(times: pd.DatetimeIndex) -> NDArray[np.float64]:
    """The index's close as of the times, if it is less than five minutes old."""
    starts, closes = levels().closes[INDEX]
    there = pd.DataFrame({"key": pd.to_datetime(starts), "close": closes})
    limit = pd.Timedelta("300s") - pd.Timedelta(1, "ns")
    found = pd.merge_asof(pd.DataFrame({"key": times}), there, on="key", tolerance=limit)
    return np.asarray(found["close"], dtype=float)


def pairs(bars: pd.DataFrame) -> pd.DataFrame:
    returns = bars[["close", "index"]].pct_change(fill_method=None).dropna()
    return returns if len(returns) > 1 else returns[:0]


def slope(bars: pd.DataFrame) -> float:
    found = pairs(bars)
    return float(stats.linregress(found["index"], found["close"]).slope) if len(found) else np.nan


def pearson(bars: pd.DataFrame) -> float:
    found = pairs(bars)
    return float(stats.pearsonr(found["index"], found["close"]).statistic) if len(found) else np.nan


def log_returns(bars: pd.DataFrame) -> pd.Series:
    return np.log(bars["close"]).diff().dropna()


def skew(bars: pd.DataFrame) -> float:
    returns = log_returns(bars)
    return float(stats.skew(returns, bias=False)) if len(returns) > 2 else np.nan


def kurt(bars: pd.DataFrame) -> float:
    returns = log_returns(bars)
    return float(stats.kurtosis(returns, bias=False)) if len(returns) > 3 else np.nan


def average_price(bars: pd.DataFrame) -> float:
    traded = bars[bars["volume"] > 0]
    return float(np.average(traded["vwap"], weights=traded["volume"])) if len(traded) else np.nan


def ta(name: str, *columns: str, output: int = 0, **parameters: Any) -> Any:
    """The newest value of a TA-Lib function over the bars."""

    def newest_value(bars: pd.DataFrame) -> float:
        given = [bars[column].to_numpy(dtype=float) for column in columns]
        if len(given[0]) < 2:  # TA-Lib refuses some of its functions a single value
            return np.nan
        found = getattr(talib, name)(*given, **parameters)
        return float((found[output] if isinstance(found, tuple) else found)[-1])

    return newest_value


def bands(bars: pd.DataFrame, line: str) -> Any:
    upper, middle, lower = talib.BBANDS(bars["close"].to_numpy(), 20, 2, 2)
    return {
        "upper": upper,
        "lower": lower,
        "percent_b": (bars["close"] - lower) / (upper - lower),
        "bandwidth": (upper - lower) / middle,
    }[line]


def rolled(bars: pd.DataFrame) -> Any:
    return bars["close"].rolling(20)


YEAR_S = 365 * 86_400
REFERENCES: dict[str, Reference] = {
    "vwap": over("60s", average_price),
    "ret": lambda bars: bars["close"].pct_change(),
    "log_ret": lambda bars: np.log(bars["close"]).diff(),
    "momentum": lambda bars: bars["close"] / ago("60s")(bars) - 1,
    "vol": over("300s", lambda bars: log_returns(bars).std()),
    "volatility": over("300s", lambda bars: log_returns(bars).std() * np.sqrt(YEAR_S / 2)),
    "skewness": over("300s", skew),
    "kurtosis": over("300s", kurt),
    "sma": newest(20, ta("SMA", "close", timeperiod=20)),
    "ema": newest(100, ta("EMA", "close", timeperiod=20)),
    "macd": newest(175, ta("MACD", "close")),
    "macd_signal": newest(175, ta("MACD", "close", output=1)),
    "macd_hist": newest(175, ta("MACD", "close", output=2)),
    "rsi": newest(141, ta("RSI", "close", timeperiod=14)),
    "atr": newest(141, ta("ATR", "high", "low", "close", timeperiod=14)),
    "bollinger": lambda bars: bands(bars, "percent_b"),
    "bollinger_upper": lambda bars: bands(bars, "upper"),
    "bollinger_lower": lambda bars: bands(bars, "lower"),
    "bollinger_bandwidth": lambda bars: bands(bars, "bandwidth"),
    "zscore": lambda bars: (bars["close"] - rolled(bars).mean()) / rolled(bars).std(),
    "volume_ratio": lambda bars: bars["volume"] / bars["volume"].shift().rolling(20).mean(),
    "beta": over("300s", slope),
    "correlation": over("300s", pearson),
    "excess": lambda b: b["close"] / ago("60s")(b) - b["index"] / ago("60s", "index")(b),
}

# the same families with a reach of the other kind, or settings of their own
OTHERS: dict[str, tuple[str, dict[str, Any], Reference]] = {
    "vwap of bars": ("vwap", {"bars": 1}, newest(1, average_price)),
    "ret of bars": ("ret", {"bars": 7}, lambda bars: bars["close"].pct_change(7)),
    "ret of horizon": ("ret", {"horizon": "9s"}, lambda bars: bars["close"] / ago("9s")(bars) - 1),
    "log_ret of horizon": (
        "log_ret", {"horizon": "30s"}, lambda bars: np.log(bars["close"] / ago("30s")(bars)),
    ),
    "vol of bars": (
        "vol", {"bars": 10}, lambda bars: np.log(bars["close"]).diff().rolling(9).std(),
    ),
    "kurtosis of bars": (
        "kurtosis", {"bars": 21}, lambda bars: np.log(bars["close"]).diff().rolling(20).kurt(),
    ),
    "skewness of bars": (
        "skewness", {"bars": 21}, lambda bars: np.log(bars["close"]).diff().rolling(20).skew(),
    ),
    "equities' volatility": (
        "volatility",
        {"horizon": "60s", "parameters": {"year_days": 252, "session_hours": 6.5}},
        over("60s", lambda bars: log_returns(bars).std() * np.sqrt(252 * 6.5 * 3600 / 2)),
    ),
    "sma of horizon": ("sma", {"horizon": "1m"}, over("60s", lambda bars: bars["close"].mean())),
    "ema of one": ("ema", {"bars": 1}, lambda bars: bars["close"]),
    "macd of others": (
        "macd_hist",
        {"bars": 10, "parameters": {"fast": 3, "signal": 4}},
        newest(70, ta("MACD", "close", output=2, fastperiod=3, slowperiod=10, signalperiod=4)),
    ),
    "rsi of others": ("rsi", {"bars": 5}, newest(51, ta("RSI", "close", timeperiod=5))),
    "bollinger of others": (
        "bollinger_upper",
        {"bars": 5, "parameters": {"width": 3}},
        newest(5, ta("BBANDS", "close", timeperiod=5, nbdevup=3.0)),
    ),
    "beta of bars": (
        "beta",
        {"bars": 12, "parameters": {"index": "idx"}},
        lambda b: np.where(np.arange(len(b)) < 11, np.nan, newest(12, slope)(b)),
    ),
    "excess of bars": (
        "excess", {"bars": 3}, lambda b: b["close"].pct_change(3) - b["index"].pct_change(3),
    ),
    "zscore of horizon": (
        "zscore",
        {"horizon": "20s"},
        over("20s", lambda b: (b["close"].iloc[-1] - b["close"].mean()) / b["close"].std()),
    ),
    "volume_ratio of horizon": (
        "volume_ratio",
        {"horizon": "20s"},
        over("20s", lambda b: b["volume"].iloc[-1] / b["volume"].iloc[:-1].mean()),
    ),
}  # fmt: skip


def expected(reference: Reference, frame: pl.DataFrame) -> NDArray[np.float64]:
    """The reference's values of all symbols; what is not finite is NaN."""
    values = []
    for symbol in frame["symbol"].unique(maintain_order=True):
        part = frame.filter(pl.col("symbol") == symbol)
        data = {name: part[name].to_numpy() for name in part.columns if name != "symbol"}
        bars = pd.DataFrame(data).set_index(pd.DatetimeIndex(pd.to_datetime(data["ts"])))
        bars["index"] = index_as_of(bars.index)
        with np.errstate(all="ignore"):
            values.append(np.asarray(reference(bars), dtype=float))
    found = np.concatenate(values)
    return np.where(np.isfinite(found), found, np.nan)


def check(name: str, window: dict[str, Any], reference: Reference, frame: pl.DataFrame) -> None:
    values = compute({name: feature(name, **window)}, frame)[name]
    wanted = expected(reference, frame)
    assert np.isfinite(wanted).sum() > 150
    scale = np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("name", REFERENCES)
def test_default(name: str, frame: pl.DataFrame) -> None:
    check(name, {}, REFERENCES[name], frame)


@pytest.mark.parametrize("case", OTHERS)
def test_with_settings(case: str, frame: pl.DataFrame) -> None:
    name, window, reference = OTHERS[case]
    check(name, window, reference, frame)


def test_every_family_has_a_reference() -> None:
    assert set(registry.backends("feature")) <= set(REFERENCES)


def test_a_session_begins_anew(frame: pl.DataFrame) -> None:
    """Behind a hole of the session gap every value is that of a symbol that begins there."""
    gap_ns = 20 * INTERVAL_NS
    hole = pl.col("ts").diff().over("symbol") - INTERVAL_NS
    fresh = frame.select((hole >= gap_ns).fill_null(value=False))
    session = fresh.to_series().cum_sum().cast(pl.String)
    apart = frame.with_columns(symbol=pl.col("symbol") + "/" + session.str.zfill(4))
    features = {name: feature(name) for name in REFERENCES}
    within = compute(features, frame, session_gap_ns=gap_ns)
    alone = compute(features, apart)
    assert fresh.to_series().sum() > 10
    assert {name: within[name].tobytes() == alone[name].tobytes() for name in features} == (
        dict.fromkeys(features, True)
    )
