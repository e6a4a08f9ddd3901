"""Work that one process at a time may do: a claim that is waited for, kept alive, and let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from market_data_core.contracts.store import Claim, PartitionKey, Positions
from market_data_core.errors import TransientError
from market_data_core.intervals import NS_PER_S
from market_data_pipeline.patience import patient

log = structlog.get_logger("holding")

_RETRY_S = 0.2
_BEATS_A_LEASE = 6


@asynccontextmanager
async def held(
    store: Positions,
    key: PartitionKey,
    member: str,
    lease_ns: int,
    stop: asyncio.Event,
    waits: Callable[[bool], None] = lambda _: None,
) -> AsyncIterator[Claim | None]:
    """A claim on `key`, held for as long as the context is; None if `stop` is set before.

    Args:
        store: where it is held.
        key: what is claimed.
        member: who claims it.
        lease_ns: how long its holder may be silent before others take it.
        stop: nobody wants to wait any more.
        waits: told that another process holds it, and that it does no longer.
    """
    claim = await _claimed(store, key, member, lease_ns, stop, waits)
    if claim is None:
        yield None
        return
    keeping = asyncio.create_task(_keep(store, claim, member, lease_ns))
    try:
        yield claim
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        try:
            await store.leave(key.group, key.topic, member)
        except TransientError as error:  # the lease will run out instead
            log.warning("could not let go", of=key.topic, error=str(error))


async def _claimed(
    store: Positions,
    key: PartitionKey,
    member: str,
    lease_ns: int,
    stop: asyncio.Event,
    waits: Callable[[bool], None],
) -> Claim | None:
    while not stop.is_set():
        claim = await patient(lambda: store.claim(key, member, lease_ns), stop=stop)
        waits(claim is None)
        if claim:
            return claim
        await asyncio.sleep(_RETRY_S)
    return None


async def _keep(store: Positions, claim: Claim, member: str, lease_ns: int) -> None:
    """Give signs of life."""
    key, owned = claim.key, {claim.key.partition: claim.token}
    while True:
        try:
            await store.heartbeat(key.group, key.topic, member, lease_ns, owned)
        except TransientError as error:
            log.warning("heartbeat missed", error=str(error))
        await asyncio.sleep(lease_ns / NS_PER_S / _BEATS_A_LEASE)
