"""The language of conditions, against a plain Python one, and against what it must refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.unit.inference.plain_conditions import (
    COLUMNS,
    History,
    Logic,
    Number,
    Value,
    column,
    compared,
    conditions,
    expressions,
    histories,
    kleene_not,
    lifted,
)

from market_data_core.contracts.feature import Floats
from market_data_pipeline.inference.expression import (
    BACK_MAX,
    NESTING_MAX,
    NODES_MAX,
    TEXT_MAX,
    ConditionError,
    Known,
    compile_condition,
)
from market_data_pipeline.inference.expression_values import Frame


class Bars:
    """Rows made of a symbol's bars: row i is bar i, and what lies before the first is unknown."""

    def __init__(self, history: History) -> None:
        self.provider, self.interval = "feed", "2s"
        self.symbols: Sequence[str] = ("SPY",)
        self._history = history
        self.codes = np.zeros(len(history), np.intp)
        self.ts = np.arange(len(history), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._history)

    def value(self, column: str, back: int = 0) -> Floats:
        found = [None] * min(back, len(self)) + [bar[column] for bar in self._history]
        return np.array([math.nan if v is None else v for v in found[: len(self)]], np.float64)


def fires(text: str, history: History) -> list[bool]:
    """Of each bar, whether the condition fires."""
    answer = compile_condition(text, COLUMNS).fires(Frame(Bars(history)))
    assert answer.dtype == np.bool_
    assert answer.shape == (len(history),)
    found: list[bool] = answer.tolist()
    return found


def closes(*values: Value) -> History:
    return [{"close": value, "rsi": value, "vwap": 10.0} for value in values]


@given(conditions, histories)
@example(
    Logic("(not (rsi > 70.0))", lambda h, bar: kleene_not(compared(">", h[bar]["rsi"], 70.0))),
    closes(None, 71.0, 69.0),
)
def test_conditions_mean_what_plain_python_says(condition: Logic, history: History) -> None:
    assume(any(name in condition.text for name in COLUMNS))
    expected = [condition.at(history, bar) is True for bar in range(len(history))]
    assert fires(condition.text, history) == expected


@given(expressions("close", "rsi"), histories)
@example(
    Number("close % 3", lifted(lambda x: x % 3, column("close"))), closes(-1.0, 1.0, -3.5, -1e-20)
)
def test_values_are_those_of_plain_python(expression: Number, history: History) -> None:
    expected = [expression.at(history, bar) for bar in range(len(history))]
    beside = [{**bar, "vwap": value} for bar, value in zip(history, expected, strict=True)]
    same = fires(f"{expression.text} == vwap", beside)
    assert same == [value is not None for value in expected]


@settings(max_examples=50)
@given(conditions, histories, st.integers(0, 9))
def test_how_many_rows_are_evaluated_does_not_matter(
    condition: Logic, history: History, at: int
) -> None:
    assume(any(name in condition.text for name in COLUMNS))
    whole = fires(condition.text, history)
    assert fires(condition.text, history[:at]) == whole[:at]
    assert fires(condition.text, [*history, *history])[: len(history)] == whole


def test_unknown_does_not_fire() -> None:
    history = closes(None, 75.0, 65.0)
    assert fires("rsi > 70", history) == [False, True, False]
    assert fires("not (rsi > 70)", history) == [False, False, True]
    assert fires("not rsi > 70 or vwap == 10", history) == [True, True, True]
    assert fires("rsi != 70 and not vwap == 10", history) == [False, False, False]


@pytest.mark.parametrize(
    "text",
    ["close / 0 > 1", "not close / 0 > 1", "close % 0 == 0", "0 / 0 < close", "close ** -1 < 1"],
)
def test_division_by_zero_is_unknown(text: str) -> None:
    assert fires(text, closes(0.0)) == [False]


def test_overflow_is_unknown() -> None:
    assert fires("close ** 16 > 1", closes(1e300)) == [False]
    assert fires("close * close > 1 or close + close > 1", closes(1.7e308)) == [False]
    assert fires("close > 1", closes(math.inf)) == [False]


def test_crosses() -> None:
    values = closes(9.0, 11.0, 12.0, 10.0, 11.0, 9.0, None, 11.0)
    up = [False, True, False, False, True, False, False, False]
    down = [False, False, False, False, False, True, False, False]
    assert fires("cross_up(close, vwap)", values) == up
    assert fires("cross_down(close, vwap)", values) == down


def test_precedence_is_that_of_arithmetic() -> None:
    assert fires("-close ** 2 == 0 - 9 and 1 + 2 * close == 7 and 7 % 4 == close", closes(3.0)) == [
        True
    ]
    assert fires("close > 5 or close > 2 and not close > 3", closes(3.0)) == [True]


def test_look_backs() -> None:
    text = "prev(close + prev(rsi, 3), 2) > vwap or cross_up(prev(vwap, 4), 1) or rsi > 1"
    condition = compile_condition(text, COLUMNS)
    assert condition.columns == {"close": 2, "rsi": 5, "vwap": 5}
    assert list(condition.columns) == ["close", "rsi", "vwap"]
    deepest = compile_condition(f"prev(close, {BACK_MAX}) > 1", COLUMNS)
    assert deepest.columns == {"close": BACK_MAX}


def test_lines_count_as_blanks() -> None:
    assert fires("\n  close > 1\n  and\tclose < 3\n", closes(2.0)) == [True]


def refusal(text: str, columns: Known = COLUMNS) -> ConditionError:
    with pytest.raises(ConditionError) as caught:
        compile_condition(text, columns)
    error = caught.value
    assert str(error).startswith(f"position {error.position} (")
    return error


@pytest.mark.parametrize(
    "text",
    [
        "close.real > 1",
        "close[0] > 1",
        "().__class__ > close",
        "__import__('os') > close",
        "__import__(os) > close",
        "__class__ > close",
        "exec(close) > 1",
        "print(close)",
        "(lambda: close)() > 1",
        "close > 'a'",
        'close > "a"',
        "close > b''",
        "f'{close}' > 1",
        "(close := 3) > 1",
        "[close for close in rsi] > 1",
        "abs(close for close in rsi) > 1",
        "{close} > 1",
        "close if rsi > 1 else vwap > 1",
        "close > 1 if rsi > 1 else vwap > 1",
        "await close > 1",
        "(yield close) > 1",
        "abs(*close) > 1",
        "abs(close, **rsi) > 1",
        "max(close, key=rsi) > 1",
        "abs(close)(rsi) > 1",
        "close > True",
        "close > None",
        "close > ...",
        "close > 1j",
        "close > 0x10",
        "close > 1_000",
        "close > 007",
        "close > ١",
        "ｃlose > 1",
        "close > 1;",
        "close > 1 # always",
        "close > 1\\\n",
        "~close > 1",
        "close @ rsi > 1",
        "close // rsi > 1",
        "close << 2 > 1",
        "close in rsi",
        "close is rsi",
        "close > 1, close > 2",
        "close > 1 close > 2",
        "close > 1)",
        "close >",
        "import os",
    ],
)
def test_nothing_else_is_understood(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize(
    ("text", "position", "told"),
    [
        ("rsj > 70", 1, "unknown column 'rsj'; did you mean 'rsi'? valid: close, rsi, vwap"),
        ("rsi > 70 and\n  clos > 1", 16, "did you mean 'close'"),
        ("  rsi > 70 AND close > 1", 12, "write and in lower case"),
        ("rsi = 70", 5, "write == to compare"),
        ("rsi > 70 && close > 1", 10, "write and"),
        ("crossup(rsi, 70)", 1, "did you mean 'cross_up'"),
        ("close > prev(close, 0)", 21, "1 to 100"),
        ("close > prev(close, -1)", 21, "1 to 100"),
        ("close > prev(close, 101)", 21, "1 to 100"),
        ("close > prev(close, 1.0)", 21, "1 to 100"),
        ("close > prev(close, rsi)", 21, "1 to 100"),
        ("prev(prev(close, 60), 60) > 1", 6, "this looks 120 bars back; at most 100"),
        ("prev(cross_up(rsi, 70), 100)", 6, "this looks 101 bars back; at most 100"),
        ("prev > 1", 1, "prev is a function; write prev(x) or prev(x, n)"),
        ("min(close) > 1", 1, "min is written min(x, y, …)"),
        ("close > prev()", 9, "prev is written"),
        ("between(close, 1)", 1, "between is written between(x, low, high)"),
        ("close ** 0.5 > 1", 10, "an exponent must be a whole number from -16 to 16"),
        ("close ** 17 > 1", 10, "an exponent must be a whole number from -16 to 16"),
        ("close ** rsi > 1", 10, "an exponent must be a whole number from -16 to 16"),
        ("close > 1e999", 9, "the number is too large"),
        ("close > " + "9" * 400, 9, "the number is too large"),
        ("close", 1, "a condition is needed here, not a number"),
        ("close > 1 and rsi", 15, "a condition is needed here, not a number"),
        ("not abs(rsi)", 5, "a condition is needed here, not a number"),
        ("prev(rsi)", 6, "a condition is needed here, not a number"),
        ("(close > 1) + 1 > 0", 2, "a number is needed here, not a condition"),
        ("(close > 1) == (rsi > 1)", 2, "a number is needed here, not a condition"),
        ("abs(between(close, 1, 2)) > 0", 5, "a number is needed here, not a condition"),
        ("-(not close > 1) > 0", 3, "a number is needed here, not a condition"),
        ("prev(close > 1) > 0", 6, "a number is needed here, not a condition"),
        ("1 < 2", 1, "names no column"),
        ("", 1, "empty"),
        (" \n", 1, "empty"),
        ("close > ${LEVEL}", 9, "variables are not filled in"),
    ],
)
def test_errors_tell_position_and_remedy(text: str, position: int, told: str) -> None:
    error = refusal(text)
    assert told in str(error)
    assert error.position == position


def test_columns_can_be_told_by_a_function() -> None:
    assert compile_condition("ret_5m > 0", lambda name: name.startswith("ret_")).columns
    assert "unknown column 'rat_5m'" in str(refusal("rat_5m > 0", lambda _: False))


def test_conditions_are_bounded() -> None:
    assert "longer than" in str(refusal("close > 1" + " " * TEXT_MAX))
    assert "nested deeper" in str(refusal("-" * NESTING_MAX + "close > 1"))
    assert "nested deeper" in str(refusal("not " * 400 + "close > 1"))
    refusal("(" * 900 + "close" + ")" * 900 + " > 1")
    many = "max(" + ",".join(["1"] * NODES_MAX) + ") > close"
    assert "more than" in str(refusal(many))
    compile_condition("max(" + ",".join(["1"] * (NODES_MAX - 10)) + ") > close", COLUMNS)


@given(st.text(max_size=60) | st.text("closerivwap()+-*/%<>=!., 0123456789\nandot", max_size=60))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        position = len(compile_condition(text, COLUMNS).columns)
    except ConditionError as error:
        position = error.position
    assert 1 <= position <= len(text) + 1
