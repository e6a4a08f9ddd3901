"""The language of conditions a second time, in plain Python, one bar after the other.

Strategies draw conditions with both their text and what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

COLUMNS = ("close", "rsi", "vwap")
Value = float | None
Answer = bool | None
History = Sequence[Mapping[str, Value]]
"""A symbol's bars, oldest first; None where a column is not known."""


@dataclass(frozen=True)
class Number:
    """A numeric expression: its text, and its value at bar `at` (before the first: unknown)."""

    text: str
    at: Callable[[History, int], Value]


@dataclass(frozen=True)
class Logic:
    """Likewise, a condition."""

    text: str
    at: Callable[[History, int], Answer]


def finite(value: float) -> Value:
    return value if math.isfinite(value) else None


def lifted(function: Callable[..., float], *parts: Number) -> Callable[[History, int], Value]:
    """`function` of the parts' values; unknown if one of them is, or if there is no result."""

    def at(history: History, bar: int) -> Value:
        values = [part.at(history, bar) for part in parts]
        try:
            return finite(function(*values)) if None not in values else None
        except (ZeroDivisionError, OverflowError):
            return None

    return at


def column(name: str) -> Number:
    return Number(name, lambda history, bar: history[bar][name] if bar >= 0 else None)


def constant(value: float) -> Number:
    return Number(repr(value), lambda _history, _bar: value)


def repeated(base: float, exponent: int) -> float:
    product = base
    for _ in range(abs(exponent) - 1):
        product *= base
    if exponent == 0:
        return 1.0
    return product if exponent > 0 else 1.0 / product


def arithmetic(parts: st.SearchStrategy[Number], names: Sequence[str]) -> st.SearchStrategy[Number]:
    def binary(sign: str, a: Number, b: Number) -> Number:
        functions: dict[str, Callable[[float, float], float]] = {
            "+": lambda x, y: x + y,
            "-": lambda x, y: x - y,
            "*": lambda x, y: x * y,
            "/": lambda x, y: x / y,
            "%": lambda x, y: x % y,
        }
        return Number(f"({a.text} {sign} {b.text})", lifted(functions[sign], a, b))

    def back(a: Number, n: int) -> Number:
        return Number(f"prev({a.text}, {n})", lambda history, bar: a.at(history, bar - n))

    def clipped(a: Number, b: Number, c: Number) -> Number:
        at = lifted(lambda x, low, high: min(max(x, low), high), a, b, c)
        return Number(f"clip({a.text}, {b.text}, {c.text})", at)

    return st.one_of(
        st.builds(binary, st.sampled_from("+-*/%"), parts, parts),
        st.builds(back, parts, st.integers(1, 3)),
        parts.map(lambda a: Number(f"prev({a.text})", lambda h, bar: a.at(h, bar - 1))),
        parts.map(lambda a: Number(f"(-{a.text})", lifted(lambda x: -x, a))),
        parts.map(lambda a: Number(f"abs({a.text})", lifted(abs, a))),
        parts.map(lambda a: Number(f"sign({a.text})", lifted(lambda x: (x > 0) - (x < 0), a))),
        st.builds(
            lambda a, n: Number(f"{a.text} ** {n}", lifted(lambda x: repeated(x, n), a)),
            st.sampled_from([column(name) for name in names]),
            st.integers(-4, 4),
        ),
        st.lists(parts, min_size=2, max_size=3).map(
            lambda p: Number(f"min({', '.join(x.text for x in p)})", lifted(min, *p))
        ),
        st.lists(parts, min_size=2, max_size=3).map(
            lambda p: Number(f"max({', '.join(x.text for x in p)})", lifted(max, *p))
        ),
        st.builds(clipped, parts, parts, parts),
    )


def kleene_and(answers: Iterable[Answer]) -> Answer:
    found = list(answers)
    if False in found:
        return False
    return None if None in found else True


def kleene_not(answer: Answer) -> Answer:
    return None if answer is None else not answer


SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
}


def compared(sign: str, a: Value, b: Value) -> Answer:
    return None if a is None or b is None else SIGNS[sign](a, b)


def comparisons(parts: st.SearchStrategy[Number]) -> st.SearchStrategy[Logic]:
    def chain(first: Number, rest: list[tuple[str, Number]]) -> Logic:
        text = first.text + "".join(f" {sign} {part.text}" for sign, part in rest)

        def at(history: History, bar: int) -> Answer:
            values = [part.at(history, bar) for part in (first, *(part for _, part in rest))]
            pairs = zip(rest, values, values[1:], strict=False)
            return kleene_and(compared(sign, a, b) for (sign, _), a, b in pairs)

        return Logic(f"({text})", at)

    def between(a: Number, low: Number, high: Number) -> Logic:
        inside = chain(low, [("<=", a), ("<=", high)])
        return Logic(f"between({a.text}, {low.text}, {high.text})", inside.at)

    def cross(name: str, a: Number, b: Number) -> Logic:
        was, became = ("<=", ">") if name == "cross_up" else (">=", "<")

        def at(history: History, bar: int) -> Answer:
            before = compared(was, a.at(history, bar - 1), b.at(history, bar - 1))
            now = compared(became, a.at(history, bar), b.at(history, bar))
            return kleene_and([before, now])

        return Logic(f"{name}({a.text}, {b.text})", at)

    rest = st.lists(st.tuples(st.sampled_from(sorted(SIGNS)), parts), min_size=1, max_size=3)
    return st.one_of(
        st.builds(chain, parts, rest),
        st.builds(between, parts, parts, parts),
        st.builds(cross, st.sampled_from(["cross_up", "cross_down"]), parts, parts),
    )


def combined(parts: st.SearchStrategy[Logic]) -> st.SearchStrategy[Logic]:
    def joined(word: str, p: list[Logic]) -> Logic:
        def at(history: History, bar: int) -> Answer:
            answers = [part.at(history, bar) for part in p]
            if word == "and":
                return kleene_and(answers)
            return kleene_not(kleene_and(map(kleene_not, answers)))

        return Logic("(" + f" {word} ".join(part.text for part in p) + ")", at)

    return st.one_of(
        st.builds(joined, st.sampled_from(["and", "or"]), st.lists(parts, min_size=2, max_size=3)),
        parts.map(lambda a: Logic(f"(not {a.text})", lambda h, bar: kleene_not(a.at(h, bar)))),
        parts.map(lambda a: Logic(f"prev({a.text}, 2)", lambda h, bar: a.at(h, bar - 2))),
    )


# Small whole numbers meet often: equal values, zeros, and divisions by zero come up by themselves.
numbers = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
)
constants = st.one_of(st.integers(0, 3).map(float), st.floats(0, 1e300)).map(constant)


def expressions(*names: str) -> st.SearchStrategy[Number]:
    leaves = st.sampled_from([column(name) for name in names]) | constants
    return st.recursive(leaves, lambda parts: arithmetic(parts, names), max_leaves=4)


conditions = st.recursive(comparisons(expressions(*COLUMNS)), combined, max_leaves=4)
histories = st.lists(
    st.fixed_dictionaries({name: st.none() | numbers for name in COLUMNS}), min_size=1, max_size=9
)
