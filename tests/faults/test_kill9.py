"""kill -9 at random moments and at chosen write boundaries, over every stage's process.

``MDP_FAULT_RUNS`` is the number of kills that must hit a live process. A failing test names the
seed it drew everything from.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from tests.faults import checks
from tests.faults.buses import Topic
from tests.faults.lab import BARS, EVENTS, KILLS, Lab, Worker, wait_until
from tests.faults.recordings import START_NS, SYMBOLS, trades, write_recording

from market_data_core.events import StreamEvent, format_ts
from market_data_core.intervals import NS_PER_S
from market_data_core.testing.oracle import OracleEvent

DEPLOYMENTS = ("embedded-sqlite", "embedded-postgres", "redis-sqlite", "kafka-postgres")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

_KILLS_PER_STORM = 10
_EVENTS_MIN = 5_000
_CODECS = ("columnar", "json", "msgpack")


def _storms(kills: int, first_seed: int) -> list[tuple[int, int]]:
    """(seed, kills) of each storm."""
    sizes = [_KILLS_PER_STORM] * (kills // _KILLS_PER_STORM)
    rest = kills % _KILLS_PER_STORM
    sizes += [rest] if rest else []
    return [(first_seed + i, size) for i, size in enumerate(sizes)]


def _doom(lab: Lab, chance: random.Random) -> str:
    """A write boundary, reached sooner or later."""
    return f"{chance.choice(lab.boundaries)}:{int(2 ** chance.uniform(0, 5.5))}"


@pytest.mark.parametrize(("seed", "kills"), _storms((KILLS + 2) // 3, 1_000))
def test_run(
    seed: int,
    kills: int,
    make_lab: Callable[..., Lab],
    record_property: Callable[[str, object], None],
) -> None:
    """A recording that is carried in any number of attempts is carried exactly once."""
    chance = random.Random(seed)
    codec = chance.choice(_CODECS)
    lab = make_lab(
        micro_batch={"max_batch_size": 20},
        bus={"codec": codec},
        block_rows=chance.choice((0, 97, 400)),
    )
    hits, number = 0, 0
    while hits < kills:
        number += 1
        name = f"rec{number}"
        file, source = lab.path / f"{name}.ndjson", trades(seed + number, 6_000, 100, provider=name)
        lines = write_recording(file, seed, source)
        known = set(checks.lane_topics(lab))
        hits += _carry(lab, ["run", str(file), "--as", name], chance, kills - hits)
        (topic,) = set(checks.lane_topics(lab)) - known
        log = checks.read_topic(lab, topic)
        assert sum(log.received) == lines
        _check_source(log, source)
    expected: dict[Any, Any] = {}
    for topic in checks.lane_topics(lab):
        expected |= checks.check_topic(lab, topic)
    assert checks.stored_bars(lab) == expected
    published = [topic.replace(EVENTS, BARS) for topic in checks.lane_topics(lab)]
    checks.check_published(lab, published)
    checks.check_signals(lab)
    checks.check_files(lab)
    record_property("kills of run", hits)


def _carry(lab: Lab, command: list[str], chance: random.Random, kills: int) -> int:
    """Run until it ends by itself; returns the number of kills."""
    hits = 0
    while hits < kills:
        doom = _doom(lab, chance) if chance.random() < 0.5 else ""
        worker = lab.start(*command, doom=doom)
        if not doom:
            life = _Life.begin("run", worker, chance)
            wait_until(lambda: life.over, "the process dies")  # noqa: B023
            worker.kill()
        code = worker.wait()
        if code == 0:
            return hits
        assert code == -9, worker.output
        hits += 1
    lab.run(*command)
    return hits


def _check_source(log: Topic, source: list[StreamEvent]) -> None:
    """Every trade of the file is in the log, under its own identity."""
    found = {
        (item.symbol, item.seq)
        for records in log.records
        for item in checks.log_items(records)
        if isinstance(item, OracleEvent)
    }
    assert found == {(event.symbol, event.seq) for event in source}


@pytest.mark.parametrize(("seed", "kills"), _storms(KILLS - (KILLS + 2) // 3, 2_000))
def test_live(
    seed: int,
    kills: int,
    make_lab: Callable[..., Lab],
    record_property: Callable[[str, object], None],
) -> None:
    """Producers and workers come and go; what the log holds is in the bars, once."""
    chance = random.Random(seed)
    lab = make_lab(
        bus={"codec": chance.choice(_CODECS)},
        synthetic={
            "symbols": list(SYMBOLS),
            "tick_rate": 10,
            "speed": 15,
            "seed": seed,
            "disorder": 0.05,
            "duplicates": 0.01,
            "late": 0.01,
            "late_ms": 4_000,
            "malformed": 0.002,
        },
    )
    storm = _Storm(lab, chance)
    hits = storm.rage(kills)
    storm.settle()
    expected = checks.check_topic(lab, EVENTS)
    assert expected
    assert checks.stored_bars(lab) == expected
    checks.check_published(lab, [BARS])
    checks.check_signals(lab)
    checks.check_files(lab)
    for name, count in hits.items():
        record_property(f"kills of {name}", count)


@dataclass
class _Life:
    """A process and how long it has, from its start or from when it begins to work."""

    kind: str
    worker: Worker
    seconds: float
    from_start: bool
    began: float | None = None

    @property
    def over(self) -> bool:
        """Whether its time has come, or it is dead already."""
        if self.began is None and (self.from_start or self.worker.listens):
            self.began = time.monotonic()
        expired = self.began is not None and time.monotonic() >= self.began + self.seconds
        return expired or not self.worker.alive

    @classmethod
    def begin(cls, kind: str, worker: Worker, chance: random.Random) -> _Life:
        """Draw its length; most die at work, some while they start."""
        if chance.random() < 0.2:
            return cls(kind, worker, chance.uniform(0.1, 1.0), from_start=True)
        return cls(kind, worker, chance.uniform(0.0, 1.5), from_start=False)


class _Storm:
    """Keeps a feed and a few workers going while they are killed."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self._lab, self._chance = lab, chance
        self._feeds = 0
        self._lives: list[_Life] = []
        self._seen: dict[int, tuple[int, ...]] = {}

    def _start(self, kind: str, doom: str) -> None:
        if kind == "produce":  # the next part of the feed; it overlaps the one before
            config = self._lab.config(start=format_ts(START_NS + self._feeds * 20 * NS_PER_S))
            self._feeds += 1
            command = ("stream", "produce", "--provider", "synthetic", "--for", "30s")
            worker = self._lab.start(*command, config=config, doom=doom)
        else:
            worker = self._lab.start("stream", kind, doom=doom)
        self._lives.append(_Life.begin(kind, worker, self._chance))

    def _fill(self) -> None:
        kinds = Counter(life.kind for life in self._lives)
        workers = self._chance.choice((2, 2, 3))
        for kind, wanted in (("produce", 1), ("micro-batch", workers), ("infer", 1)):
            for _ in range(wanted - kinds[kind]):
                doomed = self._chance.random() < 0.5
                self._start(kind, _doom(self._lab, self._chance) if doomed else "")

    def _bury(self) -> Counter[str]:
        """Take the dead away; those that killed themselves count."""
        dead = [life for life in self._lives if not life.worker.alive]
        self._lives = [life for life in self._lives if life not in dead]
        for life in dead:
            assert life.worker.wait() in (0, -9), life.worker.output
            assert "Traceback" not in life.worker.output, life.worker.output
        return Counter(life.kind for life in dead if life.worker.wait() == -9)

    def rage(self, kills: int) -> Counter[str]:
        """Kill until so many have hit; returns how many of each."""
        hits: Counter[str] = Counter()
        while hits.total() < kills:
            self._fill()
            wait_until(lambda: any(life.over for life in self._lives), "a process dies")
            for life in self._lives:
                if life.over and life.worker.alive:
                    self._look()
                    life.worker.kill()
                    self._compare()
            hits += self._bury()
        return hits

    def _look(self) -> None:
        """Note what a reader can see in the log now."""
        with suppress(FileNotFoundError):
            topic = checks.read_topic(self._lab, EVENTS)
            self._seen = {p: tuple(r.checksum for r in rs) for p, rs in enumerate(topic.records)}

    def _compare(self) -> None:
        """What was seen once stays."""
        topic = checks.read_topic(self._lab, EVENTS)
        for partition, seen in self._seen.items():
            now = tuple(r.checksum for r in topic.records[partition])
            assert now[: len(seen)] == seen

    def settle(self) -> None:
        """Let a last feed live, stop what still runs, and let one worker do the rest."""
        self._start("produce", "")
        wait_until(lambda: self._received() > _EVENTS_MIN, "windows can close")
        for kind in ("produce", "micro-batch", "infer"):
            for life in self._lives:
                if life.kind == kind and life.worker.alive:
                    life.worker.stop(doomed=True)
            self._bury()
        # what a worker left unpublished when it died is published by whoever owns its partition
        for kind, group, read in (
            ("micro-batch", self._lab.group, lambda: checks.all_read(self._lab, EVENTS)),
            ("infer", f"{self._lab.group}-infer", lambda: checks.all_evaluated(self._lab)),
        ):
            dead = self._owners(group)
            last = self._lab.start("stream", kind)
            alone = partial(self._owned_by_one, group, dead)
            wait_until(alone, f"one {kind} owns all partitions")
            wait_until(read, f"{kind} has read the log to its end")
            last.stop()

    def _received(self) -> int:
        return checks.received(self._lab, EVENTS)

    def _owners(self, group: str) -> set[object]:
        rows = self._lab.query(
            f"SELECT DISTINCT owner FROM partitions WHERE consumer_group = '{group}'"
        )
        return {owner for (owner,) in rows}

    def _owned_by_one(self, group: str, dead: set[object]) -> bool:
        owners = self._owners(group)
        return len(owners) == 1 and not owners & {"", *dead}
