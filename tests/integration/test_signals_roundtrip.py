"""Signals on their way: a group's commit, the table, clients, the command line, files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl
import pytest
from typer.testing import CliRunner

from market_data_core.clock import SystemClock
from market_data_core.contracts.store import Claim, CommitResult, Message, Store, WriteCounts
from market_data_core.errors import FencedError
from market_data_core.events import parse_ts
from market_data_core.signals import Signal
from market_data_core.testing._store_owning import GROUP, TOPIC, FakeGroup, batch, key
from market_data_pipeline.cli import app
from market_data_store import SignalsStoreClient
from market_data_store.opening import open_store
from market_data_store.sinks.groups import CoordinatedCommits

if TYPE_CHECKING:
    from tests.servers.postgres import Server

T = TypeVar("T")

END = parse_ts("2025-10-24T14:02:02Z")
S = 10**9
LEASE = 60 * S


@dataclass(frozen=True)
class Deployment:
    """A store of its own, and the command line on it."""

    uri: str

    def work(self, call: Callable[[Store], Awaitable[T]]) -> T:
        """Use a client of the migrated store."""

        async def run() -> T:
            store = open_store(self.uri, SystemClock())
            try:
                await store.migrate()
                return await call(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def claim(self, member: str = "me") -> Claim:
        """Take the one partition over."""

        async def run(store: Store) -> Claim:
            claim = await store.claim(key(), member, 0)
            assert claim is not None
            return claim

        return self.work(run)

    def commit(self, group: FakeGroup) -> CommitResult:
        """Write a group, by way of the coordinator."""

        async def run(store: Store) -> CommitResult:
            async with CoordinatedCommits(store, "signals") as commits:
                return await commits.commit([group], [])

        return self.work(run)

    def stored(self, **wanted: Any) -> list[Signal]:
        """What a client reads."""
        frame = self.work(lambda store: SignalsStoreClient(store).signals(**wanted))
        times = frame["ts"].dt.epoch("ns").to_list()
        rows = frame.drop("created_at").iter_rows(named=True)
        return [
            Signal(**row | {"ts": ts, "metadata": json.loads(row["metadata"])})
            for ts, row in zip(times, rows, strict=True)
        ]

    def ok(self, *arguments: object) -> str:
        """What a command prints that succeeds."""
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def shown(self, *arguments: object) -> list[dict[str, Any]]:
        """Rows that ``mdp signals`` gives."""
        rows: list[dict[str, Any]] = json.loads(self.ok("signals", *arguments, "--format", "json"))
        return rows


def _sqlite(request: pytest.FixtureRequest) -> str:
    return f"sqlite:///{request.getfixturevalue('tmp_path')}/store.db"


def _postgres(request: pytest.FixtureRequest) -> str:
    server: Server = request.getfixturevalue("postgres")
    return server.new_schema()


@pytest.fixture(params=[_sqlite, _postgres], ids=["sqlite", "postgres"])
def deployment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    uri = request.param(request)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MDP_STORE_URI", uri)
    return Deployment(uri)


def signal(symbol: str = "SPY", at: int = 0, name: str = "up", **changes: Any) -> Signal:
    values: dict[str, Any] = {
        "value": 0.1 + 0.2,
        "score": 1 / 3,
        "metadata": {"rule": "ü'\"", "features": {"momentum": 0.1 + 0.2, "rsi": None}},
    }
    return Signal(provider="feed", symbol=symbol, ts=END + at * S, name=name, **values | changes)


def as_shown(given: Signal) -> dict[str, Any]:
    """The row of ``--format json``, without what the store fills in."""
    event = json.loads(given.encode())
    names = ("provider", "symbol", "ts", "name", "value", "score")
    row = {name: event[name] for name in names}
    return row | {"state": given.state, "metadata": event["meta"]}


def test_signals_of_a_commit_are_read_by_everybody(deployment: Deployment) -> None:
    given = [
        signal("AAPL", name="down", score=None, metadata={}),
        signal("SPY", 0),
        signal("SPY", 2, value=-5e-324),
    ]
    messages = [
        Message("mdp.signals", f"k/{i}", s.encode(), 1, provider="feed", min_ts=s.ts, max_ts=s.ts)
        for i, s in enumerate(given)
    ]
    bars = [batch(("SPY", 0, 425.1, 3))]
    group = FakeGroup(deployment.claim(), bars, signals=given[::-1], messages=messages)

    result = deployment.commit(group)

    assert (result.counts, result.signals) == (
        WriteCounts(inserted=1),
        WriteCounts(inserted=3),
    )
    assert deployment.stored() == given
    assert deployment.stored(symbols="spy", start="2025-10-24T14:02:03Z") == given[2:]
    rows = deployment.shown("spy")
    assert [{k: v for k, v in row.items() if k != "created_at"} for row in rows] == [
        as_shown(s) for s in given[1:]
    ]
    sent = deployment.work(lambda store: store.outbox(GROUP, TOPIC, 0))
    assert [Signal.decode(item.message.payload) for item in sent] == given


def test_a_signal_is_retracted_and_comes_back(deployment: Deployment) -> None:
    group = FakeGroup(deployment.claim(), signals=[signal(), signal(name="down")])
    deployment.commit(group)
    gone = signal(state="retracted")

    group = group.next(signals=[gone, signal(name="down")])
    assert deployment.commit(group).signals == WriteCounts(updated=1, unchanged=1)
    assert deployment.stored(state="retracted") == [gone]
    (row,) = deployment.shown("SPY", "--state", "retracted")
    assert (row["name"], row["value"]) == ("up", gone.value)
    assert [r["name"] for r in deployment.shown("SPY", "--state", "active")] == ["down"]

    group = group.next(signals=[signal(value=2.0)])
    assert deployment.commit(group).signals == WriteCounts(updated=1)
    assert [r["value"] for r in deployment.shown("SPY", "--name", "up")] == [2.0]


def test_who_was_fenced_off_leaves_no_signal(deployment: Deployment) -> None:
    lost = FakeGroup(deployment.claim(), signals=[signal()])
    owner = FakeGroup(deployment.claim("other"), signals=[signal(name="down")])

    with pytest.raises(FencedError):
        deployment.commit(lost)
    deployment.commit(owner)
    assert deployment.stored() == list(owner.signals)


def test_a_commit_again_changes_nothing(deployment: Deployment) -> None:
    given = [signal(f"S{i:04}", i % 3, value=float(i)) for i in range(2_000)]
    group = FakeGroup(deployment.claim(), signals=given)
    assert deployment.commit(group).signals == WriteCounts(inserted=2_000)
    before = deployment.work(lambda store: SignalsStoreClient(store).signals())

    assert deployment.commit(group.next(signals=given)).signals == WriteCounts(unchanged=2_000)

    after = deployment.work(lambda store: SignalsStoreClient(store).signals())
    assert after.equals(before)


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
def test_signals_go_to_a_file_and_back(deployment: Deployment, tmp_path: Path, form: str) -> None:
    given = [signal(at=i, state="retracted" if i % 2 else "active") for i in range(4)]
    deployment.commit(FakeGroup(deployment.claim(), signals=given))
    file = tmp_path / f"signals.{form}"

    assert "4 rows" in CliRunner().invoke(app, ["store", "export", "signals", str(file)]).output
    again = deployment.ok("store", "import", "signals", file)
    assert "0 inserted, 0 updated, 4 unchanged" in again
    if form == "parquet":
        assert pl.read_parquet(file)["value"].to_list() == [s.value for s in given]
