"""``configs/datasets.yaml``."""

from __future__ import annotations

from pathlib import Path

import pytest

from market_data_core.datasets import find_dataset, load_datasets
from market_data_core.errors import ConfigError, UsageError
from market_data_core.events import parse_ts

ROOT = Path(__file__).resolve().parents[3]


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "datasets.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_is_valid() -> None:
    found = find_dataset("spy_1day_history", ROOT / "configs" / "datasets.yaml")
    assert (found.provider, found.symbols, found.interval) == ("synthetic", ("SPY",), "tick")
    assert found.from_ts == parse_ts("2025-10-24")
    assert found.to_ts == parse_ts("2025-10-25")


def test_only_the_provider_is_needed(tmp_path: Path) -> None:
    (found,) = load_datasets(_file(tmp_path, "a: {provider: x}")).values()
    assert (found.symbols, found.interval, found.from_ts, found.to_ts) == ((), "tick", None, None)


def test_values_have_one_spelling(tmp_path: Path) -> None:
    text = "a:\n  provider: x\n  symbols: [spy]\n  interval: 60s\n  from: 2025-10-24T14:00:00Z\n"
    found = find_dataset("a", _file(tmp_path, text))
    assert (found.symbols, found.interval) == (("SPY",), "1m")
    assert found.from_ts == parse_ts("2025-10-24T14:00")


WRONG = {
    "a:\n  provider: x\n  symbol: [A]": "line 3: a.symbol: unknown key; did you mean 'symbols'?",
    "a:\n  provider: x\n  form: 2025-10-24": "line 3: a.form: unknown key; did you mean 'from'?",
    "a:\n  symbols: [A]": "a.provider: is required",
    "a:\n  provider: x\n  from: soon": "line 3: a.from: 'soon' is not an ISO 8601 time; write 2025",
    "a:\n  provider: x\n  interval: 1y": "line 3: a.interval: interval '1y' is not valid",
    "a:\n  provider: x\n  from: 2025-10-24\n  to: 2025-10-24": "must be before to",
    "a: 5": "line 1: a: must be a group of settings",
    "- a": "must be a mapping of settings",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_datasets(_file(tmp_path, text))
    assert message in str(caught.value)


def test_a_file_or_dataset_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_datasets(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r"no dataset 'b' .*valid: aa"):
        find_dataset("b", _file(tmp_path, "aa: {provider: x}"))
