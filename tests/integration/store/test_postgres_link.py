"""Connections to a PostgreSQL server that does not answer, and to one that may take its time."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from tests.servers.postgres import Server

from market_data_core.errors import TransientError
from market_data_store.backends import _postgres_link
from market_data_store.backends._postgres_link import UNLIMITED, Link
from market_data_store.backends.postgres import PostgresStore

ANSWER_S = 0.5
LONG_S = 10.0
"""How long the server is silent: far longer than a test may take to find out."""
NO_ANSWER = rf"no answer within {ANSWER_S:g} s"
LIMITS = "&statement_timeout_ms=300&application_name=waiting"


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_postgres_link, "_GRACE_S", ANSWER_S - 0.3)


@pytest.fixture(autouse=True)
def ended(postgres: Server) -> Iterator[None]:
    """The server goes on with what was given up; other tests look at what is going on there."""
    yield
    end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = "
    assert all(gone for (gone,) in postgres.query(f"{end}'waiting'"))


@pytest.fixture
def uri(postgres: Server) -> str:
    return postgres.new_schema()


@pytest.fixture
async def link(uri: str) -> AsyncIterator[Link]:
    opened = Link(uri + LIMITS)
    yield opened
    async with asyncio.timeout(ANSWER_S):
        await opened.close()


async def silent(link: Link, use: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Any]]) -> None:
    """Use a connection whose server knows of no limit: given up, and the next one works."""

    async def work() -> None:
        async with link.transaction() as db:
            await db.execute("SET statement_timeout = 0")
            await use(db)

    began = time.monotonic()
    with pytest.raises(TransientError, match=NO_ANSWER):
        await work()
    assert time.monotonic() < began + LONG_S / 2
    async with link.transaction() as db:
        await db.execute("SELECT 1")


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_a_statement_without_an_answer(postgres: Server, uri: str, family: str) -> None:
    if family == "unix":
        ((folder,),) = postgres.query("SHOW unix_socket_directories")
        uri = re.sub("@127.0.0.1", "@", uri) + f"&host={folder}"
    link = Link(uri + LIMITS)
    await silent(link, lambda db: db.execute(f"SELECT pg_sleep({LONG_S})".encode()))
    await link.close()


@pytest.mark.parametrize("rows", [1, 2_000_000], ids=["at its end", "while sending"])
async def test_a_copy_without_an_answer(postgres: Server, uri: str, link: Link, rows: int) -> None:
    for statement in (
        "CREATE TABLE slow (x int)",
        f"""CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep({LONG_S}); RETURN NEW; END'""",
        "CREATE TRIGGER slow BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION wait()",
    ):
        postgres.query(statement, uri)

    async def copy(db: psycopg.AsyncConnection[Any]) -> None:
        async with db.cursor() as cursor, cursor.copy("COPY slow FROM STDIN") as copying:
            await copying.write(b"1234567\n" * rows)

    await silent(link, copy)


async def test_no_answer_while_connecting(postgres: Server, uri: str) -> None:
    """What is set for the session comes after the driver's own limit for connecting."""
    first = uri.replace("public", "pg_catalog")
    postgres.query(
        f"""CREATE FUNCTION set_config(text, text, bool) RETURNS text LANGUAGE sql AS
            'SELECT pg_sleep({LONG_S})::text'""",
        uri,
    )
    link = Link(first + LIMITS)
    for use in (link.transaction, link.apart):
        with pytest.raises(TransientError, match=NO_ANSWER):
            async with use():
                pass
    await link.close()


async def test_the_limit_is_lifted_for_one_transaction(link: Link) -> None:
    async with link.transaction() as db:
        await db.execute(UNLIMITED)
        await db.execute(f"SELECT pg_sleep({2 * ANSWER_S})".encode())
    await silent(link, lambda db: db.execute(f"SELECT pg_sleep({LONG_S})".encode()))


async def test_no_limit_at_all(uri: str) -> None:
    link = Link(f"{uri}&statement_timeout_ms=0")
    async with link.transaction() as db:
        await db.execute(f"SELECT pg_sleep({2 * ANSWER_S})".encode())
    await link.close()


@pytest.mark.parametrize("call", [PostgresStore.bars, PostgresStore.inspect, PostgresStore.migrate])
async def test_reading_and_migrating_take_their_time(
    postgres: Server, uri: str, call: Callable[[PostgresStore], Awaitable[Any]]
) -> None:
    store = PostgresStore(uri + LIMITS)
    await store.migrate()
    waiting = """SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'waiting' AND wait_event_type = 'Lock'"""
    with psycopg.connect(uri) as db, db.transaction():
        db.execute("LOCK TABLE bars_ohlcv, mdp_schema IN ACCESS EXCLUSIVE MODE")
        task = asyncio.ensure_future(call(store))
        while postgres.query(waiting) != [(1,)]:
            await asyncio.sleep(0.01)
            assert not task.done()
        await asyncio.sleep(2 * ANSWER_S)
        assert not task.done()
    await task
    await store.close()


async def test_a_process_that_stood_still_itself(link: Link) -> None:
    """The answer was there in time, and only nobody looked."""
    async with link.transaction() as db:
        task = asyncio.create_task(db.execute("SELECT 1"))
        asyncio.get_running_loop().call_soon(time.sleep, 2 * ANSWER_S)
        await task
        await db.execute("SELECT 2")
