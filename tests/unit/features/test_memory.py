"""What the rings take, held against what is promised."""

from __future__ import annotations

from market_data_core.config import FeaturesSettings
from market_data_core.intervals import NS_PER_S
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.history import History
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.signals.rows import Needs

INTERVAL_NS, SYMBOLS, MINUTES = 2 * NS_PER_S, 1_000, 5
ORDINARY = ("vwap_1m", "ret_30s", "vol_5m", "momentum", "volatility", "rsi")
"""The configured windows, and what the shipped rules look at; the longest is five minutes."""


def test_a_symbol_and_minute_take_a_kilobyte_at_most() -> None:
    known = catalog(FeaturesSettings(), INTERVAL_NS)
    needs = Needs.of(known, dict.fromkeys(ORDINARY, 0), INTERVAL_NS)
    history = History(INTERVAL_NS, needs.depths, 0)
    history.load([f"S{i}" for i in range(SYMBOLS)], Panel.empty(INTERVAL_NS))
    assert needs.reach == MINUTES * 30
    assert 500 < history.nbytes / SYMBOLS / MINUTES <= 1024
