"""Waiting for what is away."""

from __future__ import annotations

import asyncio

import pytest

from market_data_core.errors import TransientError
from market_data_pipeline.patience import patient


async def test_what_is_away_is_asked_again() -> None:
    tries: list[int] = []

    async def call() -> str:
        tries.append(len(tries))
        if len(tries) < 3:
            msg = "away"
            raise TransientError(msg)
        return "here"

    told: list[None] = []
    assert await patient(call, lambda: told.append(None)) == "here"
    assert (len(tries), len(told)) == (3, 2)


async def test_nobody_waits_who_was_asked_to_stop() -> None:
    """At once, not after the pause."""
    stop = asyncio.Event()

    async def call() -> None:
        asyncio.get_running_loop().call_later(0.01, stop.set)
        msg = "away"
        raise TransientError(msg)

    async with asyncio.timeout(5):
        with pytest.raises(TransientError, match="away"):
            await patient(call, stop=stop)
