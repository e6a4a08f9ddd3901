"""Which signals a worker remembers to have told."""

from __future__ import annotations

from market_data_core.intervals import NS_PER_S
from market_data_core.signals import Signal
from market_data_pipeline.signals.told import KEPT, Told


def signal(second: int) -> Signal:
    return Signal(provider="p", symbol="A", ts=second * NS_PER_S, name="up", value=1.0)


def test_what_was_just_decided_is_not_forgotten_for_what_others_told_later() -> None:
    """The store may hold more than is remembered behind what is read again."""
    told = Told()
    told.learn([signal(second) for second in range(100, 100 + 2 * KEPT)])
    names = {"up"}
    assert told.revise([(signal(10), 0)], {"A": (9 * NS_PER_S, 10 * NS_PER_S)}, names)
    assert told.revise([], {"A": (10 * NS_PER_S, 10 * NS_PER_S)}, names)[0].state == "retracted"


def test_the_last_one_before_holds_others_off() -> None:
    told, cooldown_ns = Told(), 7 * NS_PER_S
    told.learn([signal(second) for second in range(100, 100 + 2 * KEPT)])
    given = []
    for second in (2, 4, 6, 8, 10):
        here = second * NS_PER_S
        given += told.revise([(signal(second), cooldown_ns)], {"A": (here, here)}, {"up"})
    assert [s.ts // NS_PER_S for s in given] == [2, 10]
