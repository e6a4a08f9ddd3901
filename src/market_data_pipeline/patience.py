"""Waiting for a bus or store that is not ready: what is kept is not lost by waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from market_data_core.errors import TransientError

T = TypeVar("T")
log = structlog.get_logger("patience")

_PAUSE_MIN_S, _PAUSE_MAX_S = 0.05, 2.0


class StoppedWaiting(TransientError):
    """Nobody wants to wait any more for what is away; the message is that of the last try."""


async def patient(
    call: Callable[[], Awaitable[T]],
    retried: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
) -> T:
    """The call's result, made again after every transient error, ever more slowly.

    Args:
        call: what to do; safe to do again.
        retried: told of every further try.
        stop: once it is set, nobody wants to wait any more.

    Raises:
        StoppedWaiting: `stop` was set, and the last try failed too.
    """
    pause_s = _PAUSE_MIN_S
    while True:
        try:
            return await call()
        except TransientError as error:
            if stop and stop.is_set():
                raise StoppedWaiting(str(error)) from error
            log.warning("waiting", error=str(error), seconds=round(pause_s, 2))
            retried()
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await (stop or asyncio.Event()).wait()
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)


async def together(*work: Awaitable[Any]) -> list[Any]:
    """The results of all, in order; the first error ends the others too."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
