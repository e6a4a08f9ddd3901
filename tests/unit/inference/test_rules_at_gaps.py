"""What conditions see of bars before a hole that begins a session."""

from __future__ import annotations

import polars as pl
import pytest

from market_data_core.bars import VALUE_COLUMNS
from market_data_core.config import FeaturesSettings
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.inference.adapters.rules import RulesAdapter
from market_data_pipeline.signals.rows import Needs, SelectedRows

MINUTE = 60 * 10**9
CLOSES = (9.0, 8.0, 9.0, 11.0, 9.0, 12.0)
"""Three bars on a Friday and, behind the hole, three on the Monday."""
STARTS = (0, 1, 2, 4_000, 4_001, 4_002)


@pytest.mark.parametrize(
    ("condition", "without", "with_gap"),
    [
        ("cross_up(close, 10)", "...x.x", ".....x"),
        ("cross_down(close, 10)", "....x.", "....x."),
        ("close > prev(close)", "..xx.x", "..x..x"),
        ("close >= prev(close, 2)", "..xxxx", "..x..x"),
        ("close > 10 or prev(close) > 10", "...xxx", "...xxx"),
        ("prev(ret_2) > 0", "....x.", "......"),
    ],
)
def test_a_condition_looks_at_its_session_only(condition: str, without: str, with_gap: str) -> None:
    windows = ({"name": "ret_2", "feature": "ret", "bars": 2},)
    features = catalog(FeaturesSettings.model_validate({"windows": windows}), MINUTE)
    rule = f"- {{name: a, condition: '{condition}', signal: 1}}"
    adapter = RulesAdapter.of_text(rule, "rules.yaml", {*features, "close"}, "1m", ["1m"])
    frame = pl.DataFrame(
        {
            "symbol": ["SPY"] * len(CLOSES),
            "ts": [start * MINUTE for start in STARTS],
            **dict.fromkeys(VALUE_COLUMNS, CLOSES),
        }
    )
    needs = Needs.of(features, adapter.columns("1m"), MINUTE)
    for gap_ns, expected in ((0, without), (30 * MINUTE, with_gap)):
        panel = Panel(MINUTE, frame, gap_ns)
        rows = SelectedRows("ibkr", panel.select(panel.codes * 0 + range(len(CLOSES))), needs)
        fired = [row for firing in adapter.evaluate(rows) for row in firing.rows.tolist()]
        assert "".join(".x"[row in fired] for row in range(len(CLOSES))) == expected
