"""What was archived gives, run and replayed, the signals that the live run gave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from tests.integration.signals_place import (
    CLOSING,
    END,
    LATE,
    RULES,
    START,
    SYMBOLS,
    TICKS,
    Place,
    use,
)
from typer.testing import CliRunner

from market_data_core.config import Settings
from market_data_core.contracts.store import PartitionKey
from market_data_core.events import Tick
from market_data_core.intervals import NS_PER_MS, NS_PER_S
from market_data_pipeline.backends import Backends
from market_data_pipeline.cli import app


def command(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--config", "config.yaml"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = use(monkeypatch, tmp_path / "live")
    place.live(TICKS[:200], TICKS[200:480], LATE, [*TICKS[480:], *CLOSING])
    command("stream", "archive", "--once", "--path", "../archive")
    return place


def test_an_archive_that_is_run_elsewhere(
    live: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = use(monkeypatch, tmp_path / "elsewhere")
    assert "signals        " in command("run", "../archive")
    assert elsewhere.active() == live.active()
    assert elsewhere.active()


def test_a_replay_changes_nothing(live: Place) -> None:
    before = live.active()
    output = command("stream", "replay", "--archive", "--path", "../archive")
    assert "signals        0 inserted, 0 updated" in output
    assert live.active() == before


def test_a_replay_under_another_name_gives_what_other_rules_say(live: Place) -> None:
    before = live.active()
    Path("rules.yaml").write_text("- {name: other, condition: 'ret > 0', signal: 1}")
    output = command("stream", "replay", "--archive", "--path", "../archive", "--as", "again")
    assert "signals        0 inserted" not in output
    after = live.active()
    assert {(key[0], key[3]) for key in after.keys() - before.keys()} == {("again", "other")}


# ---- a recording of a feed that live inference evaluates ---------------------------------------


def restated(path: Path) -> Path:
    """A recording of ticks that the feed has missed."""
    lines = [
        f"{tick.symbol},{tick.src_ts // NS_PER_MS},{tick.price},{tick.size},{tick.seq}"
        for tick in MISSED
    ]
    path.write_text("\n".join(["symbol,ts,price,size,seq", *lines]))
    return path


AFTER = [
    Tick(s, END + (310 + 2 * i) * NS_PER_S, 100.0 + i, 1.0, 10**8 + i)
    for i in range(30)
    for s in SYMBOLS
]
MISSED = [Tick(s, START + 41_900 * NS_PER_MS, 150.0, 1.0, 10**7 + i) for i, s in enumerate(SYMBOLS)]
"""They raise one bar of each symbol, so that signals hold and do not hold around it."""


@pytest.fixture
def fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = use(monkeypatch, tmp_path / "fed")
    place.live(TICKS, CLOSING)
    return place


def test_its_signals_come_from_live_inference(fed: Place, tmp_path: Path) -> None:
    """Which runs for as long as it takes, if nobody else does it: whoever reads its topic knows."""
    before = fed.active()
    output = command("run", str(restated(tmp_path / "missed.csv")), "--as", "feed")
    after = fed.active()
    assert before.keys() - after.keys()
    assert after.keys() - before.keys()
    assert f"live feed      {2 * len(SYMBOLS)} bars evaluated" in output
    assert fed.published("mdp.signals") == after.keys()
    assert {topic for topic in fed.signal_topics() if fed.published(topic)} == {"mdp.signals"}
    fed.agree()


def test_they_are_held_to_the_rules_of_their_time(fed: Place, tmp_path: Path) -> None:
    """Nor does a recording do the work of live inference by other rules."""
    before = fed.active()
    Path("rules.yaml").write_text("- {name: other, condition: 'ret > 0', signal: 1}")
    output = command("run", str(restated(tmp_path / "missed.csv")), "--as", "feed")
    assert f"left           {2 * len(SYMBOLS)} bars to live inference" in output
    assert fed.active() == before
    fed.infer()
    assert "other" not in {key[3] for key in fed.active()}
    Path("rules.yaml").write_text(RULES)
    fed.agree()


@pytest.mark.parametrize("more", [("--window", "10s"), ("--window", "4s,10s")])
def test_what_live_inference_has_not_read_stays_its_own(
    fed: Place, tmp_path: Path, more: Sequence[str]
) -> None:
    """A recording that is cut into other windows would read past it."""
    fed.feed(AFTER)
    fed.batch()
    output = command("run", str(restated(tmp_path / "missed.csv")), "--as", "feed", *more)
    assert "left           " in output
    fed.infer()
    fed.agree()


def test_a_worker_that_is_there_is_not_disturbed(fed: Place, tmp_path: Path) -> None:
    """It will come to them."""
    before = fed.active()
    with living(fed):
        output = command("run", str(restated(tmp_path / "missed.csv")), "--as", "feed")
        assert f"left           {2 * len(SYMBOLS)} bars to live inference" in output
        assert fed.active() == before
    fed.infer()
    assert fed.active() != before
    fed.agree()


def test_one_that_has_just_died_is(fed: Place, tmp_path: Path) -> None:
    with living(fed) as die:
        die()
        output = command("run", str(restated(tmp_path / "missed.csv")), "--as", "feed")
    assert f"live feed      {2 * len(SYMBOLS)} bars evaluated" in output
    fed.agree()


def test_a_live_topic_that_is_lost(fed: Place) -> None:
    """What it was not told of is evaluated with the recording."""
    before = fed.active()
    fed.store("DELETE FROM signals")
    fed.work(lambda backends, settings: backends.bus.drop_topic(settings.bus.bars_topic))
    command("stream", "archive", "--once", "--path", "../archive")
    output = command("stream", "replay", "--archive", "--path", "../archive")
    assert "left " not in output
    assert fed.active() == before


@contextmanager
def living(place: Place) -> Iterator[Callable[[], None]]:
    """A worker of live inference that lives, and does nothing; what is given lets it die."""
    end, begun, died, member = Event(), Event(), Event(), "somebody"

    async def live(backends: Backends, settings: Settings) -> None:
        key = PartitionKey(f"{settings.bus.group}-infer", settings.bus.bars_topic, 0)
        store, lease_ns = backends.store, settings.micro_batch.lease_ms * NS_PER_MS
        claim = await store.claim(key, member, lease_ns)
        assert claim is not None
        while not end.is_set():
            await store.heartbeat(key.group, key.topic, member, lease_ns, {0: claim.token})
            begun.set()
            await asyncio.sleep(0.05)
        if not died.is_set():
            await store.leave(key.group, key.topic, member)

    thread = Thread(target=place.work, args=(live,))
    thread.start()
    try:
        assert begun.wait(10)

        def die() -> None:
            died.set()
            end.set()
            thread.join()

        yield die
    finally:
        end.set()
        thread.join()
