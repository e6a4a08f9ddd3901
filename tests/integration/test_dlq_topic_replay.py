"""``mdp dlq replay`` of the bus: once in effect, whenever it is killed, and verified afterwards."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.faults.conftest import LOGS
from tests.unit.cli.conftest import NS, START, Home

from market_data_core.clock import ManualClock
from market_data_core.contracts.provider import Item
from market_data_core.errors import UsageError
from market_data_core.events import EventBatch, Rejected, concat_batches, make_batch
from market_data_pipeline.assembly import Assembly
from market_data_pipeline.backends import open_backends
from market_data_pipeline.letters import REPLAYS_TOPIC

VALUES = "open, high, low, close, volume, vwap, trade_count"
LATER = START + 3_600 * NS
REFUSE = (
    "CREATE TRIGGER refused BEFORE INSERT ON bars_ohlcv WHEN NEW.symbol = 'A' "
    "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
)


BUSES = pytest.mark.parametrize("home", LOGS, indirect=True)


@pytest.fixture
def home(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Home]:
    """A deployment on files, or on the bus that a test is given."""
    log = LOGS[getattr(request, "param", "embedded")](request)()
    settings = {
        "version": 1,
        "bus": {"partitions": 3, **(log.settings if log else {})},
        "telemetry": {"metrics_port": 0},
        "micro_batch": {"windows": ["2s", "3s", "1m"], "lease_ms": 600},
    }
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "streaming.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    yield Home(tmp_path / "home")
    if log:
        log.close()


def live(home: Home, *flushes: Sequence[Item], at: int | None = None, **overrides: Any) -> None:
    """Let feeds write to the live topic, and cut it; `at` is the time of appending."""

    async def run() -> None:
        settings = home.settings(micro_batch__lease_ms=600, **overrides)
        clock = ManualClock(at) if at is not None else None
        async with open_backends(settings, clock) as backends:
            parts = Assembly(settings, backends)
            await parts.result_topics("mdp.bars")
            info = await backends.bus.create_topic("mdp.events", settings.bus.partitions)
            producer = parts.producer(info, "feed")
            for items in flushes:
                for item in items:
                    producer.add(item)
                await producer.flush()
            stop = asyncio.Event()
            stop.set()
            await parts.batcher(info, "mdp.bars", live=True).run(stop, drain_s=30)

    asyncio.run(run())


def trim(home: Home, topic: str) -> None:
    """Let a topic forget all that it holds."""

    async def run() -> None:
        async with open_backends(home.settings()) as backends:
            info = await backends.bus.find_topic(topic)
            for number in range(info.partitions if info else 0):
                end = (await backends.bus.bounds(topic, number)).next
                await backends.bus.trim(topic, number, end, 1 << 62, 1 << 62)

    asyncio.run(run())


def trades(*events: tuple[str, float, float]) -> EventBatch:
    """Trades as (symbol, seconds after START, price); seq is the time in milliseconds."""
    symbols, seconds, prices = zip(*events, strict=True)
    times = [START + round(s * 1000) * 10**6 for s in seconds]
    seqs = [round(s * 1000) for s in seconds]
    return make_batch("feed", symbols, times, seqs, prices, [1.0] * len(events))


ON_TIME = trades(
    ("A", 0.5, 1.0), ("B", 0.6, 5.0), ("A", 1.5, 2.0), ("A", 900, 3.0), ("B", 900, 1.0)
)
LATE = trades(("A", 0.7, 9.0), ("B", 30, 7.0), ("A", 0.7, 9.0))
MORE_LATE = trades(("A", 1.7, 0.5))


def bars(home: Home) -> list[Any]:
    return home.store(
        f"SELECT provider, symbol, interval, ts, {VALUES} FROM bars_ohlcv ORDER BY 1, 2, 3, 4"
    )


def batch_bars(tmp_path: Path, *batches: EventBatch, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bars of events that all come in time, from a deployment of its own."""
    other = Home(tmp_path / "other")
    monkeypatch.setenv("MDP_HOME", str(other.path))
    events = concat_batches(batches)
    in_order = events.take(np.argsort(events.src_ts, kind="stable"))
    other.lane([in_order], bus__type="embedded")
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    return bars(other)


def closed_bars(home: Home) -> list[Any]:
    """Without the windows that the live feed has open at its end."""
    return [row for row in bars(home) if row[3] < START + 840 * NS]


def open_letters(home: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(home.ok("dlq", "list", "--open", "--format", "json"))
    return found


def check(home: Home) -> None:
    """Log and store agree, and every event is accounted for."""
    verified = home.run("verify")
    assert "no difference" in verified.stdout, verified.output
    assert "not verifiable" not in verified.stdout
    home.ok("conservation")


def lanes(home: Home) -> list[str]:
    topics = json.loads(home.ok("stream", "topics", "--format", "json"))
    return [topic["state"] for topic in topics if topic["kind"] == "recording"]


@BUSES
def test_late_events_restate_their_bars_once(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(home, [ON_TIME], [LATE, Rejected("malformed", "no event", b"?")])
    before = bars(home)
    check(home)

    dry = home.run("dlq", "replay", "--dry-run")
    assert dry.stdout == "3 letters would go through the windows again\n"
    assert "not replayable as they are: 1 malformed" in dry.stderr
    assert bars(home) == before
    assert lanes(home) == []

    done = home.ok("dlq", "replay")
    assert "3 letters replayed" in done
    assert "3 received = 2 stored + 0 open + 1 deduplicated" in done
    wanted = batch_bars(tmp_path, ON_TIME, LATE, monkeypatch=monkeypatch)
    assert closed_bars(home) == [row for row in wanted if row[3] < START + 840 * NS]
    assert (
        home.store("SELECT state FROM bars_ohlcv WHERE symbol = 'A' AND ts = ?", [START])
        == [("revised",)] * 3
    )
    check(home)
    assert [letter["reason"] for letter in open_letters(home)] == ["malformed"]

    after = home.store("SELECT * FROM bars_ohlcv ORDER BY 1, 2, 3, 4")
    again = home.run("dlq", "replay")
    assert again.exit_code == 0
    assert again.stdout == "no dead letters to replay\n"
    assert home.store("SELECT * FROM bars_ohlcv ORDER BY 1, 2, 3, 4") == after


def test_what_is_selected_is_replayed(home: Home) -> None:
    live(home, [ON_TIME], [LATE, MORE_LATE])
    assert "1 letter replayed" in home.ok("dlq", "replay", "--symbol", "b")
    assert {letter["symbol"] for letter in open_letters(home)} == {"A"}
    (first, *_) = open_letters(home)
    assert "1 letter replayed" in home.ok("dlq", "replay", "--id", first["id"])
    again = home.ok("dlq", "replay", "--id", first["id"])
    assert f"{first['id']} was replayed at 20" in again
    assert "1 letter replayed" in home.ok("dlq", "replay", "--provider", "feed", "--limit", "1")
    assert "no dead letters that are open" in home.ok("dlq", "replay", "--provider", "other")
    assert "1 letter replayed" in home.ok("dlq", "replay", "--reason", "late")
    assert open_letters(home) == []
    check(home)
    assert lanes(home) == ["finished"] * 4


def test_what_cannot_be_replayed_is_told(home: Home) -> None:
    conflict = trades(("A", 0.5, 4.0))
    live(home, [ON_TIME.take(slice(0, 3)), conflict], [ON_TIME.take(slice(3, 5))])
    before = bars(home)
    for options in ((), ("--reason", "id_conflict")):
        result = home.run("dlq", "replay", *options)
        assert "1 id_conflict: another event with the same identity came first" in result.stderr
        assert result.exit_code == (1 if options else 0)
    assert bars(home) == before
    assert isinstance(home.error("dlq", "replay", "--id", "7"), UsageError)
    assert "no dead letter 7.0" in str(home.error("dlq", "replay", "--id", "7.0"))


PROGRAM = """
import os, signal, sys
from market_data_core.config import load_config
from market_data_pipeline.backends import open_bus
from market_data_pipeline.cli import main
from market_data_store.backends.sqlite import SqliteStore

place, when, left = sys.argv.pop(1).split(":")
left = int(left)

def doomed(call):
    async def counted(self, *arguments, **named):
        global left
        mine = place in ("commit", arguments[0])
        left -= mine
        if mine and left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = await call(self, *arguments, **named)
        if mine and left == 0 and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return counted

if place == "commit":
    SqliteStore.commit = doomed(SqliteStore.commit)
else:
    kind = type(open_bus(load_config(None)))
    kind.append = doomed(kind.append)
main()
"""


def replay_until(doom: str) -> None:
    """Run the command to where it is killed."""
    command = [sys.executable, "-c", PROGRAM, doom, "dlq", "replay"]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert killed.returncode == -9, killed.stdout + killed.stderr


DOOMS = [
    ("embedded", "mdp.dlq.replays:before:1", True),
    ("embedded", "mdp.dlq.replays:after:1", False),
    ("embedded", "commit:before:1", True),
    ("embedded", "commit:after:1", True),
    ("embedded", "mdp.dlq.replays:before:2", False),
    ("embedded", "mdp.dlq.replays:after:2", True),
    ("redis", "mdp.dlq.replays:after:1", True),
    ("redis", "commit:after:1", True),
    ("kafka", "commit:after:1", True),
]


@pytest.mark.parametrize(("home", "doom", "more"), DOOMS, indirect=["home"])
def test_killed_at_any_moment_the_same_command_goes_on(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doom: str, more: bool
) -> None:
    live(home, [ON_TIME], [LATE])
    replay_until(doom)
    if more:
        live(home, [MORE_LATE])
    home.ok("dlq", "replay")
    assert open_letters(home) == []
    events = (ON_TIME, LATE, MORE_LATE) if more else (ON_TIME, LATE)
    wanted = batch_bars(tmp_path, *events, monkeypatch=monkeypatch)
    assert closed_bars(home) == [row for row in wanted if row[3] < START + 840 * NS]
    check(home)
    # an interrupted replay was carried on, not begun anew with other letters
    before_it_began = doom == "mdp.dlq.replays:before:1"
    assert lanes(home) == ["finished"] * (2 if more and not before_it_began else 1)
    assert home.ok("dlq", "replay") == "no dead letters that are open\n"


def test_a_refused_bar_is_written_once_the_database_takes_it(home: Home) -> None:
    live(home, [])
    home.store(REFUSE)
    live(home, [ON_TIME])
    assert [row[1] for row in bars(home)] == ["B"] * 3
    refused = home.run("dlq", "replay")
    assert refused.exit_code == 1
    assert refused.stderr.count("1 letter failed again: permanent: RejectedError") == 3
    assert refused.stderr.count("not this one") == 3
    assert len(open_letters(home)) == 3

    home.store("DROP TRIGGER refused")
    assert "bars_ohlcv: 3 inserted, 0 updated, 0 unchanged" in home.ok("dlq", "replay")
    assert open_letters(home) == []
    assert [row[1] for row in bars(home)] == ["A"] * 3 + ["B"] * 3
    check(home)
    assert home.ok("dlq", "replay") == "no dead letters that are open\n"


def test_a_refused_bar_takes_the_place_of_none_made_of_more_events(home: Home) -> None:
    live(home, [])
    home.store(REFUSE)
    live(home, [ON_TIME], [LATE])
    home.store("DROP TRIGGER refused")
    home.ok("dlq", "replay", "--reason", "late")
    whole = bars(home)
    done = home.ok("dlq", "replay", "--reason", "unwritable")
    assert "3 kept, because the stored bar is made of more events" in done
    assert bars(home) == whole
    check(home)


@pytest.mark.parametrize("codec", ["columnar", "json"])
def test_events_of_the_future_wait_for_their_time_and_for_the_feed(home: Home, codec: str) -> None:
    begin = trades(("A", 0.5, 1.0))
    ahead = trades(("A", 60.5, 2.0))
    live(home, [begin], [ahead], at=START + NS, bus__codec=codec)
    (letter,) = open_letters(home)
    assert (letter["reason"], letter["provider"], letter["symbol"]) == ("future", "feed", "A")

    waiting = home.run("dlq", "replay")  # the feed has not come so far
    assert waiting.exit_code == 1
    assert "1 letter not done yet" in waiting.stderr
    assert len(open_letters(home)) == 1

    live(home, [trades(("A", 900, 3.0))], at=START + 900 * NS, bus__codec=codec)
    check(home)
    assert "1 letter replayed" in home.ok("dlq", "replay")
    assert open_letters(home) == []
    assert lanes(home) == ["finished"]
    minute = home.store(
        "SELECT open FROM bars_ohlcv WHERE interval = '1m' AND ts = ?", [START + 60 * NS]
    )
    assert minute == [(2.0,)]
    check(home)


def test_events_ahead_of_the_clock_are_left_for_later(home: Home) -> None:
    far = make_batch("feed", ["A"], [7_000_000_000 * NS], [1], [1.0], [1.0])
    live(home, [far])
    result = home.run("dlq", "replay")
    assert result.exit_code == 0
    assert "1 future: their time is still ahead of the clock" in result.stderr
    assert lanes(home) == []


def vendor_bars(*bars: tuple[int, float]) -> EventBatch:
    """A vendor's own bars as (minute after START, price)."""
    minutes, prices = zip(*bars, strict=True)
    times = [START + 60 * minute * NS for minute in minutes]
    n = len(bars)
    return make_batch(
        "feed", ["A"] * n, times, [0] * n, prices, [1.0] * n, kind="bar", interval="1m"
    )


def test_a_vendors_own_bar_takes_the_place_of_no_other(home: Home) -> None:
    kept = vendor_bars(*((minute, 1.0) for minute in (0, 1, *range(3, 60))))
    live(home, [kept], [vendor_bars((0, 1.0), (1, 5.0), (2, 7.0))])
    assert len(open_letters(home)) == 3
    result = home.run("dlq", "replay", "--reason", "late")
    assert result.exit_code == 1
    assert "1 late: another bar of the vendor's is stored in their place" in result.stderr
    assert "2 letters replayed" in result.stdout
    first = home.store("SELECT provider, close FROM bars_ohlcv ORDER BY ts LIMIT 4")
    assert first == [("feed:official", price) for price in (1.0, 1.0, 7.0, 1.0)]
    check(home)


def test_a_bar_stays_whose_events_the_log_no_longer_holds(home: Home) -> None:
    live(home, [ON_TIME], at=START + 900 * NS)
    trim(home, "mdp.events")
    live(home, [LATE], at=LATER)
    before = bars(home)
    result = home.run("dlq", "replay", "--reason", "late")
    assert result.exit_code == 1
    assert "no longer holds all that their stored bars were made of" in result.stderr
    assert set(before) <= set(bars(home))
    # where no bar is stored, there is none to be harmed
    assert [letter["symbol"] for letter in open_letters(home)] == ["A", "B", "A"]


def test_letters_that_were_trimmed_end_their_replay(home: Home) -> None:
    live(home, [ON_TIME], [LATE])
    replay_until("mdp.dlq.replays:after:1")
    trim(home, "mdp.dlq")
    live(home, [MORE_LATE])
    done = home.run("dlq", "replay")
    assert done.exit_code == 0
    assert "cannot go on: some of its letters are gone" in done.stderr
    assert "1 letter replayed" in done.stdout
    states = [
        json.loads(line)["replay"]["state"]
        for line in home.ok("stream", "tail", "--topic", REPLAYS_TOPIC).splitlines()
    ]
    assert states[-3:] == ["given_up", "begun", "done"]
