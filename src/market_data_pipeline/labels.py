"""Labels: what became of the close after a bar, to train models with.

A label looks ahead, as features never do; its name begins with ``label_``, which no feature's may,
so that neither a rule nor a model can ask for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_data_core.config import LABEL_PREFIX
from market_data_core.contracts.feature import Floats
from market_data_core.errors import UsageError
from market_data_core.intervals import format_interval, parse_interval
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.features.ret import simple_return

BARS_MAX = 100_000
"""Most bars that a label may look ahead."""
_BARS = re.compile(r"(\d{1,9})bars")


@dataclass(frozen=True, slots=True)
class Label:
    """The simple return from a bar's close to a later one: ``(later - close) / close``.

    Over a number of bars, the later close is that of the bar so many bars on. Over a horizon, it
    is the close as of the horizon ahead: that of the newest bar which begins after the row's own
    and at or before its start plus the horizon. What `momentum` over the same horizon says at a
    bar that begins exactly the horizon later is the same number.

    It is NaN while the future is not known: unless a bar of the same symbol and session is there
    that begins at or after the start plus the horizon. It is NaN where no bar begins within the
    horizon, and where the close is zero. Nothing but the closes of bars within the horizon can
    change a value that is known.

    Attributes:
        name: the column's.
        horizon_ns: how far ahead; None if it is a number of bars.
        bars: how many bars ahead; for a horizon, the most that can begin within it.
    """

    name: str
    horizon_ns: int | None
    bars: int

    def of(self, panel: Panel) -> Floats:
        """Shape (n,): the label of each bar."""
        rows = np.arange(len(panel.ts))
        last = _last_of_session(panel)
        later = np.minimum(rows + self.bars, last)
        if self.horizon_ns is None:
            known = rows + self.bars <= last
        else:
            until = panel.ts + self.horizon_ns
            later = _newest(panel.ts, rows, later, until)
            known = (later > rows) & ((panel.ts[later] == until) | (later < last))
        close = panel.columns["close"]
        with np.errstate(all="ignore"):
            values = simple_return(close[later], close)
        found: Floats = np.where(known & np.isfinite(values), values, np.nan)
        return found

    def settled(self, ts: NDArray[np.int64]) -> int:
        """How many of a symbol's bars, starting at `ts`, no further bar can change the label of."""
        if self.horizon_ns is None:
            return max(0, len(ts) - self.bars)
        return int(np.searchsorted(ts, ts[-1] - self.horizon_ns, "right"))


def parse_label(text: str, interval_ns: int) -> Label:
    """The label over a horizon such as ``60s``, or over bars such as ``30bars``.

    Args:
        text: how far ahead; the name is ``label_`` and this.
        interval_ns: the bars' length.

    Raises:
        UsageError: it is neither, or shorter than a bar, or longer than :data:`BARS_MAX` bars.
    """
    text = text.strip()
    counted = _BARS.fullmatch(text)
    if counted:
        horizon_ns, bars = None, int(counted[1])
    else:
        try:
            horizon_ns = parse_interval(text)
        except UsageError as error:
            msg = f"--label {text!r}: write how far ahead, such as 60s or 30bars"
            raise UsageError(msg) from error
        bars = horizon_ns // interval_ns
    if not 1 <= bars <= BARS_MAX:
        msg = (
            f"--label {text!r}: looks {bars} bars of {format_interval(interval_ns)} ahead; "
            f"it must be 1 to {BARS_MAX}"
        )
        raise UsageError(msg)
    return Label(LABEL_PREFIX + text, horizon_ns, bars)


def _last_of_session(panel: Panel) -> NDArray[np.intp]:
    """Shape (n,): the last bar of each bar's session."""
    first = np.flatnonzero(panel.available == 1)
    lengths = np.diff(first, append=len(panel.ts))
    last: NDArray[np.intp] = np.repeat(first + lengths - 1, lengths)
    return last


def _newest(
    ts: NDArray[np.int64], low: NDArray[np.intp], high: NDArray[np.intp], until: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Shape (n,): the newest bar from `low` to `high` that begins at or before `until`."""
    while (low < high).any():
        middle = (low + high + 1) // 2
        inside = ts[middle] <= until
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return low
