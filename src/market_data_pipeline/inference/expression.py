"""The language of conditions: arithmetic, comparison and logic over columns.

A condition is read by Python's own parser after its characters were checked, and then turned into
closures over whole columns; what is not in the language is refused, and nothing is evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NoReturn

import numpy as np

from market_data_core._suggest import did_you_mean
from market_data_core.contracts.feature import Floats
from market_data_core.errors import ConfigError
from market_data_pipeline.inference.expression_values import (
    Binary,
    Bools,
    Frame,
    Truth,
    all_of,
    any_of,
    clip,
    compare,
    known,
    negated,
    power,
)

TEXT_MAX = 2_000
"""Longest condition, in characters."""
NESTING_MAX = 50
NODES_MAX = 500
"""Most numbers, columns, operators and calls in one condition."""
BACK_MAX = 100
"""How far back a condition may look, in bars."""
EXPONENT_MAX = 16

Known = Collection[str] | Callable[[str], bool]
"""The names of all columns, or what tells whether a name is one."""

_Number = Callable[[Frame], Floats]
_Logic = Callable[[Frame], Truth]

_TOKEN = re.compile(
    r"\s+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])|[A-Za-z_]\w*|\*\*|[<>=!]=|[-+*/%<>(),]",
    re.ASCII,
)
_SHOUTED = re.compile(r"\b(AND|OR|NOT)\b")
_HINTS = {
    "=": "write == to compare",
    "!": "write not, or != to compare",
    "&": "write and",
    "|": "write or",
    "^": "write ** for a power",
    "[": "write prev(x, n) for the value n bars before",
    ".": "a column is a single name",
    "$": "variables are not filled in here, so that the file alone decides",
    "#": "write comments outside of the condition",
    "'": "a condition compares numbers; use symbols: and providers: to choose feeds",
    '"': "a condition compares numbers; use symbols: and providers: to choose feeds",
}
_ARITHMETIC: dict[type[ast.operator], Binary] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Mod: np.mod,
}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_NUMBER_FUNCTIONS: dict[str, Callable[..., Floats]] = {
    "abs": np.abs,
    "sign": np.sign,
    "min": lambda *values: reduce(np.minimum, values),
    "max": lambda *values: reduce(np.maximum, values),
    "clip": clip,
}
_LOGIC_FUNCTIONS = ("between", "cross_up", "cross_down")
_USAGE = {
    "prev": (1, 2, "prev(x) or prev(x, n)"),
    "abs": (1, 1, "abs(x)"),
    "sign": (1, 1, "sign(x)"),
    "min": (2, NODES_MAX, "min(x, y, …)"),
    "max": (2, NODES_MAX, "max(x, y, …)"),
    "clip": (3, 3, "clip(x, low, high)"),
    "between": (3, 3, "between(x, low, high)"),
    "cross_up": (2, 2, "cross_up(x, y)"),
    "cross_down": (2, 2, "cross_down(x, y)"),
}
"""Of each function the least and greatest number of arguments, and how it is written."""


class ConditionError(ConfigError):
    """A condition is not one.

    Attributes:
        position: of the character where it goes wrong, counted from 1.
    """

    def __init__(self, message: str, text: str, position: int) -> None:
        near = " ".join(text[position - 1 :].split())
        where = f"near {near[:30]!r}" if near else "its end"
        super().__init__(f"position {position} ({where}): {message}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition, ready to be evaluated.

    Attributes:
        text: as it was written.
        columns: column -> how many bars back it is looked at, at most; in order of appearance.
        test: what it says about each row.
    """

    text: str
    columns: Mapping[str, int]
    test: _Logic

    def fires(self, frame: Frame) -> Bools:
        """Shape (n,): where it holds; where that is unknown, it does not fire."""
        with np.errstate(all="ignore"):  # what a division by zero gives counts as unknown
            return self.test(frame).yes


def compile_condition(text: str, columns: Known) -> Condition:
    """The condition that `text` states.

    Args:
        text: at most 2,000 characters; line breaks count as blanks.
        columns: those that may be named in it.

    Raises:
        ConditionError: it is not one; the message tells the position and what to write instead.
    """
    if not text.strip():
        msg = "the condition is empty; write one such as rsi > 70"
        raise ConditionError(msg, text, 1)
    if len(text) > TEXT_MAX:
        msg = f"the condition is longer than {TEXT_MAX} characters"
        raise ConditionError(msg, text, TEXT_MAX + 1)
    _check_characters(text)
    compiler = _Compiler(text, columns)
    test = compiler.compile()
    if not compiler.backs:
        msg = "the condition names no column, so that it is the same for every bar"
        raise ConditionError(msg, text, 1)
    return Condition(text, compiler.backs, test)


def unknown_column(name: str, columns: Known) -> str:
    """What to say about a name that is no column; empty if it is one."""
    if not isinstance(columns, Collection):
        return "" if columns(name) else f"unknown column {name!r}"
    found = name in columns
    return "" if found else f"unknown column {name!r}; {did_you_mean(name, sorted(columns))}"


def _check_characters(text: str) -> None:
    """Refuse everything that no condition is made of, before Python's parser sees it."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            character = text[at]
            hint = f"; {_HINTS[character]}" if character in _HINTS else ""
            msg = f"{character!r} has no meaning here{hint}"
            if character.isdigit():
                msg = "this is not a decimal number"
            raise ConditionError(msg, text, at + 1)
        at = found.end()


class _Compiler:
    """Turns one parsed condition into closures, noting which columns they read."""

    def __init__(self, text: str, columns: Known) -> None:
        self.backs: dict[str, int] = {}
        self._text, self._known = text, columns
        self._indent = len(text) - len(text.lstrip())

    def compile(self) -> _Logic:
        """What the condition says about each row."""
        tree = self._parsed()
        self._check_size(tree)
        return self._logic(tree, 0)

    def _parsed(self) -> ast.expr:
        line = re.sub(r"\s", " ", self._text)[self._indent :]
        try:
            return ast.parse(line, mode="eval").body
        except SyntaxError as error:
            if shouted := _SHOUTED.search(self._text):
                msg = f"write {shouted[0].lower()} in lower case"
                raise ConditionError(msg, self._text, shouted.start() + 1) from error
            position = min(max(error.offset or 1, 1) + self._indent, len(self._text) + 1)
            msg = "this is not understood"
            raise ConditionError(msg, self._text, position) from error
        except (RecursionError, MemoryError) as error:
            msg = f"the condition is nested deeper than {NESTING_MAX}"
            raise ConditionError(msg, self._text, 1) from error

    def _check_size(self, tree: ast.expr) -> None:
        waiting, nodes = [(tree, 1)], 0
        while waiting:
            node, depth = waiting.pop()
            nodes += 1
            if depth > NESTING_MAX:
                self._refuse(node, f"the condition is nested deeper than {NESTING_MAX}")
            if nodes > NODES_MAX:
                self._refuse(node, f"the condition has more than {NODES_MAX} parts")
            below = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
            waiting += [(child, depth + 1) for child in below]

    def _refuse(self, node: ast.expr, message: str) -> NoReturn:
        raise ConditionError(message, self._text, node.col_offset + self._indent + 1)

    def _logic(self, node: ast.expr, back: int) -> _Logic:
        """What `node` says, `back` bars before each row's own."""
        if isinstance(node, ast.BoolOp):
            join = all_of if isinstance(node.op, ast.And) else any_of
            parts = [self._logic(value, back) for value in node.values]
            return lambda frame: join([part(frame) for part in parts])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            part = self._logic(node.operand, back)
            return lambda frame: negated(part(frame))
        if isinstance(node, ast.Compare):
            return self._comparison(node, back)
        if isinstance(node, ast.Call):
            name = self._function(node)
            if name == "prev":
                return self._logic(node.args[0], self._back(node, back))
            if name in _LOGIC_FUNCTIONS:
                return self._logic_call(name, node, back)
        if _is_number(node):
            self._refuse(node, "a condition is needed here, not a number; compare it, as in x > 0")
        return self._refuse_kind(node)

    def _comparison(self, node: ast.Compare, back: int) -> _Logic:
        values = [self._number(value, back) for value in (node.left, *node.comparators)]
        signs = []
        for sign, right in zip(node.ops, node.comparators, strict=True):
            if type(sign) not in _COMPARISONS:
                self._refuse(right, "in and is do not compare numbers; use < <= > >= == !=")
            signs.append(_COMPARISONS[type(sign)])

        def test(frame: Frame) -> Truth:
            found = [value(frame) for value in values]
            pairs = zip(signs, found, found[1:], strict=False)
            return all_of([compare(sign, left, right) for sign, left, right in pairs])

        return test

    def _logic_call(self, name: str, node: ast.Call, back: int) -> _Logic:
        now = [self._number(argument, back) for argument in node.args]
        if name == "between":

            def between(frame: Frame) -> Truth:
                value, low, high = (argument(frame) for argument in now)
                return all_of([compare("<=", low, value), compare("<=", value, high)])

            return between
        earlier = self._deeper(node, back, 1)
        before = [self._number(argument, earlier) for argument in node.args]
        was, became = ("<=", ">") if name == "cross_up" else (">=", "<")

        def cross(frame: Frame) -> Truth:
            first, second, old_first, old_second = (value(frame) for value in (*now, *before))
            return all_of([compare(was, old_first, old_second), compare(became, first, second)])

        return cross

    def _number(self, node: ast.expr, back: int) -> _Number:
        """The value of `node`, `back` bars before each row's own."""
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._column(node, back)
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node, back)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._number(node.operand, back)
            return (lambda frame: -value(frame)) if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call):
            name = self._function(node)
            if name == "prev":
                return self._number(node.args[0], self._back(node, back))
            if name in _NUMBER_FUNCTIONS:
                function = _NUMBER_FUNCTIONS[name]
                values = [self._number(argument, back) for argument in node.args]
                return lambda frame: function(*(value(frame) for value in values))
        if _is_condition(node):
            self._refuse(node, "a number is needed here, not a condition")
        return self._refuse_kind(node)

    def _constant(self, node: ast.Constant) -> _Number:
        try:
            value = np.asarray(node.value, np.float64)
        except OverflowError:
            value = np.asarray(np.inf)
        if not np.isfinite(value):
            self._refuse(node, "the number is too large")
        return lambda _: value

    def _column(self, node: ast.Name, back: int) -> _Number:
        name = node.id
        if unknown := unknown_column(name, self._known):
            is_function = f"{name} is a function; write {_USAGE[name][2]}" if name in _USAGE else ""
            self._refuse(node, is_function or unknown)
        self.backs[name] = max(back, self.backs.get(name, 0))
        return lambda frame: frame.column(name, back)

    def _arithmetic(self, node: ast.BinOp, back: int) -> _Number:
        left = self._number(node.left, back)
        if isinstance(node.op, ast.Pow):
            exponent = self._integer(node.right)
            if exponent is None or abs(exponent) > EXPONENT_MAX:
                msg = f"an exponent must be a whole number from -{EXPONENT_MAX} to {EXPONENT_MAX}"
                self._refuse(node.right, msg)
            return lambda frame: power(left(frame), exponent)
        operator = _ARITHMETIC.get(type(node.op))
        if operator is None:
            self._refuse(node.right, "the operator before this is none of + - * / % **")
        right = self._number(node.right, back)
        return lambda frame: known(operator(left(frame), right(frame)))

    @staticmethod
    def _integer(node: ast.expr) -> int | None:
        """The whole number that is written there, None if anything else is."""
        factor = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            node, factor = node.operand, -1
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return factor * node.value
        return None

    def _function(self, node: ast.Call) -> str:
        """The name of the function that is called, with a fitting number of arguments."""
        if not isinstance(node.func, ast.Name):
            self._refuse(node, "only functions can be called")
        if node.keywords:
            self._refuse(node.keywords[0].value, "** has no meaning before an argument")
        name = node.func.id
        if name not in _USAGE:
            self._refuse(node, f"unknown function {name!r}; {did_you_mean(name, _USAGE)}")
        least, most, usage = _USAGE[name]
        if not least <= len(node.args) <= most:
            self._refuse(node, f"{name} is written {usage}")
        return name

    def _back(self, node: ast.Call, back: int) -> int:
        """How far back the argument of a call of ``prev`` is looked at."""
        if len(node.args) == 1:
            return self._deeper(node, back, 1)
        bars = self._integer(node.args[1])
        if bars is None or not 1 <= bars <= BACK_MAX:
            msg = f"prev looks back a whole number of bars, 1 to {BACK_MAX}, written as a number"
            self._refuse(node.args[1], msg)
        return self._deeper(node, back, bars)

    def _deeper(self, node: ast.Call, back: int, bars: int) -> int:
        if back + bars > BACK_MAX:
            msg = f"this looks {back + bars} bars back; at most {BACK_MAX} are possible"
            self._refuse(node, msg)
        return back + bars

    def _refuse_kind(self, node: ast.expr) -> NoReturn:
        self._refuse(node, "this is no part of the language of conditions")


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.UnaryOp):
        return not isinstance(node.op, ast.Not)
    return isinstance(node, ast.Name | ast.BinOp | ast.Call)


def _is_condition(node: ast.expr) -> bool:
    return isinstance(node, ast.BoolOp | ast.Compare | ast.UnaryOp | ast.Call)
