"""Feature columns by name, and what is told of those that cannot be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from market_data_core import registry
from market_data_core.config import BAR_COLUMNS, FeaturesSettings, FeatureWindow
from market_data_core.contracts.feature import Feature, Span
from market_data_core.errors import ConfigError
from market_data_pipeline.features.catalog import catalog

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "features.md"
SECOND_NS = 10**9
MINUTE_NS = 60 * SECOND_NS


def columns(*windows: Mapping[str, Any], interval_ns: int = 2 * SECOND_NS) -> Mapping[str, Feature]:
    settings = FeaturesSettings.model_validate({"windows": windows})
    return catalog(settings, interval_ns)


def test_families_are_there_without_configuration() -> None:
    names = list(columns())
    assert set(registry.backends("feature")) <= set(names)
    assert {"macd_signal", "macd_hist", "bollinger_upper", "bollinger_lower"} <= set(names)
    assert len(names) == len(set(names)) == len(columns())
    assert not set(names) & set(BAR_COLUMNS)
    assert all(name in columns() for name in names)


def test_what_the_shipped_rules_look_at() -> None:
    found = catalog(FeaturesSettings(), 2 * SECOND_NS)
    assert found["vwap_1m"].span == found["vwap"].span == Span(horizon_ns=MINUTE_NS)
    assert found["momentum"].span == Span(horizon_ns=2 * MINUTE_NS)
    assert found["volatility"].span == found["vol_5m"].span == Span(horizon_ns=5 * MINUTE_NS)
    assert found["rsi"].span == Span(bars=141)
    assert found["ret"].span == Span(bars=2)


def test_an_unknown_column() -> None:
    found = columns()
    assert "vwpa" not in found
    assert "macd_macd" not in found
    assert found.get("macd_upper") is None
    with pytest.raises(KeyError, match="vwpa"):
        found["vwpa"]


def test_a_feature_is_made_once() -> None:
    found = columns()
    assert found["rsi"] is found["rsi"]


@pytest.mark.parametrize(
    ("window", "span"),
    [
        ({"name": "vwap_1m", "horizon": "60s"}, Span(horizon_ns=MINUTE_NS)),
        ({"name": "sma_50", "bars": 50}, Span(bars=50)),
        ({"name": "ema_3", "bars": 3}, Span(bars=15)),
        ({"name": "slow", "feature": "vol", "horizon": "1h"}, Span(horizon_ns=60 * MINUTE_NS)),
        ({"name": "macd_signal_10", "bars": 10, "parameters": {"fast": 2}}, Span(bars=95)),
        ({"name": "upper", "feature": "bollinger_upper", "horizon": "1m"}, Span(MINUTE_NS)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_configured(window: dict[str, Any], span: Span) -> None:
    found = columns(window)
    assert next(iter(found)) == window["name"]
    assert found[window["name"]].span == span


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (
            {"name": "vwpa_1m", "horizon": "1m"},
            r"\(vwpa_1m\): unknown feature family 'vwpa'; did you mean 'vwap'\? valid: atr, ",
        ),
        ({"name": "rsi", "feature": "rsi", "bars": 3}, "is the column of the family"),
        ({"name": "macd_hist", "feature": "rsi", "bars": 3}, "give the window another name"),
        ({"name": "rsi_1m", "horizon": "1m"}, "give bars instead of horizon"),
        (
            {"name": "macd_30", "bars": 30, "parameters": {"fst": 1, "signal": 0}},
            r"signal: should be greater than or equal to 1, got 0; "
            r"fst: unknown key; did you mean 'fast'\?",
        ),
        ({"name": "macd_12", "bars": 12}, r"fast \(12\) must be less than bars \(12\)"),
        (
            {"name": "bollinger_9", "bars": 9, "parameters": {"line": "uper"}},
            "line: 'uper' is not valid; did you mean 'upper'",
        ),
        (
            {"name": "macd_hist_26", "bars": 26, "parameters": {"line": "macd"}},
            "parameters.line is given, and so is feature 'hist'",
        ),
    ],
)
def test_refused(window: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^features\.windows\[0\].*{said}"):
        columns(window)


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (
            {"name": "ret_30s", "horizon": "30s"},
            "30s is too short for bars of 1m; give at least 1m",
        ),
        ({"name": "vol_2m", "horizon": "2m"}, "2m is too short for bars of 1m; give at least 3m"),
        ({"name": "vol_2", "bars": 2}, "bars: 2 is too few; give at least 3"),
        ({"name": "kurtosis_4", "bars": 4}, "bars: 4 is too few; give at least 5"),
    ],
)
def test_too_short_is_told_when_it_is_asked_for(window: dict[str, Any], said: str) -> None:
    """Windows of several lengths share one configuration."""
    found = columns(window, interval_ns=MINUTE_NS)
    assert window["name"] in found
    with pytest.raises(
        ConfigError, match=rf"^features\.windows\[0\] \({window['name']}\): .*{said}"
    ):
        found[window["name"]]
    if "horizon" in window:
        assert columns(window, interval_ns=SECOND_NS)[window["name"]]


def test_too_long() -> None:
    found = columns({"name": "vol_7d", "horizon": "7d"}, interval_ns=SECOND_NS)
    with pytest.raises(ConfigError, match="looks at 604800 bars of 1s, the most is 100000"):
        found["vol_7d"]


@pytest.mark.parametrize(
    ("window", "said"),
    [
        ({"name": "sma"}, "exactly one of horizon and bars"),
        ({"name": "sma_20", "horizon": "1m", "bars": 20}, "exactly one of horizon and bars"),
        ({"name": "sma_20", "bars": 21}, "not a family and the horizon or bars, such as 'vwap_21'"),
        ({"name": "vwap_1m", "horizon": "2m"}, "such as 'vwap_2m'; rename it or give feature:"),
        ({"name": "_20", "bars": 20}, "not a family"),
        ({"name": "close", "feature": "sma", "bars": 20}, "'close' is a column of the bars"),
        ({"name": "bar_vwap", "feature": "vwap", "bars": 1}, "'bar_vwap' is a column of the bars"),
        ({"name": "sma_0", "bars": 0}, "greater than or equal to 1"),
        ({"name": "sma_20000", "bars": 20_000}, "less than or equal to 10000"),
        ({"name": "sma_20", "bars": 20, "parameters": {"bars": 20}}, "bars belongs beside name"),
    ],
)
def test_a_window_that_says_nothing_sensible(window: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FeatureWindow.model_validate(window)


def test_a_name_is_given_once() -> None:
    twice = {"name": "sma_20", "bars": 20}
    with pytest.raises(ValidationError, match="given twice: sma_20"):
        FeaturesSettings.model_validate({"windows": [twice, twice]})


def test_session_gap() -> None:
    assert FeaturesSettings().session_gap_ns == 0
    assert FeaturesSettings(session_gap="1800s").session_gap == "30m"
    assert FeaturesSettings(session_gap="30m").session_gap_ns == 30 * MINUTE_NS
    with pytest.raises(ValidationError, match="'half an hour' is not valid"):
        FeaturesSettings(session_gap="half an hour")


def test_the_page_of_features() -> None:
    """It has a row for each family and names all parameters; its example works."""
    text = PAGE.read_text(encoding="utf-8")
    for name in registry.backends("feature"):
        backend = registry.backend("feature", name)
        assert f"\n| `{name}` |" in text
        assert backend.settings
        assert all(f"`{key}`" in text for key in backend.settings.model_fields)
    for name in columns():
        assert f"`{name}`" in text
    example = re.search(r"^```yaml\n(.*?)^```$", text, re.M | re.S)
    assert example
    settings = FeaturesSettings.model_validate(yaml.safe_load(example[1])["features"])
    found = catalog(settings, 2 * SECOND_NS)
    assert all(found[window.name] for window in settings.windows)


def test_an_index_that_nobody_has_named() -> None:
    """The column is known by its name; asking for it says what is missing."""
    found = columns()
    assert "beta" in found
    with pytest.raises(ConfigError, match=r"feature beta: compares .* or as features\.index"):
        found["beta"]
    window = {"name": "beta_5m", "horizon": "5m"}
    with pytest.raises(ConfigError, match=r"windows\[0\] \(beta_5m\): compares with another"):
        columns(window)
    with pytest.raises(ConfigError, match=r"'A\|B' is not a symbol"):
        columns({**window, "parameters": {"index": "A|B"}})


def test_the_index_of_all_and_that_of_one() -> None:
    window = {"name": "beta_5m", "horizon": "5m", "parameters": {"index": "qqq"}}
    settings = FeaturesSettings.model_validate({"windows": [window], "index": "spy"})
    found = catalog(settings, 2 * SECOND_NS)
    assert found["beta_5m"].columns == ("close", "close@QQQ")
    assert found["excess"].columns == ("close", "close@SPY")
