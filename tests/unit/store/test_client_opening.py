"""When the client opens its store, and when it closes it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from market_data_core.contracts.store import Store, WriteCounts
from market_data_core.errors import TransientError, UsageError
from market_data_store import AsyncStoreClient, opening
from market_data_store.opening import open_ready_store, open_store
from mds_client.models import Bar

T0 = datetime(2025, 10, 24, 14, tzinfo=UTC)


def bar() -> Bar:
    return Bar(symbol="SPY", open=1, high=9, low=0.5, close=2, volume=3, ts=T0)


def in_use(client: AsyncStoreClient) -> bool:
    return client.in_use


async def test_an_embedded_store_is_made_at_the_first_use(tmp_path: Path) -> None:
    file = tmp_path / "a" / "store.db"
    client = AsyncStoreClient(f"sqlite:///{file}")
    assert not file.parent.exists()
    assert len(await client.bars()) == 0
    assert file.exists()
    async with client, client:
        await client.ping()
    assert await client.upsert_bars([bar()]) == WriteCounts(1)
    assert in_use(client)
    await client.close()
    await client.close()
    assert not in_use(client)


async def test_a_store_is_opened_once(any_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    async def counted(uri: str) -> Store:
        opened.append(await open_ready_store(uri))
        return opened[-1]

    monkeypatch.setattr(opening, "open_ready_store", counted)
    client = AsyncStoreClient(any_uri)
    async with client:
        async with client:
            await client.bars()
        await client.bars()
        assert len(opened) == 1
    await asyncio.gather(*(client.bars() for _ in range(5)))
    async with client:
        pass
    await client.bars()
    assert len(opened) == 2
    await client.close()


async def test_the_outermost_context_closes(any_uri: str) -> None:
    client = AsyncStoreClient(any_uri)
    async with client:
        async with client:
            pass
        assert in_use(client)
        await client.upsert_bars([bar()])
    assert not in_use(client)
    assert await asyncio.gather(*(client.upsert_bars([bar()]) for _ in range(5)))
    await client.close()


async def test_a_store_that_was_given_stays_open(any_uri: str) -> None:
    store = await open_ready_store(any_uri)
    async with AsyncStoreClient(store) as client:
        await client.upsert_bars([bar()])
    await client.close()
    assert len(await store.bars()) == 1
    await store.close()


@pytest.mark.parametrize("any_uri", ["postgres"], indirect=True)
async def test_a_server_is_migrated_by_its_operator(any_uri: str) -> None:
    store = open_store(any_uri)
    try:
        await store.migrate_down(1)
        client = AsyncStoreClient(any_uri)
        with pytest.raises(UsageError, match="behind this release; run: mdp store migrate"):
            await client.bars()
        await store.migrate()
        assert len(await client.bars()) == 0
        await client.close()
    finally:
        await store.close()


@pytest.mark.parametrize("any_uri", ["postgres"], indirect=True)
async def test_an_empty_database_of_a_server_is_filled(any_uri: str) -> None:
    """By several at once, if they come at once."""
    store = open_store(any_uri)
    try:
        await store.migrate_down(0)
        stores = await asyncio.gather(*(open_ready_store(any_uri) for _ in range(4)))
        assert await store.schema_behind() == 0
        for one in stores:
            await one.close()
    finally:
        await store.close()


async def test_a_store_that_is_away_can_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    client = AsyncStoreClient("postgresql://me:hunter2@127.0.0.1:1/x")
    with pytest.raises(TransientError) as told:
        await client.__aenter__()
    assert "hunter2" not in str(told.value) + repr(client)
    assert not in_use(client)
    with pytest.raises(TransientError):
        await client.ping()
