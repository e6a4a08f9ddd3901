"""Finished bars in columns: what windows give, stores keep, and later stages read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.errors import RejectedError

BarState = Literal["final", "revised", "gap"]

VALUE_COLUMNS = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
"""The columns for which bit-identity is claimed, in the order of the table."""


@dataclass(frozen=True, slots=True)
class BarBatch:
    """Bars of one provider, interval and state; each (symbol, ts) at most once.

    Attributes:
        provider: the feed's name as stored.
        interval: canonical spelling, e.g. ``2s``.
        state: ``final``; ``revised`` if an earlier version was written; ``gap`` if events are
            known to be missing.
        symbols: what `codes` point into.
        codes: shape (n,), unsigned integers.
        ts: shape (n,), int64, start of the window, UTC ns.
        open: shape (n,), float64, price units; `high`, `low`, `close` likewise.
        volume: shape (n,), float64, sum of sizes, rounded once.
        vwap: shape (n,), float64, price units; NaN where unknown or the volume is zero.
        trade_count: shape (n,), int64, events inside; -1 where unknown (a vendor's own bar).
        only_new: a stored bar never gives way to these, because events that it was made of are
            no longer there to be added up again.
    """

    provider: str
    interval: str
    state: BarState
    symbols: tuple[str, ...]
    codes: NDArray[Any]
    ts: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    vwap: NDArray[np.float64]
    trade_count: NDArray[np.int64]
    only_new: bool = False

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, index: NDArray[Any]) -> BarBatch:
        """Rows at `index` (integers or a boolean mask)."""
        columns = {name: getattr(self, name)[index] for name in ("codes", "ts", *VALUE_COLUMNS)}
        return replace(self, **columns)

    @classmethod
    def concat(cls, batches: Sequence[BarBatch]) -> BarBatch:
        """One batch of several of one provider and interval, in their order; a bar may come again.

        Its state is the first one's.
        """
        if len(batches) == 1:
            return batches[0]
        codes: dict[str, int] = {}
        moved = [
            np.array([codes.setdefault(s, len(codes)) for s in batch.symbols], np.intp)[batch.codes]
            for batch in batches
        ]
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("ts", *VALUE_COLUMNS)
        }
        return replace(batches[0], symbols=tuple(codes), codes=np.concatenate(moved), **columns)

    def spans(self) -> dict[str, tuple[int, int]]:
        """Symbol -> starts of its earliest and its latest bar, UTC ns."""
        if not len(self):
            return {}
        first = np.full(len(self.symbols), int(self.ts.max()))
        last = np.full(len(self.symbols), int(self.ts.min()))
        np.minimum.at(first, self.codes, self.ts)
        np.maximum.at(last, self.codes, self.ts)
        present = np.unique(self.codes).tolist()
        return {self.symbols[code]: (int(first[code]), int(last[code])) for code in present}

    def symbol_column(self) -> list[str]:
        """The symbol of every row."""
        symbols = self.symbols
        return [symbols[code] for code in self.codes.tolist()]

    def vwap_column(self) -> list[float | None]:
        """The vwap of every row, None where there is none."""
        return [None if isnan(x) else x for x in self.vwap.tolist()]

    def count_column(self) -> list[int | None]:
        """The trade count of every row, None where it is not known."""
        return [None if n < 0 else n for n in self.trade_count.tolist()]

    def encode(self, version: int) -> bytes:
        """The batch as bytes for the bars topic.

        Args:
            version: from the store's sequence; readers ignore a bar whose version is not above
                the one they have.
        """
        names, codes = np.unique(self.codes, return_inverse=True)
        columns = {name: getattr(self, name).tobytes() for name in ("ts", *VALUE_COLUMNS)}
        wire = _Wire(
            provider=self.provider,
            interval=self.interval,
            state=self.state,
            version=version,
            symbols=[self.symbols[i] for i in names.tolist()],
            codes=codes.astype("<u4").tobytes(),
            **columns,
        )
        return MAGIC + msgspec.msgpack.encode(wire)

    @classmethod
    def decode(cls, payload: bytes) -> tuple[BarBatch, int]:
        """The batch and its version from :meth:`encode`'s bytes.

        Raises:
            RejectedError: reason ``malformed``.
        """
        try:
            wire = _decoder.decode(payload[len(MAGIC) :])
            n = len(wire.ts) // 8
            columns: dict[str, Any] = {
                name: np.frombuffer(getattr(wire, name), _dtype(name), n)
                for name in ("ts", *VALUE_COLUMNS)
            }
            codes = np.frombuffer(wire.codes, "<u4", n)
            if n and int(codes.max()) >= len(wire.symbols):
                msg = "symbol code out of range"
                raise ValueError(msg)
        except (msgspec.MsgspecError, ValueError) as error:
            msg = f"bars message: {error}"
            raise RejectedError(reason="malformed", message=msg) from error
        batch = cls(wire.provider, wire.interval, wire.state, tuple(wire.symbols), codes, **columns)
        return batch, wire.version


MAGIC = b"MDPB"
"""First bytes of an encoded batch of bars."""


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    provider: str
    interval: str
    state: BarState
    version: int
    symbols: list[str]
    codes: bytes
    ts: bytes
    open: bytes
    high: bytes
    low: bytes
    close: bytes
    volume: bytes
    vwap: bytes
    trade_count: bytes


_decoder = msgspec.msgpack.Decoder(_Wire)


def _dtype(name: str) -> str:
    return "<i8" if name in ("ts", "trade_count") else "<f8"
