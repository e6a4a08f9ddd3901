"""``mdp stream forget-group``: what it refuses, and what is gone afterwards."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from tests.unit.cli.test_groups import append

from market_data_core.contracts.store import PartitionKey
from market_data_core.errors import MdpError, UsageError
from market_data_pipeline.archive.checkpoint import GROUP_SUFFIX
from market_data_pipeline.backends import open_backends
from market_data_store.backends.sqlite import SqliteStore

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

OWN = "mdp-consumers"
ARCHIVE = f"{OWN}{GROUP_SUFFIX}"
COMMAND = ("stream", "forget-group")


@pytest.fixture
def archived(home: Home) -> Home:
    """A live topic of which workers and an archiver have read all there was."""
    append(home, 4)
    home.lane([], "mdp.events", ended=False)
    home.ok("stream", "archive", "--once")
    return home


def groups(home: Home) -> set[str]:
    return {row["group"] for row in json.loads(home.ok("stream", "groups", "--format", "json"))}


def test_positions_and_messages_of_a_group_are_gone_for_good(archived: Home) -> None:
    archived.store(
        "INSERT INTO outbox (consumer_group, topic, partition, destination, key, payload, count, "
        "to_partition, provider, min_ts, max_ts) "
        "VALUES (?, 'mdp.events', 0, 'mdp.dlq', 'a', x'', 0, 0, '', 0, 0)",
        [ARCHIVE],
    )
    assert groups(archived) == {OWN, ARCHIVE}
    before = archived.store("SELECT * FROM partitions WHERE consumer_group = ?", [OWN])
    done = archived.run(*COMMAND, ARCHIVE, "--yes")
    assert done.exit_code == 0, done.exception
    assert done.stdout == f"group {ARCHIVE} is forgotten\n"
    assert "mdp.events: the positions of 3 partitions" in done.stderr
    assert "mdp.dlq: the position of 1 partition" in done.stderr
    assert "1 message that was not published" in done.stderr
    assert "needs another folder" in done.stderr
    assert groups(archived) == {OWN}
    assert archived.store("SELECT * FROM partitions WHERE consumer_group = ?", [OWN]) == before
    assert archived.store("SELECT * FROM outbox") == []
    assert isinstance(archived.error(*COMMAND, ARCHIVE, "--yes"), UsageError)


def test_nothing_is_done_without_a_yes(archived: Home) -> None:
    error = archived.error(*COMMAND, ARCHIVE)
    assert isinstance(error, UsageError)
    assert str(error) == f"Forget group {ARCHIVE} for good? Nobody can be asked here; say --yes"
    assert groups(archived) == {OWN, ARCHIVE}


def test_a_group_at_work_is_refused_until_its_lease_has_run_out(archived: Home) -> None:
    async def claim() -> None:
        async with open_backends(archived.settings()) as backends:
            key = PartitionKey(ARCHIVE, "mdp.events", 1)
            assert await backends.store.claim(key, "worker-7", 10**9)

    asyncio.run(claim())
    error = archived.error(*COMMAND, ARCHIVE, "--yes")
    assert isinstance(error, MdpError)
    assert "partition 1 of mdp.events is owned by worker-7; stop its members" in str(error)
    assert groups(archived) == {OWN, ARCHIVE}
    archived.store("UPDATE partitions SET heartbeat = heartbeat - ?", [3_600 * 10**9])
    archived.ok(*COMMAND, ARCHIVE, "--yes")
    assert groups(archived) == {OWN}


def test_the_group_that_works_here_and_wrong_names_are_refused(archived: Home) -> None:
    own = archived.error(*COMMAND, OWN, "--yes")
    assert isinstance(own, UsageError)
    assert "set bus.redis.consumer_group to another one first" in str(own)
    wrong = archived.error(*COMMAND, "mdp-consumers-archiv", "--yes")
    assert isinstance(wrong, UsageError)
    assert f"did you mean {ARCHIVE!r}?" in str(wrong)
    assert groups(archived) == {OWN, ARCHIVE}


def test_without_a_store_there_is_nothing_to_forget(home: Home) -> None:
    assert isinstance(home.error(*COMMAND, ARCHIVE, "--yes"), MdpError)
    assert not (home.path / "store.db").exists()


def test_an_archiver_that_never_ran_is_checked_if_it_is_named(home: Home) -> None:
    append(home, 4)
    home.lane([], "mdp.events", ended=False)
    assert groups(home) == {OWN}
    found = home.run("stream", "groups", "--check", "--group", ARCHIVE)
    assert isinstance(found.exception, MdpError)
    assert f"{ARCHIVE}: partition" in found.stderr
    assert "has unread input and no owner (free)" in found.stderr
    assert f"{OWN}: " not in found.stderr
    home.ok("stream", "archive", "--once")
    home.ok("stream", "groups", "--check", "--group", ARCHIVE)


def test_a_group_that_there_is_not_is_told(archived: Home) -> None:
    error = archived.error("stream", "groups", "--group", "mdp-consumer")
    assert isinstance(error, UsageError)
    assert f"did you mean {OWN!r}?" in str(error)
    both = archived.error("stream", "groups", "--group", OWN, "--topic", "mdp.dlq")
    assert f"group {OWN!r} does not read topic 'mdp.dlq'" in str(both)


def test_one_that_was_killed_can_be_repeated(
    archived: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages are gone before the positions by which they are found."""
    archived.store(
        "INSERT INTO outbox (consumer_group, topic, partition, destination, key, payload, count, "
        "to_partition, provider, min_ts, max_ts) "
        "VALUES (?, 'mdp.events', 0, 'mdp.dlq', 'a', x'', 0, 0, '', 0, 0)",
        [ARCHIVE],
    )

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("commit", "forget"):
        with monkeypatch.context() as patched:
            patched.setattr(SqliteStore, step, killed)
            archived.run(*COMMAND, ARCHIVE, "--yes")
        assert groups(archived) == {OWN, ARCHIVE}
    archived.ok(*COMMAND, ARCHIVE, "--yes")
    assert groups(archived) == {OWN}
    assert archived.store("SELECT * FROM outbox") == []
