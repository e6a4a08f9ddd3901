"""Replays of the archive and of stored bars: the same bars, whatever happens on the way."""

from __future__ import annotations

import time

import msgspec
import pytest
import yaml
from tests.faults import checks
from tests.faults.lab import EVENTS, Lab, wait_until
from tests.faults.recordings import START_NS, trade, trades
from tests.integration.test_archive import DEPLOYMENTS, config, feed, logged, root

from market_data_core.contracts.bus import Bus
from market_data_core.events import StreamEvent
from market_data_core.intervals import NS_PER_S
from market_data_core.testing.oracle import OracleBar

pytestmark = [pytest.mark.timeout(180), pytest.mark.faults]


def live(lab: Lab, *parts: list[StreamEvent]) -> None:
    """Feed the live topic, with late and contradictory events, and cut it into windows."""
    settings = config(lab)
    for part in parts:
        feed(lab, part)
    worker = lab.start("stream", "micro-batch", config=settings)
    found, unreadable = logged(lab)
    total = sum(found.values()) + unreadable
    wait_until(lambda: not worker.alive or _counted(lab) >= total, "the log is read")
    worker.stop()
    lab.run("stream", "archive", "--once", config=settings)


def _counted(lab: Lab) -> int:
    return checks.total_counts(lab, EVENTS).received


def session(seed: int = 1) -> list[list[StreamEvent]]:
    """A minute, contradictions, an event that comes too late, and the time after all of it."""
    events = trades(seed, 800, 60)
    other = [
        msgspec.structs.replace(e, c=e.c + 1, o=e.o + 1, h=e.h + 1, l=e.l + 1) for e in events[::97]
    ]
    late = [trade("rec", "S01", START_NS + NS_PER_S, 99_999, 7.5, 3.0)]
    after = [
        trade("rec", f"S{i:02d}", START_NS + 300 * NS_PER_S, 10**6, 10.5, 1.0) for i in range(20)
    ]
    return [events, other, after[:1], late, after]


def bars(lab: Lab, provider: str) -> dict[tuple[str, str, int], OracleBar]:
    """By symbol, interval and start."""
    return {k[1:]: bar for k, bar in checks.stored_bars(lab).items() if k[0] == provider}


def test_a_replay_gives_the_bars_of_the_live_run(lab: Lab) -> None:
    live(lab, *session())
    assert checks.total_counts(lab, EVENTS).late
    before = bars(lab, "rec")
    assert len(before) > 200

    output = lab.run(
        "stream",
        "replay",
        "--archive",
        "--as",
        "again",
        "--to",
        "2025-10-24T14:05",
        config=config(lab),
    )

    assert "late           0" in output
    assert bars(lab, "rec") == before
    end = START_NS + 180 * NS_PER_S  # of the replay
    assert bars(lab, "again") == {k: bar for k, bar in before.items() if k[2] < end}


def test_replaying_twice_changes_no_row(lab: Lab) -> None:
    live(lab, *session(2))
    before = lab.table("bars_ohlcv")
    output = lab.run("stream", "replay", "--archive", config=config(lab))
    assert " 0 inserted, 0 updated" in output
    assert lab.table("bars_ohlcv") == before
    lab.run("stream", "replay", "--archive", "--as", "again", config=config(lab))
    before = lab.table("bars_ohlcv")
    output = lab.run("stream", "replay", "--archive", "--as", "again", config=config(lab))
    assert "no row changed" in output
    assert lab.table("bars_ohlcv") == before


def test_a_part_is_replayed_alone(lab: Lab) -> None:
    live(lab, *session(3))
    span = ("--from", "2025-10-24T14:02:20", "--to", "2025-10-24T14:02:40")
    lab.run(
        "stream", "replay", "--archive", "--as", "part", "--symbols", "s03,S07", *span,
        config=config(lab),
    )  # fmt: skip
    begin, end = (START_NS + s * NS_PER_S for s in (20, 40))
    wanted = {
        key: bar
        for key, bar in bars(lab, "rec").items()
        if key[0] in ("S03", "S07") and begin <= key[2] < end
    }
    assert wanted
    assert bars(lab, "part") == wanted


def test_the_archive_is_a_recording_as_well(lab: Lab) -> None:
    live(lab, trades(4, 500, 60))
    lab.run("run", str(root(lab)), "--as", "folder", config=config(lab))
    files = sorted(map(str, root(lab).glob("date=*/*/*/*.parquet")))
    assert len(files) > 10
    lab.run("run", *files, "--as", "files", config=config(lab))
    assert bars(lab, "files") == bars(lab, "folder")
    before = bars(lab, "rec")
    assert {k: v for k, v in bars(lab, "folder").items() if k in before} == before


def test_a_replay_that_was_killed_goes_on(lab: Lab) -> None:
    live(lab, *session(5))
    for doom in ("bus:COMMIT:after:3", "store:COMMIT:after:12", "store:COMMIT:before:14"):
        worker = lab.start(
            "stream", "replay", "--archive", "--as", "again", config=config(lab), doom=doom
        )
        worker.wait()
    lab.run("stream", "replay", "--archive", "--as", "again", config=config(lab))
    before = bars(lab, "rec")
    assert {k: v for k, v in bars(lab, "again").items() if k in before} == before


def test_speed_keeps_the_pace_of_the_events(lab: Lab) -> None:
    """Ten seconds at five times the speed take two; half of them is there while half is due."""
    feed(lab, [trade("rec", "S01", START_NS + i * NS_PER_S // 2, i, 1.0, 1.0) for i in range(21)])
    lab.run("stream", "archive", "--once", config=config(lab))
    worker = lab.start(
        "stream", "replay", "--archive", "--speed", "5x", "--as", "slow", config=config(lab)
    )

    def carried() -> int:
        topics = checks.lane_topics(lab)
        return sum(logged(lab, topics[0])[0].values()) if topics else 0

    wait_until(carried, "the first event is carried")
    began = time.monotonic()
    wait_until(lambda: carried() >= 10, "the first half is carried")
    assert carried() < 23
    assert worker.wait() == 0, worker.output
    assert time.monotonic() - began >= 1.5
    assert carried() == 24  # three of them were fed twice


def test_bars_of_the_store_are_replayed(lab: Lab) -> None:
    live(lab, *session(6))
    settings = config(lab)
    path = lab.path / "datasets.yaml"
    path.write_text(
        "minute:\n  provider: rec\n  symbols: [S01, S02]\n  interval: 10s\n"
        "  from: 2025-10-24T14:02:00\n  to: 2025-10-24T14:03:00\n"
    )
    arguments = (
        "stream",
        "replay",
        "--dataset",
        "minute",
        "--datasets",
        str(path),
        "--as",
        "vendor",
    )
    lab.run(*arguments, config=settings)
    wanted = {
        key: bar[:5]
        for key, bar in checks.stored_bars(lab).items()
        if key[0] == "rec" and key[1] in ("S01", "S02") and key[2] == "10s"
        and key[3] < START_NS + 60 * NS_PER_S
    }  # fmt: skip
    found = checks.stored_bars(lab)
    assert {("rec", *k[1:]): b[:5] for k, b in found.items() if k[0] == "vendor:official"} == wanted
    assert "no row changed" in lab.run(*arguments, config=settings)


def test_datasets_that_are_wrong_are_refused(lab: Lab) -> None:
    settings = config(lab)
    path = lab.path / "datasets.yaml"
    values = {"spy": {"provider": "rec", "symbol": ["SPY"]}}
    path.write_text(yaml.safe_dump(values))
    replay = ("stream", "replay", "--datasets", str(path), "--dataset")
    output = lab.run(*replay, "spy", code=2, config=settings)
    assert "line 3: spy.symbol: unknown key; did you mean 'symbols'?" in output
    path.write_text("spy_1day: {provider: rec}\n")
    output = lab.run(*replay, "spy_1dax", code=2, config=settings)
    assert "no dataset 'spy_1dax'" in output
    assert "did you mean 'spy_1day'?" in output
    assert "there is no archive" in lab.run(*replay, "spy_1day", code=2, config=settings)
    assert "--speed 'fast'" in lab.run(
        *replay, "spy_1day", "--speed", "fast", code=2, config=settings
    )


@DEPLOYMENTS
def test_verification_reads_what_the_log_has_forgotten(lab: Lab) -> None:
    live(lab, *session(7))
    settings = config(lab)
    assert "no difference" in lab.run("verify", config=settings)
    checks_before = lab.run("verify", config=settings)
    _trim(lab)
    output = lab.run("verify", "--archive", str(root(lab)), config=settings)
    assert "no difference" in output
    assert "not verifiable" not in output
    assert "read from the archive" in output
    assert "read from the archive" not in checks_before
    shown = [line for line in output.splitlines() if line.startswith("windows")]
    assert shown == [line for line in checks_before.splitlines() if line.startswith("windows")]


def _trim(lab: Lab) -> None:
    """Let the logs forget everything that the windows have passed."""
    places = checks.checkpoints(lab, EVENTS)

    async def work(bus: Bus) -> None:
        for number, place in places.items():
            await bus.trim(EVENTS, number, place.resume, 1 << 62, 1)
            assert (await bus.bounds(EVENTS, number)).first == place.resume > 0
        end = (await bus.bounds("mdp.dlq", 0)).next
        await bus.trim("mdp.dlq", 0, end, 1 << 62, 1)

    lab.topics.ask(work)
