"""What a provider that fell silent, or paused, still holds in the log, and for how long."""

from __future__ import annotations

from tests.unit.windows.test_partition import HERE, Log, S, T, closed, partition, ticks

from market_data_core.partitioning import partition_of
from market_data_core.records import Mark

HOUR = 3_600


def advance(log: Log, until: float, paused: bool = False) -> tuple[list[Mark], int]:
    """Idle marks as time goes on second by second, and the resume position at the end."""
    part = partition()
    log.batch(ticks(0.5, 2.5))
    if paused:
        log.mark(Mark(kind="pause", provider="p"))
    marks: list[Mark] = []
    read, now = 0, 0.0
    while now <= until:
        part.take(log.records[read:], T)
        read = len(log.records)
        part.take([], T + round(now * S))
        closed(part)
        found = part.idle_marks(S)
        marks += found
        for mark in found:
            log.now = now
            log.mark(mark)
        now += 1.0 if now < 60 or not paused else 600.0
    part.take(log.records[read:], T)
    return marks, closed(part).checkpoint.resume


def test_a_silent_provider_lets_go_of_the_log() -> None:
    assert partition_of("SPY", 2) == HERE
    marks, resume = advance(Log(), 30)
    # one closes the last window (2 to 4 s), one says that nothing of it can change any more
    assert [(m.kind, (m.ts - T) // S) for m in marks] == [("idle", 4), ("idle", 8)]
    assert resume == 3


def test_a_pause_holds_windows_open_for_an_hour_and_no_longer() -> None:
    assert advance(Log(), HOUR - 600, paused=True) == ([], 0)
    marks, resume = advance(Log(), 2 * HOUR, paused=True)
    assert {m.kind for m in marks} == {"idle"}
    assert resume >= 2


def test_a_new_owner_of_a_silent_provider_lets_go_too() -> None:
    log = Log()
    log.batch(ticks(0.5, 2.5))
    log.mark(Mark(kind="idle", provider="p", ts=T + 4 * S))
    first = partition()
    first.take(log.records, T)
    checkpoint = closed(first).checkpoint
    assert checkpoint.resume == 0

    second = partition(checkpoint)
    second.take(log.records, T)
    second.take([], T + 60 * S)
    assert [(m.ts - T) // S for m in second.idle_marks(S)] == [8]
