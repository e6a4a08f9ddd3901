"""A task that is cancelled while it talks to Redis ends, whatever the driver makes of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from redis import exceptions as errors

from market_data_pipeline.bus._redis_link import Link


class Swallowing:
    """A driver that takes a cancellation for an answer, as its wait_for does before Python 3.12.

    Or for an error.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.called, self._error = asyncio.Event(), error

    async def execute_command(self, *_: Any) -> bytes:
        self.called.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if self._error:
            raise self._error
        return b"PONG"


@pytest.mark.parametrize("error", [None, errors.TimeoutError("too late")])
async def test_a_cancellation_is_not_forgotten(error: Exception | None) -> None:
    link = Link("redis://127.0.0.1:1/0")
    driver: Any = Swallowing(error)
    link.client, own = driver, link.client
    calling = asyncio.create_task(link.call("PING"))
    await driver.called.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    link.client = own
    await link.close()


async def test_a_timeout_around_a_call_is_one() -> None:
    link = Link("redis://127.0.0.1:1/0")
    driver: Any = Swallowing()
    link.client, own = driver, link.client
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await link.call("PING")
    link.client = own
    await link.close()
