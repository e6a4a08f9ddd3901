from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from market_data_core.contracts.store import PartitionKey
from market_data_core.errors import MdpError, TransientError, UsageError
from market_data_core.events import make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry
from market_data_pipeline.backends import open_backends
from market_data_pipeline.bus import codec
from market_data_pipeline.bus.embedded import EmbeddedBus
from market_data_pipeline.cli import _topics

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z
HERE = partition_of("A", 3)
LIVE = "mdp.events"


def batch(count: int, begin: int = 0) -> Any:
    at = range(begin, begin + count)
    return make_batch(
        "feed", ["A"] * count, [START + i for i in at], at, [1.0] * count, [1.0] * count
    )


@pytest.fixture
def live(home: Home) -> Home:
    """A live topic of which five events are read and stay open, and three more are not read."""
    home.lane([batch(5)], LIVE, ended=False)
    append(home, 3)
    return home


def append(home: Home, count: int, topic: str = LIVE) -> None:
    async def run() -> None:
        async with open_backends(home.settings()) as backends:
            await backends.bus.create_topic(topic, 3)
            (payload,) = codec.encode_events(batch(count, 5), "columnar")
            await backends.bus.append(topic, [Entry(HERE, payload, count, "feed", 1, 1)])

    asyncio.run(run())


def rows(home: Home, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        home.ok("stream", "groups", "--format", "json", *options)
    )
    return found


def claim(home: Home, member: str) -> None:
    async def run() -> None:
        async with open_backends(home.settings()) as backends:
            key = PartitionKey("mdp-consumers", LIVE, HERE)
            assert await backends.store.claim(key, member, 10**9)

    asyncio.run(run())


def test_what_is_unread_and_open_is_told(live: Home) -> None:
    found = rows(live)
    assert [row["partition"] for row in found] == [0, 1, 2]
    here = found[HERE]
    assert here["group"] == "mdp-consumers"
    assert (here["unread"], here["pending"], here["state"]) == (3, 5, "free")
    assert here["resume"] < here["counted"] < here["next"]
    assert here["lag_ms"] >= 0
    assert {row["unread"] for row in found if row is not here} == {0}
    total = live.ok("stream", "groups").splitlines()[-1].split()
    assert total[:2] == ["total", "3"]
    assert (total[2], total[-1]) == ("3", "5")


def test_owners_are_told(live: Home) -> None:
    claim(live, "worker-1")
    here = rows(live)[HERE]
    assert (here["state"], here["owner"], here["token"]) == ("owned", "worker-1", 2)
    assert here["heartbeat_ms"] < 5_000
    live.store("UPDATE partitions SET heartbeat = heartbeat - ?", [3_600 * 10**9])
    here = rows(live)[HERE]
    assert (here["state"], here["owner"]) == ("stale", "worker-1")
    assert here["heartbeat_ms"] >= 3_600_000


def test_a_topic_that_nobody_has_read_waits_too(home: Home) -> None:
    append(home, 4)
    found = rows(home)
    assert [(row["state"], row["counted"], row["unread"]) for row in found] == [
        ("free", None, 4 * (number == HERE)) for number in range(3)
    ]
    assert not (home.path / "store.db").exists() or home.store("SELECT 1 FROM partitions") == []


def test_finished_recordings_are_shown_if_asked_for(home: Home) -> None:
    home.lane([batch(3)])
    assert rows(home) == []
    assert home.ok("stream", "groups") == "no group has read anything yet\n"
    for options in (("--all",), ("--topic", "mdp.events.a")):
        assert {row["state"] for row in rows(home, *options)} == {"finished"}


def test_the_position_of_another_log_means_nothing(live: Home) -> None:
    async def anew() -> None:
        async with open_backends(live.settings()) as backends:
            await backends.bus.drop_topic(LIVE)

    asyncio.run(anew())
    gone = rows(live)[HERE]
    assert (gone["next"], gone["unread"], gone["lag_ms"]) == (None, None, None)
    append(live, 2)
    assert rows(live)[HERE]["unread"] == 2


def test_checks_fail_with_what_is_wrong(live: Home) -> None:
    result = live.run("stream", "groups", "--check")
    assert isinstance(result.exception, MdpError)
    assert result.exception.exit_code == 1
    assert f"partition {HERE} of mdp.events has unread input and no owner (free)" in result.stderr
    claim(live, "worker-1")
    assert rows(live, "--check")[HERE]["state"] == "owned"
    assert rows(live, "--check", "--max-lag-ms", "3600000")
    late = live.run("stream", "groups", "--check", "--max-lag-ms", "0")
    assert isinstance(late.exception, MdpError)
    assert f"partition {HERE} of mdp.events lags by" in late.stderr


def test_wrong_options_are_answered(live: Home) -> None:
    error = live.error("stream", "groups", "--topic", "mdp.event")
    assert isinstance(error, UsageError)
    assert "did you mean 'mdp.events'?" in str(error)
    for options in (("--max-lag-ms", "5"), ("--max-lag-ms", "-1", "--check")):
        assert "--max-lag-ms" in str(live.error("stream", "groups", *options))


def test_the_store_or_the_bus_may_be_away(live: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*arguments: object) -> NoReturn:
        msg = "cannot connect"
        raise TransientError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(_topics, "open_ready_store", away)
        error = live.error("stream", "groups")
        assert error.exit_code == 1
        assert str(error) == "the store cannot be used: cannot connect"
    monkeypatch.setattr(EmbeddedBus, "topics", away)
    result = live.run("stream", "groups", "--format", "json")
    assert isinstance(result.exception, MdpError)
    assert "the bus cannot be used: cannot connect" in str(result.exception)
    found = json.loads(result.stdout)
    assert [(row["pending"], row["unread"]) for row in found][HERE] == (5, None)
