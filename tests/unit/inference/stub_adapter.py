"""An adapter for tests of what is around it, and rows for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Firing, Rows

Said = Callable[[Rows], Sequence[Firing]]


class Table:
    """Three rows of one column."""

    provider, interval = "feed", "2s"
    symbols: Sequence[str] = ("SPY", "QQQ", "AAPL")

    def __init__(self) -> None:
        self.codes = np.arange(3, dtype=np.intp)
        self.ts = np.arange(3, dtype=np.int64)

    def __len__(self) -> int:
        return 3

    def value(self, column: str, back: int = 0) -> Floats:  # noqa: ARG002
        return np.array([1.0, 2.0, 3.0])


ROWS = Table()


def firing(**changed: Any) -> Firing:
    index = np.array([0, 2], np.intp)
    said = {"name": "up", "rows": index, "value": np.ones(2), "score": np.full(2, 0.5)}
    return Firing(**{**said, **changed})


class Stub:
    """An adapter that does what it is told."""

    def __init__(self, said: Said, name: str = "sklearn") -> None:
        self.name, self.version = name, f"version of {name}"
        self.names: tuple[str, ...] = (f"{name}_up", "up" if name == "sklearn" else "rsi_low")
        self.cooldown_ns = len(name)
        self.said, self.calls, self.closed = said, 0, False

    def columns(self, interval: str) -> Mapping[str, int]:
        return {"rsi": len(self.name), self.name: 0} if interval == "2s" else {}

    def evaluate(self, rows: Rows) -> Sequence[Firing]:
        self.calls += 1
        return self.said(rows)

    def close(self) -> None:
        self.closed = True


def answers(_: Rows) -> Sequence[Firing]:
    return [firing()]


def raises(_: Rows) -> Sequence[Firing]:
    msg = "no such layer"
    raise ValueError(msg)


class Gate:
    """Something to hang on."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.waiting = 0

    def hang(self, _: Rows) -> Sequence[Firing]:
        self.waiting += 1
        self._open.wait()
        self.waiting -= 1
        return [firing()]

    def release(self) -> None:
        self._open.set()
