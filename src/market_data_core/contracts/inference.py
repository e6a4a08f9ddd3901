"""Inference: rules and models that turn feature columns into signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from market_data_core.contracts.feature import Floats


class Rows(Protocol):
    """Bars of one provider and interval, with their features, as adapters see them.

    Attributes:
        provider: the feed's name.
        interval: canonical spelling, e.g. ``2s``.
        symbols: what `codes` point into.
        codes: shape (n,), the symbol of each row.
        ts: shape (n,), int64, end of the bar, UTC ns.
    """

    provider: str
    interval: str
    symbols: Sequence[str]
    codes: NDArray[np.intp]
    ts: NDArray[np.int64]

    def __len__(self) -> int: ...

    def value(self, column: str, back: int = 0) -> Floats:
        """Shape (n,): a column of the row's bar, or of the symbol's bar `back` bars before it.

        NaN where it is not known. Columns are the features by name, and ``open high low close
        volume bar_vwap trade_count``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Firing:
    """What one rule or model says about some rows.

    Attributes:
        name: of the rule or model; the signals' name.
        rows: shape (m,), indices into the rows, ascending.
        value: shape (m,), finite.
        score: shape (m,), finite; None where it is not known.
        meta: shape (m,) each: columns that the signals tell in their metadata; NaN is left out.
        cooldown_ns: after a signal, none for the same symbol within this event time.
        notes: told in the metadata of each signal.
    """

    name: str
    rows: NDArray[np.intp]
    value: Floats
    score: Floats | None
    meta: Mapping[str, Floats] = field(default_factory=dict)
    cooldown_ns: int = 0
    notes: Mapping[str, str] = field(default_factory=dict)


class Adapter(Protocol):
    """Evaluates one set of rules, or one model.

    Attributes:
        name: the adapter's kind, e.g. ``rules``.
        version: SHA-256 of what it evaluates, in hex: the same version gives the same signals.
        names: the names of all signals that it can give.
        cooldown_ns: the longest cooldown of any of them.
    """

    name: str
    version: str
    names: tuple[str, ...]
    cooldown_ns: int

    def columns(self, interval: str) -> Mapping[str, int]:
        """Column -> how many bars back it is looked at, for bars of `interval`.

        Empty if the adapter has nothing to say about them.
        """
        ...

    def evaluate(self, rows: Rows) -> Sequence[Firing]:
        """What holds for the rows; may block, and is called outside the event loop.

        A function of the rows alone: neither order nor batches nor earlier calls matter.

        Raises:
            ModelError: the model cannot give an answer.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...
