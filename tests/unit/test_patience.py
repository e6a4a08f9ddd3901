"""Waiting for what is away."""

from __future__ import annotations

import asyncio

import pytest

from market_data_core.errors import TransientError, UsageError
from market_data_pipeline.patience import patient, together


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


async def test_the_first_error_ends_the_others() -> None:
    async def away() -> None:
        msg = "away"
        raise TransientError(msg)

    waiting = asyncio.create_task(patient(away))

    async def refused() -> None:
        await asyncio.sleep(0.01)
        msg = "no such partition"
        raise UsageError(msg)

    with pytest.raises(UsageError, match="no such partition"):
        await together(waiting, refused())
    assert waiting.cancelled()


async def test_results_come_in_order() -> None:
    assert await together(asyncio.sleep(0.01, "first"), asyncio.sleep(0, "second")) == [
        "first",
        "second",
    ]
