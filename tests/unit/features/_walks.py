"""Random walks as bars, and features computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from market_data_core.config import FeaturesSettings
from market_data_core.contracts.feature import Feature, Floats
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.levels import Levels
from market_data_pipeline.features.panel import Panel

INTERVAL_NS = 2_000_000_000
START_NS = 1_700_000_000 * 10**9
INDEX = "IDX"


def walks(
    rng: np.random.Generator,
    lengths: Sequence[int],
    *,
    holes: float = 0.2,
    untraded: float = 0.1,
    interval_ns: int = INTERVAL_NS,
) -> pl.DataFrame:
    """Bars of one symbol for each of `lengths`, with holes and bars without volume."""
    parts = [_walk(rng, length, holes, untraded, interval_ns) for length in lengths]
    names = [f"S{code:03}" for code in range(len(lengths))]
    columns: dict[str, Any] = {"symbol": np.repeat(names, lengths)}
    columns |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return pl.DataFrame(columns)


def _walk(
    rng: np.random.Generator, length: int, holes: float, untraded: float, interval_ns: int
) -> dict[str, NDArray[Any]]:
    steps = np.where(rng.random(length) < holes, rng.integers(2, 30, length), 1)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, length)))
    open_ = close * np.exp(rng.normal(0, 1e-3, length))
    volume = np.where(rng.random(length) < untraded, 0.0, rng.integers(1, 1_000, length))
    return {
        "ts": START_NS + np.cumsum(steps) * interval_ns,
        "open": open_,
        "high": np.maximum(open_, close) * (1 + rng.random(length) * 1e-3),
        "low": np.minimum(open_, close) * (1 - rng.random(length) * 1e-3),
        "close": close,
        "volume": volume,
        "vwap": np.where(volume > 0, (open_ + close) / 2, np.nan),
        "trade_count": volume,
    }


def prices(close: ArrayLike, **columns: ArrayLike) -> pl.DataFrame:
    """Bars of one symbol without holes; what is not given is the close, the volume 1."""
    closes = np.asarray(close, np.float64)
    n = len(closes)
    values: dict[str, Any] = dict.fromkeys(("open", "high", "low", "close", "vwap"), closes)
    values |= {"volume": np.ones(n), "trade_count": np.ones(n)}
    values |= {name: np.asarray(column, np.float64) for name, column in columns.items()}
    ts = [START_NS + place * INTERVAL_NS for place in range(n)]
    return pl.DataFrame({"symbol": ["A"] * n, "ts": ts, **values})


def feature(name: str, interval_ns: int = INTERVAL_NS, **window: Any) -> Feature:
    """The bare column `name`, or with a window's settings one of that family."""
    windows = ({"name": "it", "feature": name, **window},) if window else ()
    settings = FeaturesSettings.model_validate({"windows": windows, "index": INDEX})
    return catalog(settings, interval_ns)["it" if window else name]


@cache
def levels(interval_ns: int = INTERVAL_NS) -> Levels:
    """Closes of an index over the time of all walks, with holes."""
    rng = np.random.default_rng(99)
    bars = _walk(rng, 4_000, 0.05, 0.0, interval_ns)
    closes = {INDEX: (bars["ts"], bars["close"])}
    return Levels(interval_ns, START_NS, int(bars["ts"][-1]), closes)


def compute(
    features: Mapping[str, Feature],
    frame: pl.DataFrame,
    rows: NDArray[np.intp] | None = None,
    *,
    interval_ns: int = INTERVAL_NS,
    session_gap_ns: int = 0,
    index: Levels | None = None,
) -> dict[str, Floats]:
    """Each feature at the rows, by default all of them, in pieces as the pipeline does it."""
    panel = Panel(interval_ns, frame, session_gap_ns, index or levels(interval_ns))
    rows = np.arange(len(frame)) if rows is None else rows
    depths = {"close": max(feature.span.depth(interval_ns) for feature in features.values())}
    values = {name: np.empty(len(rows)) for name in features}
    for place, bars in panel.select(rows).chunks(depths):
        for name, one in features.items():
            values[name][place] = one.compute(bars)[: place.stop - place.start]
    return values


def last(name: str, frame: pl.DataFrame, **window: Any) -> float:
    """The value of a feature at the last bar."""
    rows = np.array([len(frame) - 1])
    return float(compute({name: feature(name, **window)}, frame, rows)[name][0])
