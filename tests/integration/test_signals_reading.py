"""What is read of the table of signals."""

from __future__ import annotations

from pathlib import Path

import pytest

from market_data_core.intervals import NS_PER_S
from market_data_core.signals import Signal
from market_data_core.tables import SIGNALS, Select
from market_data_pipeline.signals.reading import Reader
from market_data_store.backends.sqlite import SqliteStore

DAY_S = 86_400


def signal(symbol: str, second: int, name: str = "up", interval: str = "2s") -> Signal:
    return Signal(
        provider="p",
        symbol=symbol,
        ts=second * NS_PER_S,
        name=name,
        value=1.0,
        metadata={"interval": interval},
    )


async def test_each_symbol_from_its_own_time_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was seen last a day ago does not have all of the day read of the others."""
    store = SqliteStore(tmp_path / "store.db")
    await store.migrate()
    quick = [signal("QUICK", second) for second in range(0, DAY_S, 60)]
    near = [signal("NEAR", second) for second in range(DAY_S - 600, DAY_S, 60)]
    others = [
        signal("QUICK", DAY_S, interval="10s"),
        signal("QUICK", DAY_S, "down"),
        signal("AWAY", 60),
    ]
    rare = [signal("RARE", 120)]
    await store.upsert(SIGNALS, [*quick, *near, *others, *rare])
    rows = asked = 0
    select = store.select

    async def counted(what: Select) -> object:
        nonlocal rows, asked
        asked += 1
        frame = await select(what)
        rows += len(frame)
        return frame

    monkeypatch.setattr(store, "select", counted)
    times = {"QUICK": DAY_S - 300, "NEAR": DAY_S - 200, "RARE": 60}
    spans = {symbol: (begin * NS_PER_S, 2**62) for symbol, begin in times.items()}
    found = await Reader(store, "p", 2 * NS_PER_S, 0).signals(spans, ["up"])
    expected = [s for s in [*quick, *near, *rare] if s.ts >= times[s.symbol] * NS_PER_S]
    assert sorted(found, key=lambda s: s.key) == sorted(expected, key=lambda s: s.key)
    assert rows < 20
    assert await Reader(store, "p", 2 * NS_PER_S, 0).signals({}, ["up"]) == []
    asked = 0
    thin = {f"S{i}": (i * DAY_S * NS_PER_S // 100, 2**62) for i in range(100)}
    assert await Reader(store, "p", 2 * NS_PER_S, 0).signals(thin, ["up"]) == []
    assert asked <= 32
    assert await Reader(store, "p", 2 * NS_PER_S, 0).signals(spans, []) == []
    await store.close()
