"""A checkpoint holds exact sums, and says so when it cannot be read."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from market_data_core.errors import DamagedFileError
from market_data_core.scaled import Scaled
from market_data_pipeline.windows.aggregate import PLAIN_COLUMNS, SCALED_COLUMNS, Bars
from market_data_pipeline.windows.checkpoint import (
    Checkpoint,
    Counts,
    StreamState,
    decode_checkpoint,
    pack_bars,
    unpack_bars,
)


def some_bars() -> Bars:
    whole = np.array([1, 70_000], np.int64)
    huge = np.empty(2, object)
    huge[:] = [10**40, -(10**30)]
    small = Scaled(np.array([5, 7], np.int64), 2)
    return Bars(
        codes=whole.astype(np.uint32),
        start=whole * 10**9,
        open=small,
        high=small,
        low=small,
        close=small,
        volume=small,
        notional=Scaled(huge, 31),
        count=whole,
        own=whole,
    )


def test_bars_come_back_whatever_their_size() -> None:
    bars = some_bars()
    state = StreamState(provider="p", symbols=["A"], settled={10**9: pack_bars(bars)})
    checkpoint = Checkpoint(log_id="x", streams=[state], counts=Counts(received=3, stored=3))
    found = decode_checkpoint(checkpoint.encode())
    back = unpack_bars(found.streams[0].settled[10**9])
    for name in PLAIN_COLUMNS:
        assert getattr(back, name).tolist() == getattr(bars, name).tolist()
    for name in SCALED_COLUMNS:
        one, other = getattr(back, name), getattr(bars, name)
        assert (one.mantissa.tolist(), one.scale) == (other.mantissa.tolist(), other.scale)
        assert one.mantissa.dtype == other.mantissa.dtype
    assert (found.counts, found.log_id) == (checkpoint.counts, "x")


@pytest.mark.parametrize("data", [b"", b"nonsense", msgspec.msgpack.encode({"log_id": 1})])
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedFileError, match="cannot be read"):
        decode_checkpoint(data)


def test_a_later_version_is_refused() -> None:
    with pytest.raises(DamagedFileError, match="has version 9, this release reads 1"):
        decode_checkpoint(Checkpoint(log_id="x", version=9).encode())


def test_the_equation_has_every_term_once() -> None:
    counts = Counts(received=21, stored=1, open=2, deduplicated=3, late=4, dead_lettered=5, lost=6)
    assert counts.holds()
    counts.add(Counts(received=1))
    assert not counts.holds()
