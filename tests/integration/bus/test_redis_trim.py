"""When a topic on Redis is too large, and when nothing more can be done about that."""

from __future__ import annotations

import pytest
from tests.integration.bus.redis_kit import PLENTY, TOPIC, entry, opened, read_all, received
from tests.servers.redis import Server

ROWS, SIZE = 40, 50_000


@pytest.mark.parametrize("keyed", [False, True])
async def test_trimming_says_whether_it_is_still_too_much(
    redis_server: Server, keyed: bool
) -> None:
    """Not while there is something to go, and not if what is left is little enough."""
    async with opened(redis_server.uri, redis_server.new_prefix()) as bus:
        await bus.create_topic(TOPIC, 2)
        for i in range(ROWS):
            key = f"{i}" if keyed else ""
            await bus.append(
                TOPIC, [entry("x" * SIZE, p, key=key and f"{p}/{key}") for p in (0, 1)]
            )
        places = [record.offset for record in await read_all(bus)]
        assert not await bus.trim(TOPIC, 0, places[-1], 0, PLENTY)
        assert not await bus.trim(TOPIC, 0, places[20], 0, ROWS * SIZE // 2)
        assert len(await read_all(bus)) < ROWS  # a tenth of the time that they took
        told = [await bus.trim(TOPIC, 0, places[20], 0, ROWS * SIZE // 2) for _ in range(60)]
        assert told == sorted(told)
        assert told[-1]
        assert [r.offset for r in await read_all(bus)] == places[20:]
        assert len(await read_all(bus, 1)) == ROWS
        assert not await bus.trim(TOPIC, 0, places[20], 0, 2 * ROWS * SIZE)
        end = (await bus.bounds(TOPIC, 1)).next
        told = [await bus.trim(TOPIC, 1, end, 0, ROWS * SIZE) for _ in range(60)]
        assert not any(told)
        assert 0 < len(await read_all(bus, 1)) < ROWS
        assert [await received(bus, p) for p in (0, 1)] == [ROWS, ROWS]
