"""Returns since an earlier close."""

from __future__ import annotations

from collections.abc import Callable

from market_data_core.config import FeatureParameters
from market_data_core.contracts.feature import Bars, Column, Feature, Floats, Span
from market_data_pipeline.features._family import Formula, enough, known, reach

Earlier = Callable[[Bars, Column], Floats]
"""Shape (n,): a column's value at an earlier bar of each row."""


def since(
    parameters: FeatureParameters, interval_ns: int, formula: Callable[[Floats, Floats], Floats]
) -> Feature:
    """The feature that `formula` makes of the close and an earlier one.

    Args:
        parameters: how far back, as :func:`earlier` says.
        interval_ns: the bars' length.
        formula: of both, shape (n,) each.

    Raises:
        ConfigError: the horizon is shorter than a bar.
    """
    span, before = earlier(parameters, interval_ns)

    def values(bars: Bars) -> Floats:
        return formula(bars.newest("close"), before(bars, "close"))

    return Formula(("close",), span, values)


def earlier(parameters: FeatureParameters, interval_ns: int) -> tuple[Span, Earlier]:
    """What is looked at, and what gives a column's earlier value.

    The earlier one is that of so many bars before, or the one as of a horizon ago: of the newest
    bar that begins at least the horizon before, if that begins less than twice as long before.

    Args:
        parameters: how far back.
        interval_ns: the bars' length.

    Raises:
        ConfigError: the horizon is shorter than a bar.
    """
    span = reach(parameters, interval_ns)
    if span.bars is None:
        horizon_ns = span.horizon_ns or 0
        return Span(horizon_ns=2 * horizon_ns), lambda bars, name: bars.before(name, horizon_ns)
    whole = Span(bars=span.bars + 1)

    def oldest(bars: Bars, name: Column) -> Floats:
        window = bars.window(whole)
        return known(window.oldest(name), enough(window, whole))

    return whole, oldest
