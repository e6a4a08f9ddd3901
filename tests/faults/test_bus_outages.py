"""A Redis server or Kafka broker that dies, stands still, or is cut off, under load.

A feed and two workers go on through all of it: what the log kept is in the bars, once, and the lag
is gone soon after.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import pytest
from tests.conftest import skip_without
from tests.faults import checks
from tests.faults.brokers import WAYS, BehindProxies
from tests.faults.buses import Log, on_kafka, on_redis
from tests.faults.lab import BARS, EVENTS, THOROUGH, Lab, Worker, wait_until
from tests.faults.recordings import SYMBOLS
from tests.faults.stores import PostgresSchema
from tests.servers import redis
from tests.servers.postgres import Server as Postgres
from tests.servers.proxy import Proxy, between

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

_LIVE = {"symbols": list(SYMBOLS), "tick_rate": 10, "speed": 4, "start": "2025-01-02T00:00:00Z"}
_FEED, _FIRST, _SECOND = WAYS
_STORE = "STORE"


class Broker(Protocol):
    """A server that can be maltreated."""

    def stop(self) -> None:
        """End it in good order."""

    def start(self) -> None:
        """Start it, and wait until it answers."""

    def kill(self) -> None:
        """kill -9."""

    def pause(self) -> None:
        """Let it stand still."""

    def resume(self) -> None:
        """Let it go on."""


class _Redis:
    """A Redis server as a :class:`Broker`."""

    def __init__(self, server: redis.Server) -> None:
        self.stop, self.start, self.kill = server.stop, server.start, server.kill
        self._server = server

    def pause(self) -> None:
        self._server.send(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.send(signal.SIGCONT)


@dataclass
class Scene:
    """A deployment at work.

    Attributes:
        lab: it.
        broker: what its bus is on.
        ways: the proxies: of the feed and of each worker to the bus, of the first one to the store.
        feed: the producer.
        first: a worker.
        second: another one.
    """

    lab: Lab
    broker: Broker
    ways: Mapping[str, Proxy]
    feed: Worker
    first: Worker
    second: Worker

    @property
    def processes(self) -> tuple[Worker, ...]:
        return self.feed, self.first, self.second

    def until_waiting(self, *processes: Worker) -> None:
        """Until each of them has found that somebody does not answer, and waits."""
        before = {process.log: _waits(process) for process in processes}
        for process in processes:
            wait_until(
                lambda p=process: _waits(p) > before[p.log],  # type: ignore[misc]
                f"{process.log.name} waits",
                60,
            )

    def until_caught_up(self) -> None:
        """Until events flow again, and all that had come by then has been read and counted."""
        held = checks.received(self.lab, EVENTS)
        wait_until(lambda: checks.received(self.lab, EVENTS) > held + 500, "the feed writes", 60)
        held = checks.received(self.lab, EVENTS)
        wait_until(
            lambda: checks.total_counts(self.lab, EVENTS).received >= held, "the lag is gone", 60
        )
        for process in self.processes:
            assert process.alive, process.output

    def until_more(self, events: int) -> None:
        """Until so many more are counted."""
        wanted = checks.total_counts(self.lab, EVENTS).received + events
        wait_until(
            lambda: checks.total_counts(self.lab, EVENTS).received >= wanted, "it goes on", 60
        )


def _waits(process: Worker) -> int:
    return process.output.count("waiting")


# ---- what happens ----------------------------------------------------------------------------

Fault = Callable[[Scene], None]


def the_server_is_restarted(scene: Scene) -> None:
    scene.broker.stop()
    scene.until_waiting(*scene.processes)
    scene.broker.start()


def the_server_is_killed(scene: Scene) -> None:
    scene.broker.kill()
    scene.until_waiting(*scene.processes)
    scene.broker.start()


def the_server_is_killed_and_back_at_once(scene: Scene) -> None:
    for _ in range(3):
        scene.broker.kill()
        scene.broker.start()
        scene.until_more(100)


def the_server_stands_still(scene: Scene) -> None:
    scene.broker.pause()
    try:
        scene.until_waiting(*scene.processes)
    finally:
        scene.broker.resume()


def everything_is_slow(scene: Scene) -> None:
    for way in scene.ways.values():
        way.delay(0.02, jitter_s=0.08)
    scene.until_more(1_500)


def connections_are_reset(scene: Scene) -> None:
    for _ in range(5):
        for way in scene.ways.values():
            way.cut()
            way.heal()
        scene.until_more(50)


def the_feed_is_cut_off(scene: Scene) -> None:
    scene.ways[_FEED].cut()
    scene.until_waiting(scene.feed)


def the_feed_is_not_answered(scene: Scene) -> None:
    """What it sends arrives; it does not hear of it."""
    scene.ways[_FEED].split("down")
    scene.until_waiting(scene.feed)


def the_feed_is_not_heard(scene: Scene) -> None:
    scene.ways[_FEED].split("up")
    scene.until_waiting(scene.feed)


def a_worker_is_cut_off(scene: Scene) -> None:
    scene.ways[_FIRST].cut()
    scene.until_waiting(scene.first)


def a_worker_is_not_answered(scene: Scene) -> None:
    scene.ways[_FIRST].split("down")
    scene.until_waiting(scene.first)


def everybody_is_half_open(scene: Scene) -> None:
    for name in WAYS:
        scene.ways[name].half_open()
    scene.until_waiting(*scene.processes)


def a_worker_is_cut_off_from_the_store(scene: Scene) -> None:
    """The other one takes its partitions over."""
    scene.ways[_STORE].cut()
    wait_until(lambda: _owners(scene.lab) == 1, "the other one owns all", 60)
    scene.until_more(500)


def a_worker_is_not_answered_by_the_store(scene: Scene) -> None:
    """Nor told whether what it committed last is there."""
    scene.ways[_STORE].split("down")
    wait_until(lambda: _owners(scene.lab) == 1, "the other one owns all", 60)
    scene.until_more(500)


def _owners(lab: Lab) -> int:
    return lab.number(
        f"SELECT count(DISTINCT owner) FROM partitions WHERE topic = '{EVENTS}' AND owner <> ''"
    )


SERVER: tuple[Fault, ...] = (
    the_server_is_restarted,
    the_server_is_killed,
    the_server_stands_still,
    the_server_is_killed_and_back_at_once,
)
NETWORK: tuple[Fault, ...] = (
    everything_is_slow,
    connections_are_reset,
    the_feed_is_not_answered,
    the_feed_is_not_heard,
    a_worker_is_not_answered,
    a_worker_is_cut_off_from_the_store,
    everybody_is_half_open,
    the_feed_is_cut_off,
    a_worker_is_cut_off,
    a_worker_is_not_answered_by_the_store,
)
_ALL = SERVER + NETWORK
_CAMPAIGNS = [SERVER, NETWORK, *((fault,) for fault in _ALL)] if THOROUGH else [SERVER, NETWORK]


# ---- where -----------------------------------------------------------------------------------


@dataclass
class Place:
    """A bus with proxies before it.

    Attributes:
        log: of a deployment.
        broker: that it is on.
        ways: the proxies to it.
        settings: section ``bus`` for a process that goes one of the ways.
    """

    log: Log
    broker: Broker
    ways: dict[str, Proxy]
    settings: Callable[[str], dict[str, Any]]


def _on_redis(_: pytest.FixtureRequest, stack: ExitStack) -> Place:
    if redis.binary() is None:
        skip_without(redis.MISSING)
    # it keeps what it has confirmed, as every second it would not: nothing may be missing here
    server = stack.enter_context(redis.running("--appendfsync", "always"))
    assert server
    log = on_redis(server)
    ways = {name: stack.enter_context(between(server.port)) for name in WAYS}

    def settings(way: str) -> dict[str, Any]:
        uri = f"redis://127.0.0.1:{ways[way].port}/0?socket_timeout=1"
        return {"redis": {**log.settings["redis"], "uri": uri}}

    return Place(log, _Redis(server), ways, settings)


def _on_kafka(request: pytest.FixtureRequest, _: ExitStack) -> Place:
    server: BehindProxies = request.getfixturevalue("kafka")
    log = on_kafka(server)

    def settings(way: str) -> dict[str, Any]:
        address = f"127.0.0.1:{server.ways[way].port}"
        ours = {"bootstrap_servers": address, "timeout_ms": 1_000}
        return {"kafka": {**log.settings["kafka"], **ours}}

    return Place(log, server, server.ways, settings)


@pytest.fixture(params=["redis", "kafka"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres) -> Iterator[Scene]:
    """A feed and two workers that have found their pace."""
    with ExitStack() as stack:
        place = (_on_redis if request.param == "redis" else _on_kafka)(request, stack)
        for way in place.ways.values():
            stack.callback(way.heal)
        store = stack.enter_context(between(postgres.port))
        database = PostgresSchema(postgres)
        lab = Lab(tmp_path / "lab", database, place.log, synthetic=_LIVE)
        stack.callback(lab.close)

        def start(way: str, *arguments: str, uri: str = database.uri) -> Worker:
            config = lab.config_of_one({}, place.settings(way), uri)
            return lab.start("stream", *arguments, config=config)

        apart = urlsplit(database.uri)._replace(netloc=f"postgres@127.0.0.1:{store.port}")
        found = Scene(
            lab,
            place.broker,
            {**place.ways, _STORE: store},
            start(_FEED, "produce", "--provider", "synthetic"),
            start(_FIRST, "micro-batch", uri=urlunsplit(apart)),
            start(_SECOND, "micro-batch"),
        )
        wait_until(lambda: _owners(lab) == 2, "both workers own their share", 60)
        found.until_caught_up()
        yield found


@pytest.mark.parametrize(
    "faults", _CAMPAIGNS, ids=lambda faults: faults[0].__name__ if len(faults) == 1 else None
)
def test_nothing_is_lost_or_doubled(scene: Scene, faults: tuple[Fault, ...]) -> None:
    lab = scene.lab
    for fault in faults:
        fault(scene)
        for way in scene.ways.values():
            way.heal()
        scene.until_caught_up()
        wait_until(lambda: _owners(lab) == 2, "both workers own their share", 60)
    scene.feed.stop()
    assert f"{checks.received(lab, EVENTS):,} events written" in scene.feed.output
    wait_until(lambda: checks.all_read(lab, EVENTS), "all is read", 60)
    for worker in (scene.first, scene.second):
        worker.stop()
    expected = checks.check_topic(lab, EVENTS)
    assert expected
    assert checks.stored_bars(lab) == expected
    checks.check_published(lab, [BARS])
