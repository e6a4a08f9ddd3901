"""What all families share: the feature made of a formula, and how far back it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_data_core.config import CountedParameters, FeatureParameters
from market_data_core.contracts.feature import Bars, Column, Feature, Floats, Span, Window
from market_data_core.errors import ConfigError
from market_data_core.intervals import format_interval, parse_interval


@dataclass(slots=True)
class Formula:
    """Implements :class:`market_data_core.contracts.feature.Feature`.

    Attributes:
        columns: what of the bars it reads.
        span: all that it reads lies within this.
        values: the formula; what it gives may be infinite or NaN.
    """

    columns: tuple[Column, ...]
    span: Span
    values: Callable[[Bars], Floats]

    def compute(self, bars: Bars) -> Floats:
        """Shape (n,): the value at each row; NaN where it is not a finite number."""
        with np.errstate(all="ignore"):  # what divides by zero or overflows is not finite
            return finite(self.values(bars))


def finite(values: Floats) -> Floats:
    """`values`, with NaN for what is infinite."""
    kept: Floats = np.where(np.isfinite(values), values, np.nan)
    return kept


def known(values: Floats, where: NDArray[np.bool_]) -> Floats:
    """`values`, with NaN elsewhere than `where`."""
    kept: Floats = np.where(where, values, np.nan)
    return kept


def reach(parameters: FeatureParameters, interval_ns: int, least: int = 1) -> Span:
    """How far back parameters say.

    A default horizon that is too short for `least` bars of this length is widened to them, so that
    every family can be had of bars of any length.

    Args:
        parameters: with either a horizon or bars.
        interval_ns: the bars' length.
        least: how many bars the formula needs.

    Raises:
        ConfigError: what was given is too short.
    """
    if parameters.bars is not None:
        if parameters.bars < least:
            msg = f"bars: {parameters.bars} is too few; give at least {least}"
            raise ConfigError(msg)
        return Span(bars=parameters.bars)
    assert parameters.horizon is not None  # noqa: S101
    horizon_ns, needed_ns = parse_interval(parameters.horizon), least * interval_ns
    if horizon_ns < needed_ns and "horizon" in parameters.model_fields_set:
        msg = (
            f"horizon: {parameters.horizon} is too short for bars of "
            f"{format_interval(interval_ns)}; give at least {format_interval(needed_ns)}"
        )
        raise ConfigError(msg)
    return Span(horizon_ns=max(horizon_ns, needed_ns))


def bar_count(parameters: CountedParameters) -> int:
    """The number of bars that parameters of a counted family give."""
    assert parameters.bars is not None  # noqa: S101
    return parameters.bars


def enough(window: Window, span: Span, least: int = 1) -> NDArray[np.bool_]:
    """Shape (n,): where a formula can be computed.

    A window of a number of bars has to be full; in one of a horizon bars may be missing, so
    `least` of them are enough.
    """
    return window.counts >= (least if span.bars is None else span.bars)


def over_window(
    columns: tuple[Column, ...],
    span: Span,
    formula: Callable[[Window], Floats],
    least: int = 1,
) -> Feature:
    """The feature that `formula` makes of a window, where there is :func:`enough`.

    Args:
        columns: what of the bars it reads.
        span: how far back it looks.
        formula: gives shape (n,).
        least: how many bars it needs.
    """

    def values(bars: Bars) -> Floats:
        window = bars.window(span)
        return known(formula(window), enough(window, span, least))

    return Formula(columns, span, values)
