"""Signals that are handed over together, and published one by one."""

from __future__ import annotations

import pytest

from market_data_core.contracts.store import Message, OutboxItem
from market_data_core.signals import Signal, bundled, unbundled
from market_data_pipeline.windows.writer import entries_of


def signal(symbol: str, ts: int, state: str = "active") -> Signal:
    return Signal(provider=f"p{ts}", symbol=symbol, ts=ts, name="up", value=1.0, state=state)  # type: ignore[arg-type]


SIGNALS = [signal("A", 1), signal("B", 2, "retracted"), signal("A", 3)]


def test_each_event_is_an_entry_of_its_own() -> None:
    """With a key of its own, so that what is published twice has the effect of once."""
    message = Message("mdp.signals", "g/t/3/7/1/0", bundled(SIGNALS), len(SIGNALS))
    entries = entries_of(OutboxItem(9, 3, message), 4, 4)
    assert [Signal.decode(entry.payload) for entry in entries] == SIGNALS
    assert [entry.payload for entry in entries] == [signal.encode() for signal in SIGNALS]
    assert [entry.key for entry in entries] == [f"g/t/3/7/1/0/{i}" for i in range(3)]
    assert {(entry.partition, entry.count) for entry in entries} == {(3, 1)}
    assert [(e.provider, e.min_ts, e.max_ts) for e in entries] == [
        (s.provider, s.ts, s.ts) for s in SIGNALS
    ]


@pytest.mark.parametrize("payload", [b"", b"{}", SIGNALS[0].encode(), b"MDPB", b"\0"])
def test_what_is_no_bundle(payload: bytes) -> None:
    assert unbundled(payload) is None


def test_a_bundle_of_nothing() -> None:
    assert unbundled(bundled([])) == []
