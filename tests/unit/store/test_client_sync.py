"""The synchronous client: as the other one, from any thread, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import UsageError
from market_data_store import StoreClient, opening
from market_data_store.opening import open_ready_store
from mds_client.models import Bar, SignalRow

T0 = datetime(2025, 10, 24, 14, tzinfo=UTC)


def bars(count: int, symbol: str = "SPY") -> list[Bar]:
    return [
        Bar(symbol=symbol, open=1, high=2, low=1, close=i + 1, volume=1, ts=T0 + timedelta(0, i))
        for i in range(count)
    ]


def clients() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "store-client"]


def test_calls_return_what_they_did(any_uri: str) -> None:
    with StoreClient.open(any_uri) as client:
        assert client.upsert_bars(bars(3)) == WriteCounts(3)
        assert client.bars("spy", "1m")["close"].to_list() == [1, 2, 3]
        assert client.latest_bars("SPY", "1m", n=2)["close"].to_list() == [2, 3]
        assert client.resampled_bars("SPY", "1m", "1h")["close"].to_list() == [3]
        signal = SignalRow(symbol="SPY", name="up", value=1, provider="p", ts=T0)
        assert client.upsert_signals([signal]) == WriteCounts(1)
        assert client.retract([("p", "SPY", T0, "up")]) == WriteCounts(updated=1)
        with pytest.raises(UsageError, match="start: 'x'"):
            client.bars(start="x")
        client.ping()
        assert clients()
    assert not clients()


def test_frames_one_by_one(any_uri: str) -> None:
    with StoreClient(any_uri) as client:
        client.upsert_bars(bars(25))
        frames = list(client.iter_bars("SPY", rows_max=10))
        assert pl.concat(frames).equals(client.bars("SPY"))
        for _ in client.iter_bars("SPY", rows_max=1):
            break
        rest = client.iter_bars("SPY", rows_max=1)
        next(rest)
        with pytest.raises(UsageError, match="rows_max"):
            client.iter_bars("SPY", rows_max=0)
    assert not clients()
    rest.close()  # type: ignore[attr-defined]
    assert not clients()


def test_contexts_may_be_nested_and_followed_by_others(any_uri: str) -> None:
    client = StoreClient(any_uri)
    with client:
        with client:
            client.upsert_bars(bars(1))
        assert len(client.bars()) == 1
        assert clients()
    assert not clients()
    assert len(client.bars()) == 1
    with client:
        client.ping()
    assert clients()  # it was open before
    client.close()
    client.close()
    assert not clients()


async def test_inside_a_running_loop(any_uri: str) -> None:
    store = await open_ready_store(any_uri)
    await store.close()
    with StoreClient(any_uri) as client:
        assert client.upsert_bars(bars(1)) == WriteCounts(1)
        assert len(await asyncio.to_thread(client.bars)) == 1


def test_many_threads_at_once(any_uri: str) -> None:
    with StoreClient(any_uri) as client, ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda i: client.upsert_bars(bars(5, f"S{i}")), range(12)))
        assert done == [WriteCounts(5)] * 12
        assert len(client.bars()) == 60


class Shown:
    """A store with one scan that does not end, which tells how it is treated."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def scan(self, *_: object) -> AsyncIterator[pl.DataFrame]:
        try:
            while True:
                yield pl.DataFrame({"a": [1]})
        finally:
            self.told.append("scan ended")

    async def close(self) -> None:
        self.told.append("closed")


def test_closing_waits_for_calls_of_other_threads(any_uri: str) -> None:
    """What is under way ends well; what comes after it is told, or opens the store anew."""
    client = StoreClient.open(any_uri)
    client.ping()
    rows = [bars(2_000, f"S{i}") for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(client.upsert_bars, part) for part in rows]
        while not writing[0].done():
            time.sleep(0.001)
        client.close()
        outcomes = [(one.exception(), one) for one in writing]
    for error, one in outcomes:
        assert error is None or isinstance(error, UsageError), error
        assert error or one.result() == WriteCounts(2_000)
    client.close()


@pytest.mark.parametrize("leave", ["close", "drop", "read on"])
def test_what_is_open_is_closed_in_order(leave: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = Shown()

    async def opened(_: str) -> Any:
        return store

    monkeypatch.setattr(opening, "open_ready_store", opened)
    client = StoreClient.open("shown:")
    frames = client.iter_bars()
    next(frames)
    if leave == "drop":
        del frames, client
        gc.collect()
    else:
        if leave == "read on":
            frames.close()  # type: ignore[attr-defined]
            assert store.told == ["scan ended"]
        client.close()
    assert store.told == ["scan ended", "closed"]
    assert not clients()


def test_one_that_is_dropped_closes_itself(any_uri: str) -> None:
    client = StoreClient(any_uri)
    client.upsert_bars(bars(1))
    assert clients()
    del client
    gc.collect()
    deadline = time.monotonic() + 10
    while clients() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not clients()


SCRIPT = """
import sys
from market_data_store import StoreClient, opening
client = StoreClient(sys.argv[1])
print(len(client.bars()))
frames = client.iter_bars()
"""


def test_a_program_that_just_ends_is_quiet(any_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, any_uri],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)
