"""Two stores that are given the same hold the same."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest

from market_data_core import registry
from market_data_core.bars import BarBatch, BarState
from market_data_core.clock import ManualClock
from market_data_core.contracts.store import Store
from market_data_core.signals import Signal
from market_data_core.testing._store_owning import T0, FakeGroup, S, batch, claimed
from market_data_core.testing._store_signals import signals_of

if TYPE_CHECKING:
    from tests.servers.postgres import Server

_COMMITS = 12
_HISTORY = """SELECT provider, symbol, interval, open, high, low, close, volume, vwap, trade_count,
    state FROM bars_ohlcv_history"""


def _batches(rng: np.random.Generator) -> list[BarBatch]:
    """What a commit may hold: several batches, some keys twice, most of them seen before."""
    out = []
    for _ in range(rng.integers(1, 5)):
        keys = rng.permutation(240)[: rng.integers(1, 240)]
        rows = [
            (f"S{k % 8}", int(k // 8), float(rng.integers(1, 4)), int(rng.integers(-1, 4)))
            for k in keys.tolist()
        ]
        state: BarState = get_args(BarState)[rng.integers(3)]
        some = batch(*rows, state=state, interval=str(rng.choice(["1s", "1m", "tick"])))
        vwap, close = some.vwap.copy(), some.close.copy()
        vwap[rng.random(len(rows)) < 0.2] = np.nan
        close[rng.random(len(rows)) < 0.01] = np.nan
        only_new = bool(rng.random() < 0.2)
        out.append(replace(some, vwap=vwap, close=close, only_new=only_new))
    return out


def _signals(rng: np.random.Generator) -> list[Signal]:
    """Signals of few keys, several of one key among them."""
    return [
        Signal(
            provider="p",
            symbol=f"S{k % 5}",
            ts=T0 + int(k // 5) * S,
            name=str(rng.choice(["up", "Down", "ü"])),
            value=float(rng.integers(3)) / 3,
            score=None if rng.random() < 0.3 else float(rng.random()),
            state="retracted" if rng.random() < 0.2 else "active",
            metadata={"x": float(rng.integers(2)), "n": [None, "ü"]},
        )
        for k in rng.integers(0, 40, rng.integers(0, 60)).tolist()
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_stores_agree(postgres: Server, tmp_path: Path, seed: int) -> None:
    """Counts, bars, replaced versions, refused rows, signals and messages, commit by commit."""
    uri, file = postgres.new_schema(), tmp_path / "store.db"
    clock = ManualClock(T0)
    stores: list[Store] = [
        registry.backend("store", "sqlite").create(f"sqlite:///{file}", clock),
        registry.backend("store", "postgres").create(uri, clock),
    ]
    try:
        groups = []
        for store in stores:
            await store.migrate()
            groups.append(FakeGroup(await claimed(store), bars_topic="bars"))
        rng = np.random.default_rng(seed)
        for _ in range(_COMMITS):
            clock.advance(S)
            bars, signals = _batches(rng), _signals(rng)
            done: list[Any] = []
            for i, store in enumerate(stores):
                groups[i] = replace(groups[i], bars=bars, signals=signals)
                result = await store.commit([groups[i]], [])
                groups[i] = groups[i].next(bars_topic="bars")
                bad = [(row.batch, row.row) for row in result.bad.get(0, [])]
                sent = [
                    (item.message.key, item.message.count, item.message.min_ts, item.message.max_ts)
                    for item in result.outbox
                ]
                done.append((result.counts, result.signals, bad, sent))
            assert done[0] == done[1]
        frames = [await store.bars() for store in stores]
        assert len(frames[0]) > 300
        assert frames[0].equals(frames[1])
        theirs = [await signals_of(store) for store in stores]
        assert len(theirs[0]) > 60
        assert theirs[0] == theirs[1]
    finally:
        for store in stores:
            await store.close()
    with sqlite3.connect(file) as db:
        history = db.execute(_HISTORY).fetchall()
    db.close()
    assert len(history) > 100
    assert sorted(map(repr, postgres.query(_HISTORY, uri))) == sorted(map(repr, history))
