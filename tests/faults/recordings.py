"""Small recordings with everything in them that can go wrong, drawn from a seed."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from market_data_core.events import StreamEvent, format_ts
from market_data_core.intervals import NS_PER_MS, NS_PER_S

START_NS = 1_761_314_520 * NS_PER_S
"""2025-10-24T14:02:00Z, where a minute begins."""
SYMBOLS = tuple(f"S{i:02d}" for i in range(20))
_BROKEN = (
    b"not json",
    b'{"ver": 2, "provider": "x", "symbol": "A"}',
    b'{"ver": 1, "provider": "x", "symbol": "A", "src_ts": "tomorrow"}',
)


def trade(
    provider: str, symbol: str, src_ts: int, seq: int, price: float, size: float
) -> StreamEvent:
    """A version-1 event."""
    return StreamEvent(
        ver=1,
        provider=provider,
        symbol=symbol,
        src_ts=format_ts(src_ts),
        o=price,
        h=price,
        l=price,
        c=price,
        v=size,
        seq=seq,
    )


def trades(
    seed: int, events: int, seconds: float, start_ns: int = START_NS, provider: str = "rec"
) -> list[StreamEvent]:
    """Trades in order of time: awkward decimals, shared timestamps, prices that wander."""
    chance = random.Random(seed)
    prices = {symbol: chance.randrange(1_000, 900_000) for symbol in SYMBOLS}
    span = int(seconds * 1_000)
    times = sorted(chance.randrange(span) for _ in range(events))
    found = []
    for seq, ms in enumerate(times):
        symbol = chance.choice(SYMBOLS)
        prices[symbol] = max(1, prices[symbol] + chance.randrange(-50, 51))
        size = chance.randrange(1, 10**6) / 10 ** chance.randrange(6)
        ts = start_ns + ms * NS_PER_MS
        found.append(trade(provider, symbol, ts, seq, prices[symbol] / 100, size))
    return found


def write_recording(path: Path, seed: int, events: list[StreamEvent]) -> int:
    """Write `events` out of order, some twice, some contradicted, between unusable lines.

    Returns:
        The number of lines.
    """
    chance = random.Random(seed)
    lines: list[tuple[float, bytes]] = []
    for i, event in enumerate(events):
        line = msgspec.json.encode(event)
        place = i + (chance.uniform(-200, 200) if chance.random() < 0.05 else 0)
        lines.append((place, line))
        if chance.random() < 0.01:
            lines.append((place + chance.uniform(1, 100), line))
        if chance.random() < 0.002:
            other = msgspec.structs.replace(event, v=event.v + 1)
            lines.append((place + chance.uniform(1, 100), msgspec.json.encode(other)))
        if chance.random() < 0.001:
            lines.append((place, chance.choice(_BROKEN) + b" %d" % i))
    lines.sort(key=lambda pair: pair[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for _, line in lines))
    return len(lines)
