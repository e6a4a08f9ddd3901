"""Names that no feature of the configuration can bear, since conditions would not find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from market_data_core._config_features import CONDITION_FUNCTIONS
from market_data_core.config import BAR_COLUMNS, load_config
from market_data_core.errors import ConfigError
from market_data_pipeline.inference import expression
from market_data_pipeline.inference.expression import compile_condition


def window(path: Path, name: str) -> str:
    """What is said of a feature of that name; empty if nothing is."""
    path.write_text(f'features:\n  windows:\n    - {{name: "{name}", bars: 5, feature: ret}}\n')
    try:
        load_config(path)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (BAR_COLUMNS, "is a column of the bars"),
        (("prev", "cross_up", "cross_down", "between", "min"), "is a function of conditions"),
        (("score", "prediction"), "is a model's answer in conditions"),
        (("and", "or", "not", "AND", "true", "False", "none"), "is a word of the language of"),
        (("if", "lambda", "in", "is"), "is a word of the language of conditions"),
        (("provider", "symbol", "interval", "ts", "end"), "is a column of the training matrix"),
        (("label_1m",), "begins as labels do, which look ahead"),
    ],
)
def test_a_name_that_has_a_meaning_is_refused(
    tmp_path: Path, names: tuple[str, ...], why: str
) -> None:
    path = tmp_path / "streaming.yaml"
    for name in names:
        said = window(path, name)
        assert said.startswith(f"{path}: line 3: features.windows[0].name: {name!r} {why}")
        assert said.endswith("; give the feature another name")


@pytest.mark.parametrize("name", ["a@SPY", "", "1m", "a-b", "a b", "ü"])
def test_a_name_has_letters_digits_and_underscores(tmp_path: Path, name: str) -> None:
    said = window(tmp_path / "streaming.yaml", name)
    assert f"features.windows[0].name: {name!r} is not valid: letters, digits and '_'" in said


@pytest.mark.parametrize("name", ["prevs", "scored", "_and", "minimum", "ret_5", "Close"])
def test_other_names_are_found_by_conditions(tmp_path: Path, name: str) -> None:
    assert window(tmp_path / "streaming.yaml", name) == ""
    assert list(compile_condition(f"{name} > 0", [name]).columns) == [name]


def test_the_names_are_those_of_the_language() -> None:
    assert set(CONDITION_FUNCTIONS) == set(expression._USAGE)
