"""A value depends on its own set of bars alone: not on later ones, nor on how it is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.features._walks import INDEX, INTERVAL_NS, compute, levels, walks

from market_data_core.config import FeaturesSettings
from market_data_core.contracts.feature import Feature, Floats
from market_data_pipeline.features._bars import ROWS_MIN, StoredBars, Strip
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.panel import Panel

GAP_NS = 25 * INTERVAL_NS
SHORT: dict[str, dict[str, Any]] = {  # sets of bars so short that an example of few bars fills them
    "atr": {"bars": 2},
    "beta": {"bars": 5},
    "bollinger": {"bars": 5},
    "correlation": {"horizon": "24s"},
    "ema": {"bars": 3},
    "excess": {"bars": 3},
    "kurtosis": {"horizon": "24s"},
    "log_ret": {"horizon": "10s"},
    "macd_hist": {"bars": 4, "parameters": {"fast": 2, "signal": 2}},
    "momentum": {"horizon": "20s"},
    "ret": {"bars": 3},
    "rsi": {"bars": 2},
    "skewness": {"bars": 12},
    "sma": {"horizon": "10s"},
    "vol": {"horizon": "24s"},
    "volatility": {"bars": 9},
    "volume_ratio": {"bars": 4},
    "vwap": {"horizon": "30s"},
    "zscore": {"bars": 7},
}
WINDOWS = [{"name": f"{name}_it", "feature": name, **reach} for name, reach in SHORT.items()]
SETTINGS = FeaturesSettings.model_validate({"windows": WINDOWS, "index": INDEX})
COLUMNS = catalog(SETTINGS, INTERVAL_NS)
FEATURES: dict[str, Feature] = {name: COLUMNS[name] for name in COLUMNS}
DEPTH = max(feature.span.depth(INTERVAL_NS) for feature in FEATURES.values())


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    """Bars of a few symbols, some with prices and volumes of any size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    holes = draw(st.sampled_from([0.0, 0.1, 0.6]))
    frame = walks(rng, [*lengths, draw(st.sampled_from([1, DEPTH + 30]))], holes=holes)
    strange = draw(st.sampled_from([0.0, 0.05]))
    for name in ("high", "low", "close", "volume", "vwap"):
        values = frame[name].to_numpy(writable=True)
        values[rng.random(len(values)) < strange] = rng.choice([0.0, 1e-300, 1e-9, 1e12, 1e300])
        frame = frame.with_columns(pl.Series(name, values))
    return frame


def same(some: dict[str, Floats], others: dict[str, Floats]) -> None:
    assert [name for name in some if some[name].tobytes() != others[name].tobytes()] == []


@given(frame=frames(), data=st.data())
@settings(max_examples=12, deadline=None)
def test_neither_later_bars_nor_the_number_of_rows_matter(
    frame: pl.DataFrame, data: st.DataObject
) -> None:
    whole = compute(FEATURES, frame, session_gap_ns=GAP_NS)
    row = data.draw(st.integers(0, len(frame) - 1))
    ts = frame["ts"].to_numpy()
    known = np.flatnonzero(ts <= ts[row])
    before = compute(FEATURES, frame[known], session_gap_ns=GAP_NS)
    same({name: values[known] for name, values in whole.items()}, before)
    some = data.draw(st.lists(st.integers(0, len(frame) - 1), max_size=40))
    rows = np.array([row, *some], np.intp)
    for picked in (rows[:1], rows):
        apart = compute(FEATURES, frame, picked, session_gap_ns=GAP_NS)
        same({name: values[picked] for name, values in whole.items()}, apart)


@given(frame=frames(), data=st.data())
@settings(max_examples=12, deadline=None)
def test_it_does_not_matter_where_bars_are_kept(frame: pl.DataFrame, data: st.DataObject) -> None:
    panel = Panel(INTERVAL_NS, frame, GAP_NS, levels())
    ends = np.flatnonzero(np.diff(panel.codes, append=-1))
    capacity = DEPTH + data.draw(st.integers(1, 7))
    begins = [data.draw(st.integers(0, capacity - 1)) for _ in ends]
    bars = rings(panel, ends, capacity, begins)
    whole = compute(FEATURES, frame, session_gap_ns=GAP_NS)
    found = {name: feature.compute(bars)[: len(ends)] for name, feature in FEATURES.items()}
    same(found, {name: values[ends] for name, values in whole.items()})


def rings(panel: Panel, ends: NDArray[np.intp], capacity: int, begins: list[int]) -> StoredBars:
    """The newest bars of each symbol, in a ring that begins anywhere, side by side."""
    lengths = np.diff(ends, prepend=-1)
    strips = {}
    for name, values in {"ts": panel.ts, **panel.columns}.items():
        ring = np.full((capacity, len(ends)), -1, values.dtype)  # what no one may look at
        newest = []
        for code, (end, length, begin) in enumerate(zip(ends, lengths, begins, strict=True)):
            kept = np.arange(max(0, length - capacity), length)
            places = (begin + kept) % capacity
            ring[places, code] = values[end + 1 - length + kept]
            newest.append(places[-1] * len(ends) + code)
        rows = np.array(newest, np.intp)
        strips[name] = Strip(ring.ravel(), filled(rows), len(ends))
    available = np.minimum(panel.available[ends], capacity)
    return StoredBars(INTERVAL_NS, strips, filled(available), {})


def filled(values: NDArray[Any]) -> NDArray[Any]:
    """`values` and copies of the first one."""
    return np.concatenate([values, np.full(ROWS_MIN, values[0])])


def test_all_rows_in_several_pieces() -> None:
    frame = walks(np.random.default_rng(3), [700, 700, 3], holes=0.05)
    rows = np.array([0, 699, 700, 1_023, 1_024, 1_399, 1_402])
    whole = compute(FEATURES, frame)
    same({name: values[rows] for name, values in whole.items()}, compute(FEATURES, frame, rows))


def test_the_set_lies_within_the_span() -> None:
    """Bars beyond the span are changed: nothing else changes, and the bar at its edge counts."""
    frame = walks(np.random.default_rng(5), [DEPTH + 40], holes=0.0, untraded=0.0)
    row = np.array([len(frame) - 1])
    for name, feature in FEATURES.items():
        depth = feature.span.depth(INTERVAL_NS)
        value = compute({name: feature}, frame, row)[name]
        beyond = scaled(frame, slice(0, len(frame) - depth))
        assert compute({name: feature}, beyond, row)[name].tobytes() == value.tobytes(), name
        within = scaled(frame, slice(len(frame) - depth, len(frame) - 1))
        assert compute({name: feature}, within, row)[name] != value, name


def scaled(frame: pl.DataFrame, part: slice) -> pl.DataFrame:
    """Bars with other values in a part."""
    factor = np.ones(len(frame))
    factor[part] = 1 + np.random.default_rng(1).random(part.stop - part.start)
    names = ("open", "high", "low", "close", "volume", "vwap")
    return frame.with_columns(pl.col(name) * factor for name in names)


def test_rings_that_turn_together_are_read_as_others() -> None:
    values = np.arange(7.0 * 20)
    for newest in (3 * 20 + np.arange(20), np.arange(20), 125 + np.arange(20)):
        together = Strip(values, newest, 20).back(7)
        assert (together == Strip(values, newest[::-1], 20).back(7)[:, ::-1]).all()
        assert together.flags.c_contiguous


def test_too_few_rows_are_refused() -> None:
    rows = np.zeros(ROWS_MIN - 1, np.intp)
    strips = {"ts": Strip(np.zeros(1, np.int64), rows, 1)}
    with pytest.raises(ValueError, match="15 rows are too few, at least 16"):
        StoredBars(INTERVAL_NS, strips, np.ones(len(rows), np.int64), {})
