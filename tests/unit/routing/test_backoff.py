"""A feed that breaks is begun again, ever more slowly."""

from __future__ import annotations

from market_data_pipeline.routing.backoff import Backoff


def test_pauses_double_up_to_a_bound_and_are_drawn() -> None:
    backoff = Backoff()
    pauses = [backoff.pause_s(0.0) for _ in range(12)]
    limits = [min(0.2 * 2**n, 30.0) for n in range(12)]
    assert all(lim / 2 <= p <= lim for p, lim in zip(pauses, limits, strict=True))
    assert limits[-1] == 30.0
    assert len({Backoff().pause_s(0.0) for _ in range(20)}) > 1


def test_only_a_good_minute_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.pause_s(0.0)
    assert backoff.pause_s(59.0) >= 15.0
    assert backoff.pause_s(60.0) <= 0.2
    assert 0.2 <= backoff.pause_s(0.0) <= 0.4
