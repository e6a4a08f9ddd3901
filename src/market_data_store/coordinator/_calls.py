"""Calling what is not ours: plain or async, and never to our harm."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def maybe_await(result: Any) -> Any:
    """`result`, awaited if it can be."""
    return await result if inspect.isawaitable(result) else result


def cancel_requested() -> bool:
    """Whether somebody asked the running task to end.

    A CancelledError without that comes from inside what was called, and is an error like others.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def call_safely(
    function: Callable[..., Any],
    *args: object,
    timeout_s: float,
    failed: Callable[[BaseException], None],
) -> bool:
    """Call and await; whatever goes wrong is given to `failed`.

    Returns:
        Whether it went well.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await maybe_await(function(*args))
    except (KeyboardInterrupt, SystemExit):
        raise
    except asyncio.CancelledError as error:
        if cancel_requested():
            raise
        failed(error)
    except BaseException as error:  # a library's panic is not an Exception
        failed(error)
    else:
        return True
    return False
