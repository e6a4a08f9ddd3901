"""Returns since an earlier close."""

from __future__ import annotations

from collections.abc import Callable

from market_data_core.config import FeatureParameters
from market_data_core.contracts.feature import Bars, Feature, Floats, Span
from market_data_pipeline.features._family import Formula, enough, known, reach


def since(
    parameters: FeatureParameters, interval_ns: int, formula: Callable[[Floats, Floats], Floats]
) -> Feature:
    """The feature that `formula` makes of the close and an earlier one.

    The earlier one is that of so many bars before, or the one as of a horizon ago: of the newest
    bar that begins at least the horizon before, if that begins less than twice as long before.

    Args:
        parameters: how far back.
        interval_ns: the bars' length.
        formula: of both, shape (n,) each.

    Raises:
        ConfigError: the horizon is shorter than a bar.
    """
    span = reach(parameters, interval_ns)
    if span.bars is not None:
        whole = Span(bars=span.bars + 1)

        def earlier(bars: Bars) -> Floats:
            window = bars.window(whole)
            return known(window.oldest("close"), enough(window, whole))

    else:
        horizon_ns = span.horizon_ns or 0
        whole = Span(horizon_ns=2 * horizon_ns)

        def earlier(bars: Bars) -> Floats:
            return bars.before("close", horizon_ns)

    return Formula(("close",), whole, lambda bars: formula(bars.newest("close"), earlier(bars)))
