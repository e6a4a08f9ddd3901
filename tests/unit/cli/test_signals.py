from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from market_data_core.contracts.store import Message, PartitionKey
from market_data_core.errors import MdpError, UsageError
from market_data_core.events import parse_ts
from market_data_core.records import Entry
from market_data_core.signals import Signal
from market_data_core.testing._store_owning import FakeGroup
from market_data_pipeline.backends import open_backends

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = parse_ts("2025-10-24T14:00:00Z")
NAMES = "provider,symbol,ts,name,value,score,state,metadata,created_at"
TOPIC = ("stream", "tail", "--topic", "mdp.signals")
META = {"rule": 'a"b', "bar": {"close": 0.1 + 0.2, "keys": ["ü", None]}}


def signals() -> list[Signal]:
    """Two feeds and two names a second for SPY, and one for AAPL; some have been retracted."""
    found = [
        Signal(
            provider=provider,
            symbol="SPY",
            ts=START + i * 10**9,
            name=name,
            value=value,
            score=0.8 if i % 2 else None,
            state="retracted" if i % 10 == 5 else "active",
            metadata=META,
        )
        for provider in ("one", "two")
        for i in range(30)
        for name, value in (("down", -1.0), ("up", 1 / 3))
    ]
    return [*found, Signal(provider="one", symbol="AAPL", ts=START, name="up", value=1.0)]


@pytest.fixture
def stored(home: Home) -> Home:
    async def run() -> None:
        async with open_backends(home.settings()) as backends:
            claim = await backends.store.claim(PartitionKey("g", "mdp.bars", 0), "me", 10**9)
            assert claim is not None
            await backends.store.commit([FakeGroup(claim, signals=signals())], [])

    asyncio.run(run())
    return home


@pytest.fixture
def topic(home: Home) -> Home:
    """Signals as messages of an outbox, each carried to the bus."""

    async def run() -> None:
        async with open_backends(home.settings()) as backends:
            await backends.bus.create_topic("mdp.signals", 3)
            for n, signal in enumerate(signals()):
                m = Message(
                    "mdp.signals", f"key/{n}", signal.encode(), 1, n % 3, signal.provider,
                    signal.ts, signal.ts,
                )  # fmt: skip
                entry = Entry(
                    m.partition, m.payload, m.count, m.provider, m.min_ts, m.max_ts, key=m.key
                )
                await backends.bus.append("mdp.signals", [entry])

    asyncio.run(run())
    return home


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


# ---- mdp signals ---------------------------------------------------------------------------


def test_a_symbol_gives_all_names_and_providers(stored: Home) -> None:
    rows = json.loads(stored.ok("signals", "spy", "--format", "json"))

    assert len(rows) == 2 * 30 * 2
    assert list(rows[0]) == NAMES.split(",")
    assert {(r["provider"], r["name"]) for r in rows} == {
        (p, n) for p in ("one", "two") for n in ("up", "down")
    }
    assert rows[1] | {"created_at": ""} == {
        "provider": "one", "symbol": "SPY", "ts": "2025-10-24T14:00:00.000000Z", "name": "up",
        "value": 1 / 3, "score": None, "state": "active", "metadata": META, "created_at": "",
    }  # fmt: skip


def test_options_narrow_it_down(stored: Home) -> None:
    rows = json.loads(
        stored.ok(
            "signals", "SPY", "--name", "up", "--provider", "two", "--state", "retracted",
            "--from", "2025-10-24T14:00:06Z", "--to", "2025-10-24T14:00:25Z", "--format", "json",
        )
    )  # fmt: skip

    assert [(r["provider"], r["name"], r["state"], r["ts"]) for r in rows] == [
        ("two", "up", "retracted", "2025-10-24T14:00:15.000000Z")
    ]
    assert len(json.loads(stored.ok("signals", "SPY", "--limit", "7", "--format", "json"))) == 7


def test_csv_and_parquet_have_the_tables_columns(stored: Home) -> None:
    csv = stored.ok("signals", "SPY", "--format", "csv")
    assert csv.splitlines()[0] == NAMES
    frame = pl.read_csv(io.StringIO(csv))
    assert json.loads(frame["metadata"][0]) == META
    assert frame["value"].to_list()[:2] == [-1.0, 1 / 3]
    stored.ok("signals", "SPY", "--format", "parquet", "--output", "signals.parquet")
    kept = pl.read_parquet("signals.parquet")
    assert ",".join(kept.columns) == NAMES
    assert kept.schema["ts"] == pl.Datetime("ns", "UTC")
    assert json.loads(kept["metadata"][0]) == META


def test_the_table_shows_the_last_rows_and_how_many_there_are(stored: Home) -> None:
    output = stored.ok("signals", "AAPL")
    title, _, heading, *_ = output.splitlines()
    assert title == "1 signal"
    assert heading.split() == NAMES.split(",")[:-1]
    assert stored.ok("signals", "SPY").startswith("The last 50 of 120 signals\n")


def test_what_is_not_there_is_answered_with_what_is(stored: Home) -> None:
    assert str(stored.error("signals", "QQQ")) == "no signals of 'QQQ'; there are AAPL, SPY"
    assert str(stored.error("signals", "AAPL", "--name", "down")) == (
        "no signals of AAPL with name 'down'; there are up"
    )
    assert str(stored.error("signals", "AAPL", "--name", "up", "--state", "retracted")) == (
        "no signals of AAPL up with state 'retracted'; there are active"
    )
    late = stored.error("signals", "SPY", "--state", "retracted", "--from", "2030-01-01")
    assert str(late) == (
        "no signals of SPY retracted in that time; there are some from "
        "2025-10-24T14:00:05.000000Z to 2025-10-24T14:00:25.000000Z"
    )
    assert late.exit_code == 1
    assert stored.run("signals", "QQQ", "--format", "json").stdout == "[]\n"
    assert stored.run("signals", "QQQ", "--format", "csv").stdout == NAMES + "\n"


def test_a_store_without_signals_says_what_makes_them(home: Home) -> None:
    fresh = home.run("signals", "SPY", "--format", "csv")
    assert isinstance(fresh.exception, MdpError)
    assert fresh.stdout == NAMES + "\n"
    assert not home.path.exists()
    home.ok("store", "migrate")
    assert "no signals yet: the store has none; run mdp stream infer" in str(
        home.error("signals", "SPY")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "yesterday"), "--from 'yesterday'"),
        (("--limit", "0"), "--limit 0"),
        (("--output", "no/such/folder/x", "--format", "json"), "--output no/such/folder/x"),
    ],
)
def test_wrong_options_are_named(stored: Home, arguments: tuple[str, ...], words: str) -> None:
    error = stored.error("signals", "SPY", *arguments)

    assert isinstance(error, UsageError)
    assert words in str(error)
    assert stored.run("signals", "SPY", "--state", "open").exit_code == 2


# ---- mdp stream tail --topic mdp.signals ---------------------------------------------------


def test_tail_shows_signals_as_they_stand_on_the_wire(topic: Home) -> None:
    output = topic.ok(*TOPIC, "--limit", "500")

    found = [Signal.decode(line.encode()) for line in output.splitlines()]
    assert sorted(found, key=lambda s: s.key) == sorted(signals(), key=lambda s: s.key)
    assert [line.get("state") for line in lines(output)].count("retracted") == 12


def test_tail_filters_signals_by_symbol_and_provider(topic: Home) -> None:
    (only,) = lines(topic.ok(*TOPIC, "--symbol", "aapl"))
    assert (only["symbol"], only["meta"], only["score"]) == ("AAPL", {}, None)
    both = lines(topic.ok(*TOPIC, "--symbol", "SPY", "--provider", "two", "--limit", "500"))
    assert len(both) == 60
    assert {line["provider"] for line in both} == {"two"}
    assert topic.ok(*TOPIC, "--symbol", "QQQ") == ""


def test_tail_shows_raw_records_of_signals(topic: Home) -> None:
    (record,) = lines(topic.ok(*TOPIC, "--symbol", "AAPL", "--raw"))

    assert (record["topic"], record["count"]) == ("mdp.signals", 1)
    assert Signal.decode(record["payload"].encode()) == signals()[-1]


def test_topics_tells_what_the_topic_holds(topic: Home) -> None:
    (row,) = json.loads(topic.ok("stream", "topics", "--format", "json"))
    assert (row["topic"], row["kind"], row["partitions"]) == ("mdp.signals", "signals", 3)
