"""Corners of the rings: what a vendor does not tell, and sessions without an end."""

from __future__ import annotations

import numpy as np
import polars as pl

from market_data_core.bars import VALUE_COLUMNS, BarBatch
from market_data_core.intervals import NS_PER_S
from market_data_pipeline.features.history import History
from market_data_pipeline.features.panel import Panel

INTERVAL_NS = 2 * NS_PER_S


def one_bar(slot: int, count: int) -> BarBatch:
    price, ts = np.ones(1), np.array([slot * INTERVAL_NS])
    counts = np.array([count], np.int64)
    codes = np.zeros(1, np.uint32)
    prices = (price, price, price, price, price, price)
    return BarBatch("p:official", "2s", "final", ("A",), codes, ts, *prices, counts)


def test_a_trade_count_that_is_not_told_is_unknown() -> None:
    history = History(INTERVAL_NS, {"trade_count": 2}, 0)
    history.load(["A"], Panel.empty(INTERVAL_NS))
    found = []
    for slot, count in enumerate((7, -1)):
        (put,) = history.put(one_bar(slot, count))
        found += put.selection.stored("trade_count").tolist()
    assert found[0] == 7
    assert np.isnan(found[1])


def test_a_session_may_be_longer_than_sixteen_bits_count() -> None:
    bars = 65_539  # in sixteen bits: three
    values = dict.fromkeys(VALUE_COLUMNS, np.ones(bars))
    frame = pl.DataFrame({"symbol": ["A"] * bars, "ts": np.arange(bars) * INTERVAL_NS, **values})
    history = History(INTERVAL_NS, {"close": 5, "ts": 5}, NS_PER_S)
    history.load(["A"], Panel(INTERVAL_NS, frame, NS_PER_S))
    (put,) = history.put(one_bar(bars, 1))
    kept = put.selection.available.tolist()
    assert kept == [5 + 12]  # as many as are kept, whatever the session's age
