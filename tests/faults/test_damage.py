"""Logs that vanish under a store that is ahead of them, files that are not ours, full disks."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.faults import checks
from tests.faults.lab import BARS, EVENTS, WINDOWS, Lab, Worker, cases, wait_until
from tests.faults.recordings import SYMBOLS, trades, write_recording

from market_data_core.contracts.bus import Bus
from market_data_core.events import parse_ts
from market_data_core.intervals import parse_interval
from market_data_core.testing.oracle import OracleBar, OracleEvent, batch_bars
from market_data_pipeline.bus.embedded import EmbeddedBus

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_FEED = ("stream", "produce", "--provider", "synthetic")
_LIVE = {"symbols": list(SYMBOLS), "tick_rate": 5, "speed": "max", "seed": 3}
_FIRST, _LATER = "2025-01-02T00:00:00Z", "2025-01-02T00:10:00Z"
_LOST = "the log has lost events"
Older = Path | dict[bytes, bytes]
"""A copy of a topic: of its file, or of its keys on a Redis server."""
Damage = Callable[[Lab, str, Older], None]
"""Does something to a topic, of which there is a copy made when it held less."""


def _catch_up(lab: Lab) -> str:
    """Let a worker read the live topic to its end; returns what it said."""
    worker = lab.start("stream", "micro-batch")
    wait_until(lambda: not worker.alive or _all_read(lab), "the log is read")
    if worker.alive:
        worker.stop()
    assert worker.wait() == 0, worker.output
    return worker.output


def _all_read(lab: Lab) -> bool:
    """Whether every partition was adopted on the log that is there, and read to its end."""
    log_id, ends = lab.topics.ask(_ends)
    places = checks.checkpoints(lab, EVENTS)
    return bool(ends) and all(
        p in places and (places[p].log_id, places[p].counted) == (log_id, end)
        for p, end in ends.items()
    )


async def _ends(bus: Bus) -> tuple[str, dict[int, int]]:
    info = await bus.find_topic(EVENTS)
    if info is None:
        return "", {}
    return info.log_id, {p: (await bus.bounds(EVENTS, p)).next for p in range(info.partitions)}


def _older(lab: Lab, topic: str) -> Older:
    """A copy of the topic as it is now, where there can be one."""
    if lab.log is None:
        path = lab.path / "older.db"
        shutil.copy(lab.topic_file(topic), path)
        return path
    if lab.log.settings["type"] != "redis":
        return {}
    with closing(_redis(lab)) as client:
        return {key: client.dump(key) for key in _keys(client, lab, topic)}


def _redis(lab: Lab) -> Any:
    return redis.Redis.from_url(lab.topics.settings["redis"]["uri"])


def _keys(client: Any, lab: Lab, topic: str) -> list[bytes]:
    name = f"{lab.topics.settings['redis']['key_prefix']}{topic}"
    return [
        key for key in client.scan_iter(f"{name}*") if f"{key.decode()}:".startswith(f"{name}:")
    ]


def _remove(lab: Lab, topic: str, older: Older) -> None:
    if lab.log:
        lab.log.ask(lambda bus: bus.drop_topic(topic))
        return
    for suffix in ("", "-wal", "-shm"):
        Path(f"{lab.topic_file(topic)}{suffix}").unlink(missing_ok=True)


def _empty(lab: Lab, topic: str, older: Older) -> None:
    _remove(lab, topic, older)
    lab.topic_file(topic).touch()


def _swap(lab: Lab, topic: str, older: Older) -> None:
    """Another log of the same name, with other trades in it."""
    other = Lab(lab.path / "other", synthetic=lab.synthetic)
    other.run(*_FEED, "--for", "5s", config=other.config(start=_FIRST, seed=99))
    _remove(lab, topic, older)
    if topic == EVENTS:
        shutil.copy(other.topic_file(EVENTS), lab.topic_file(EVENTS))
        return
    asyncio.run(_make(lab.home / "bus", topic))


async def _make(folder: Path, topic: str) -> None:
    bus = EmbeddedBus(folder)
    await bus.create_topic(topic, 4)
    await bus.close()


def _set_back(lab: Lab, topic: str, older: Older) -> None:
    """The same log as it was a while ago."""
    if isinstance(older, Path):
        _remove(lab, topic, older)
        shutil.copy(older, lab.topic_file(topic))
        return
    with closing(_redis(lab)) as client:
        client.delete(*_keys(client, lab, topic))
        for key, value in older.items():
            client.restore(key, 0, value)


_LOSSES: list[tuple[str, Damage]] = [
    ("embedded-sqlite", _remove),
    ("embedded-sqlite", _set_back),
    ("redis-sqlite", _set_back),
    ("kafka-sqlite", _remove),
    ("redis-sqlite", _remove),
    ("embedded-sqlite", _swap),
    ("embedded-sqlite", _empty),
]


@pytest.mark.parametrize(("deployment", "damage"), cases(_LOSSES, 4), indirect=["deployment"])
def test_a_live_log_that_was_lost(lab: Lab, damage: Damage) -> None:
    """Stored bars stay, what was read and not stored is counted, the hole is in the ledger."""
    lab.synthetic = _LIVE
    lab.run(*_FEED, "--for", "10s", config=lab.config(start=_FIRST))
    _catch_up(lab)
    older = _older(lab, EVENTS)
    lab.run(*_FEED, "--for", "20s", config=lab.config(start="2025-01-02T00:00:10Z", seed=4))
    _catch_up(lab)
    stored, counts = checks.stored_bars(lab), checks.total_counts(lab, EVENTS)
    assert stored
    assert counts.open
    assert counts.holds()
    damage(lab, EVENTS, older)
    output = _catch_up(lab)
    assert _LOST in output
    assert "Traceback" not in output
    after = checks.total_counts(lab, EVENTS)
    assert after.holds()
    assert after.lost == counts.open
    assert after.open == 0 or damage is _swap
    assert checks.stored_bars(lab).items() >= stored.items()
    gaps = lab.query("SELECT provider, cause, state FROM gaps")
    cause = "log_tail_lost" if damage is _set_back else "log_replaced"
    assert set(gaps) == {("synthetic", cause, "open")}

    lab.run(*_FEED, "--for", "30s", config=lab.config(start=_LATER, seed=5))
    assert _LOST not in _catch_up(lab)
    final = checks.total_counts(lab, EVENTS)
    assert final.holds()
    assert final.lost == after.lost
    assert final.received > after.received
    bars = checks.stored_bars(lab)
    assert bars.items() >= stored.items()
    assert {k: b for k, b in bars.items() if k[3] >= parse_ts(_LATER)} == _later_bars(lab)
    checks.check_published(lab, [BARS])


def _later_bars(lab: Lab) -> dict[checks.StoredKey, OracleBar]:
    """What the feed that came after the damage gives, for all windows that it closed."""
    found = {}
    places = checks.checkpoints(lab, EVENTS)
    for partition, records in enumerate(checks.read_topic(lab, EVENTS).records):
        events = [e for e in checks.log_items(records) if isinstance(e, OracleEvent)]
        events = [e for e in events if e.src_ts >= parse_ts(_LATER)]
        closed = max(s.closed for s in places[partition].streams)
        for window in WINDOWS:
            length = parse_interval(window)
            for (provider, symbol, ts), bar in batch_bars(events, length).items():
                if ts + length <= closed:
                    found[provider, symbol, window, ts] = bar
    return found


@pytest.mark.parametrize(
    ("damage", "when"),
    cases(
        [
            (_set_back, "half way"),
            (_remove, "at the end"),
            (_remove, "half way"),
            (_set_back, "at the end"),
            (_swap, "half way"),
            (_swap, "at the end"),
            (_empty, "half way"),
            (_empty, "at the end"),
        ],
        2,
    ),
)
def test_a_lane_whose_log_was_lost(lab: Lab, damage: Damage, when: str) -> None:
    """It is simply read again."""
    lab.block_rows, lab.micro_batch, lab.synthetic = 100, {"max_batch_size": 20}, _LIVE
    source = trades(5, 3_000, 60)
    write_recording(lab.path / "rec.ndjson", 5, source)
    command = ("run", str(lab.path / "rec.ndjson"))
    worker = lab.start(*command)
    wait_until(lambda: _count(lab, "bars_ohlcv") > 20, "it is at work")
    assert worker.kill()
    (topic,) = checks.lane_topics(lab)
    with closing(sqlite3.connect(lab.topic_file(topic))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    older = _older(lab, topic)
    if when == "at the end":
        lab.run(*command)
    else:
        held = checks.received(lab, topic)
        worker = lab.start(*command)
        wait_until(
            lambda: not worker.alive or checks.received(lab, topic) > held,
            "it goes on",
        )
        commits = _commits(lab, topic)
        wait_until(lambda: not worker.alive or _commits(lab, topic) > commits, "it commits")
        worker.kill()
    damage(lab, topic, older)
    lab.run(*command)
    events = [
        OracleEvent(e.provider, e.symbol, parse_ts(e.src_ts), e.seq, e.o, e.h, e.l, e.c, e.v)
        for e in source
    ]
    expected = {
        (provider, symbol, window, ts): bar
        for window in WINDOWS
        for (provider, symbol, ts), bar in batch_bars(events, parse_interval(window)).items()
    }
    assert checks.stored_bars(lab) == expected
    assert checks.total_counts(lab, topic).holds()
    checks.check_files(lab)


def _count(lab: Lab, table: str) -> int:
    return lab.number(f"SELECT count(*) FROM {table}")


def _commits(lab: Lab, topic: str) -> int:
    sql = f"SELECT sum(sequence) FROM partitions WHERE topic = '{topic}'"
    return lab.number(sql)


# ---- files that are not what they should be ------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(b"2025-10-24,SPY,425.15,100\n" * 1_000)


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes(text)")
        db.execute("INSERT INTO notes VALUES ('mine')")
        db.commit()


def _halved(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _scrambled(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes((7 * i) % 251 for i in range(len(data) - 100)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that has worked and stands still."""
    lab = Lab(tmp_path_factory.mktemp("sound"), synthetic=_LIVE)
    lab.run(*_FEED, "--for", "10s", config=lab.config(start=_FIRST))
    _catch_up(lab)
    write_recording(lab.path / "rec.ndjson", 5, trades(5, 100, 10))
    return lab.path


_HARMS = ("store", _foreign), (EVENTS, _halved), (EVENTS, _foreign), ("store", _halved)
_MORE_HARMS = [(victim, harm) for victim in ("store", EVENTS) for harm in (_garbage, _scrambled)]


@pytest.mark.parametrize(("victim", "harm"), cases([*_HARMS, *_MORE_HARMS], 2))
def test_what_is_not_ours_is_left_alone(
    sound: Path, make_lab: Callable[..., Lab], harm: Callable[[Path], None], victim: str
) -> None:
    """One line that says what is wrong, exit code 1, and not a byte changed."""
    lab = make_lab()
    shutil.copytree(sound, lab.path)
    path = lab.store_file if victim == "store" else lab.topic_file(victim)
    harm(path)
    before = path.read_bytes()
    commands: list[tuple[str, ...]] = [
        ("stream", "micro-batch"),
        ("run", "--provider", "synthetic", "--for", "1s"),
    ]
    if victim == "store":
        commands += [("run", str(lab.path / "rec.ndjson")), ("bars", "S01")]
    else:
        commands += [(*_FEED, "--for", "1s"), ("stream", "tail")]
    for command in (*commands, ("verify",)):
        output = lab.run(*command, code=1)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
        assert path.name in errors[0]
        assert path.read_bytes() == before
    failed = [x for x in lab.run("doctor", code=1).splitlines() if x.startswith("fail ")]
    assert len(failed) == 1
    assert path.name in failed[0]
    assert path.read_bytes() == before


# ---- a full disk ---------------------------------------------------------------------------


def _full(worker: Worker) -> bool:
    return "cannot grow" in worker.output or "the disk reports an error" in worker.output


@pytest.mark.parametrize("after", ["goes on", "starts again"])
@pytest.mark.parametrize("file_bytes", cases([150_000, 1_000, 20_000, 300_000, 600_000], 1))
def test_a_full_disk_is_waited_for(lab: Lab, file_bytes: int, after: str) -> None:
    lab.block_rows, lab.micro_batch = 400, {"max_batch_size": 50}
    lines = write_recording(lab.path / "rec.ndjson", 5, trades(5, 20_000, 60))
    command = ("run", str(lab.path / "rec.ndjson"))
    worker = lab.start(*command, file_bytes_max=file_bytes)
    wait_until(lambda: _full(worker) or not worker.alive, "the disk is full")
    assert worker.alive, worker.output
    if after == "goes on":
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert worker.wait() == 0, worker.output
    else:
        assert worker.kill()
        lab.run(*command)
    (topic,) = checks.lane_topics(lab)
    assert checks.received(lab, topic) == lines
    assert checks.stored_bars(lab) == checks.check_topic(lab, topic)
    checks.check_published(lab, [topic.replace(EVENTS, BARS)])
    checks.check_files(lab)


def test_a_full_live_feed_keeps_what_it_acknowledged(lab: Lab) -> None:
    lab.synthetic = {**_LIVE, "tick_rate": 20, "speed": 20, "start": _FIRST}
    feed = lab.start(*_FEED, "--for", "60s", file_bytes_max=400_000)
    worker = lab.start("stream", "micro-batch", file_bytes_max=400_000)
    wait_until(lambda: _full(feed) or _full(worker), "the disk is full")
    for process in (feed, worker):
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, unlimited)
    assert feed.wait() == 0, feed.output
    wait_until(lambda: _all_read(lab), "the log is read")
    worker.stop()
    received = checks.received(lab, EVENTS)
    assert f"{received:,} events written" in feed.output
    assert checks.stored_bars(lab) == checks.check_topic(lab, EVENTS)
    checks.check_files(lab)
