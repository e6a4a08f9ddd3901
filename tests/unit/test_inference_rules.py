"""Rules: what fires for whom, what it tells, where the file is, and what the reference says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from market_data_core import registry
from market_data_core.config import load_config
from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Adapter, Firing
from market_data_core.errors import ConfigError
from market_data_pipeline.inference.adapters.rules import BUILT_IN, RulesAdapter, load_rules

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = Path("configs/rules.yaml")
COLUMNS = {
    *("open", "high", "low", "close", "volume", "vwap", "trade_count"),
    *("momentum", "volatility", "rsi", "vwap_1m"),
}
NAN = float("nan")


class Table:
    """Rows of several symbols, one bar each unless `earlier` gives those before."""

    def __init__(
        self,
        columns: dict[str, list[float]],
        *,
        symbols: Sequence[str] = ("SPY", "AAPL", "BTCUSDT"),
        codes: Sequence[int] | None = None,
        provider: str = "ibkr",
        interval: str = "2s",
        earlier: Sequence[dict[str, list[float]]] = (),
    ) -> None:
        self.provider, self.interval, self.symbols = provider, interval, symbols
        count = len(next(iter(columns.values())))
        self.codes = np.array(range(count) if codes is None else codes, np.intp)
        self.ts = np.zeros(count, np.int64)
        self._bars = [columns, *earlier]

    def __len__(self) -> int:
        return len(self.codes)

    def value(self, column: str, back: int = 0) -> Floats:
        if back >= len(self._bars):
            return np.full(len(self), NAN)
        return np.array(self._bars[back][column], np.float64)


def rules(text: str) -> RulesAdapter:
    return RulesAdapter.of_text(text, str(DEFAULT), COLUMNS, "2s", ["2s", "60s"])


def fired(adapter: Adapter, rows: Table) -> dict[str, list[str]]:
    """Rule -> the symbols that it fired for."""
    return {
        firing.name: [rows.symbols[rows.codes[row]] for row in firing.rows]
        for firing in adapter.evaluate(rows)
    }


# --- what fires ----------------------------------------------------------------------------------


def test_the_shipped_rules_fire() -> None:
    adapter: Adapter = load_rules(ROOT / DEFAULT, COLUMNS, "2s", ["2s"])
    rows = Table(
        {
            "momentum": [0.02, -0.02, 0.01],
            "volatility": [0.2, 0.31, NAN],
            "rsi": [71.0, 29.0, NAN],
        }
    )
    assert fired(adapter, rows) == {
        "price_momentum_up": ["SPY"],
        "price_momentum_down": ["AAPL"],
        "high_volatility": ["AAPL"],
        "rsi_overbought": ["SPY"],
        "rsi_oversold": ["AAPL"],
    }
    said = {
        f.name: (*f.value, *([] if f.score is None else f.score)) for f in adapter.evaluate(rows)
    }
    assert said == {
        "price_momentum_up": (1.0, 0.8),
        "price_momentum_down": (-1.0, 0.8),
        "high_volatility": (0.0, 0.9),
        "rsi_overbought": (-1.0, 0.7),
        "rsi_oversold": (1.0, 0.7),
    }
    assert adapter.columns("2s") == {"momentum": 0, "volatility": 0, "rsi": 0}
    assert adapter.columns("1m") == {}
    adapter.close()


def only(adapter: Adapter, rows: Table) -> Firing:
    (firing,) = adapter.evaluate(rows)
    return firing


def test_what_a_firing_tells() -> None:
    adapter = rules("""
- name: deep
  condition: close > prev(close, 2) or rsi > 100
  signal: -2
  cooldown: 90s
""")
    earlier: list[dict[str, list[float]]] = [{}, {"close": [1.0, 9.0, 1.0]}]
    rows = Table({"close": [2.0, 3.0, 4.0], "rsi": [NAN, 1.0, 5.0]}, earlier=earlier)
    firing = only(adapter, rows)
    assert firing.rows.tolist() == [0, 2]
    assert firing.rows.dtype == np.intp
    assert firing.value.tolist() == [-2.0, -2.0]
    assert firing.value.dtype == np.float64
    assert firing.score is None
    assert firing.cooldown_ns == 90 * 10**9
    assert {name: len(values) for name, values in firing.meta.items()} == {"close": 2, "rsi": 2}
    assert firing.meta["close"].tolist() == [2.0, 4.0]
    np.testing.assert_array_equal(firing.meta["rsi"], [NAN, 5.0])


def test_meta_is_chosen_by_the_rule() -> None:
    text = "- {name: a, condition: 'prev(rsi, 3) > 1 or rsi > 1', signal: 1, meta: [close, vwap]}"
    adapter = rules(text)
    assert adapter.columns("2s") == {"rsi": 3, "close": 0, "vwap": 0}
    firing = only(adapter, Table({"rsi": [2.0], "close": [7.0], "vwap": [8.0]}))
    assert {name: values.tolist() for name, values in firing.meta.items()} == {
        "close": [7.0],
        "vwap": [8.0],
    }
    none = rules("- {name: a, condition: rsi > 1, signal: 1, meta: []}")
    assert only(none, Table({"rsi": [2.0]})).meta == {}


def test_look_backs_are_the_greatest_of_all_rules() -> None:
    adapter = rules("""
- {name: a, condition: "prev(close, 2) > 1 and vwap > 1", signal: 1}
- {name: b, condition: "cross_up(close, vwap)", signal: 1}
- {name: c, condition: "prev(rsi, 9) > 1", signal: 1, interval: 60s}
- {name: d, condition: "prev(rsi, 99) > 1", signal: 1, enabled: false}
""")
    assert adapter.columns("2s") == {"close": 2, "vwap": 1}
    assert adapter.columns("1m") == {"rsi": 9}
    assert adapter.names == ("a", "b", "c")


def test_a_rule_belongs_to_one_interval() -> None:
    adapter = rules("""
- {name: small, condition: close > 0, signal: 1}
- {name: wide, condition: close > 0, signal: 1, interval: 60s}
""")
    assert fired(adapter, Table({"close": [1.0]})) == {"small": ["SPY"]}
    assert fired(adapter, Table({"close": [1.0]}, interval="1m")) == {"wide": ["SPY"]}
    assert fired(adapter, Table({"close": [1.0]}, interval="5m")) == {}


def test_a_rule_may_be_for_some_symbols() -> None:
    adapter = rules("""
- {name: exact, condition: close > 0, signal: 1, symbols: [spy]}
- {name: prefix, condition: close > 0, signal: 1, symbols: ["BTC*", SPY]}
- {name: nobody, condition: close > 0, signal: 1, symbols: [QQQ]}
- {name: everyone, condition: close > 0, signal: 1, symbols: []}
""")
    rows = Table({"close": [1.0, 1.0, 1.0, -1.0, 1.0]}, codes=[2, 1, 0, 0, 2])
    assert fired(adapter, rows) == {
        "exact": ["SPY"],
        "prefix": ["BTCUSDT", "SPY", "BTCUSDT"],
        "everyone": ["BTCUSDT", "AAPL", "SPY", "BTCUSDT"],
    }


@pytest.mark.parametrize(
    ("providers", "seen"),
    [
        ("[]", ["ibkr", "ibkr_2", "polygon"]),
        ("[ibkr]", ["ibkr"]),
        ("['ibkr*']", ["ibkr", "ibkr_2"]),
        ("['*']", ["ibkr", "ibkr_2", "polygon"]),
        ("['ibkr:official']", ["ibkr:official"]),
        ("['*:official']", ["ibkr:official", "polygon:official"]),
        ("['ibkr*:official', polygon]", ["ibkr:official", "polygon"]),
    ],
)
def test_a_rule_may_be_for_some_feeds(providers: str, seen: list[str]) -> None:
    adapter = rules(f"- {{name: a, condition: close > 0, signal: 1, providers: {providers}}}")
    feeds = ["ibkr", "ibkr_2", "ibkr:official", "polygon", "polygon:official"]
    assert [feed for feed in feeds if fired(adapter, Table({"close": [1.0]}, provider=feed))] == (
        seen
    )


def test_the_interval_of_official_bars_need_not_be_a_window() -> None:
    text = "- {name: a, condition: close > 0, signal: 1, interval: 5m, providers: ['*:official']}"
    rows = Table({"close": [1.0]}, provider="polygon:official", interval="5m")
    assert fired(rules(text), rows) == {"a": ["SPY"]}


def test_no_rows_and_unknown_columns_fire_nothing() -> None:
    adapter = rules("- {name: a, condition: not (rsi > 70), signal: 1}")
    assert adapter.evaluate(Table({"rsi": []})) == []
    assert adapter.evaluate(Table({"rsi": [NAN, NAN]})) == []


# --- where the file is ---------------------------------------------------------------------------


def test_the_built_in_rules_are_those_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_rules(ROOT / DEFAULT, COLUMNS, "2s", ["2s"])
    monkeypatch.chdir(tmp_path)
    found = load_rules(DEFAULT, COLUMNS, "2s", ["2s"])
    assert found.source == BUILT_IN
    assert found.text == shipped.text
    assert len(found.names) == 5
    DEFAULT.parent.mkdir()
    DEFAULT.write_text("", encoding="utf-8")
    assert load_rules(DEFAULT, COLUMNS, "2s", ["2s"]).names == ()


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match=r"mine\.yaml: cannot be read: No such file"):
        load_rules(path, COLUMNS, "2s", ["2s"])
    path.write_bytes(b"- \xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 2\)"):
        load_rules(path, COLUMNS, "2s", ["2s"])
    path.write_text("\ufeff- {name: good, condition: close > 0, signal: 1}", encoding="utf-8")
    assert load_rules(path, COLUMNS, "2s", ["2s"]).names == ("good",)
    assert load_rules(path, COLUMNS, "2s", ["2s"]).source == str(path)


def test_the_adapter_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backend = registry.backend("inference", "rules")
    settings = load_config().inference.adapters.rules
    assert backend.settings is type(settings)
    adapter = backend.create(settings, COLUMNS, "2s", ["2s"])
    assert adapter.name == "rules"
    assert len(adapter.names) == 5


# --- the reference -------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "reference" / "rules.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\| `([^`]+)` \| ((?:`\w+: [^`]+` ?)+) ?\| `([.x ]+)` \|$", PAGE, re.M)


def test_the_documented_rules_can_be_loaded() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
    assert rules(text).names == ("breakout", "quiet")


def test_the_documented_errors_are_those_told() -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    text = (
        "- {name: hot, condition: close > rsj, signal: 1}\n"
        "- {name: cold, condition: rsi < 30, signal: 1, score: 7}"
    )
    pattern = r"[^\n]*".join(re.escape(part) for part in shown.strip().split("…"))
    with pytest.raises(ConfigError) as caught:
        rules(text)
    assert re.fullmatch(pattern, str(caught.value))


@pytest.mark.parametrize(("condition", "bars", "fires"), EXAMPLES)
def test_the_documented_conditions_fire_as_shown(condition: str, bars: str, fires: str) -> None:
    history = {
        name: [NAN if value == "?" else float(value) for value in values.split()]
        for name, values in re.findall(r"`(\w+): ([^`]+)`", bars)
    }
    adapter = rules(f'- {{name: a, condition: "{condition}", signal: 1}}')
    expected = fires.split()
    assert {len(values) for values in history.values()} == {len(expected)}
    shown = []
    for bar in range(len(expected)):
        now, *earlier = (
            {name: [values[at]] for name, values in history.items()} for at in range(bar, -1, -1)
        )
        shown.append("x" if adapter.evaluate(Table(now, earlier=earlier)) else ".")
    assert shown == expected


def test_every_documented_condition_is_found() -> None:
    table = PAGE.partition("## Examples")[2]
    assert len(EXAMPLES) == len(re.findall(r"^\| `", table, re.M)) >= 10
