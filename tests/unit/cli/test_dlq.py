from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest

from market_data_core.errors import UsageError
from market_data_core.events import Rejected, make_batch

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Home

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z


@pytest.fixture
def letters(home: Home) -> Home:
    late = [START, START + 10**12, START]
    home.lane(
        [
            Rejected("malformed", "no message", b"\xff\x00" + b"x" * 3_000, "day.json:7"),
            make_batch("feed", ["SPY"] * 3, late, [1, 2, 3], [1.0] * 3, [1.0] * 3),
        ]
    )
    return home


def test_reasons_are_counted_and_letters_listed(letters: Home) -> None:
    output = letters.ok("dlq", "list")

    assert [line.split()[:2] for line in output.splitlines()[3:5]] == [
        ["malformed", "1"],
        ["late", "1"],
    ]
    assert "day.json:7" in output
    assert "The last 1 of 2 letters" in letters.ok("dlq", "list", "--limit", "1")


def test_json_and_csv_have_the_same_columns(letters: Home) -> None:
    rows = json.loads(letters.ok("dlq", "list", "--format", "json"))
    table = list(csv.DictReader(io.StringIO(letters.ok("dlq", "list", "--format", "csv"))))

    assert [list(row) for row in table] == [list(row) for row in rows]
    late = next(row for row in rows if row["reason"] == "late")
    assert (late["symbol"], late["provider"], late["src_ts"]) == (
        "SPY",
        "feed",
        "2025-10-24T14:00:00.000000Z",
    )
    assert late["topic"] == "mdp.events.a"
    only = json.loads(letters.ok("dlq", "list", "--format", "json", "--reason", "malformed"))
    assert [(row["reason"], row["size"], row["where"]) for row in only] == [
        ("malformed", 3_002, "day.json:7")
    ]


def test_letters_are_selected_by_feed_symbol_and_whether_they_are_open(letters: Home) -> None:
    def reasons(*options: str) -> list[str]:
        rows = json.loads(letters.ok("dlq", "list", "--format", "json", *options))
        return [row["reason"] for row in rows]

    assert reasons("--provider", "feed") == reasons("--symbol", "spy, x") == ["late"]
    assert reasons("--provider", "fee") == reasons("--symbol", "x") == []
    letters.ok("dlq", "replay")
    assert reasons("--open") == ["malformed"]
    every = json.loads(letters.ok("dlq", "list", "--format", "json"))
    assert {row["reason"]: bool(row["replayed"]) for row in every} == {
        "malformed": False,
        "late": True,
    }
    counts = [line.split()[:3] for line in letters.ok("dlq", "list").splitlines()[3:5]]
    assert counts == [["malformed", "1", "0"], ["late", "1", "1"]]
    assert "replayed   20" in letters.ok("dlq", "show", every[1]["id"])


def test_only_the_oldest_letters_can_be_purged_and_none_that_is_needed(letters: Home) -> None:
    kept = letters.run("dlq", "purge", "--until", "2100-01-01", "--yes")
    assert "1 letter removed" in kept.stdout
    assert "mdp.events.a still holds the event" in kept.stderr
    rows = json.loads(letters.ok("dlq", "list", "--format", "json"))
    assert [row["reason"] for row in rows] == ["late"]
    assert "no difference" in letters.ok("verify")

    (letters.path / "bus" / "mdp.events.a.db").unlink()
    before = letters.ok("dlq", "purge", "--until", "2020-01-01", "--yes")
    assert before == "no dead letters to remove\n"
    asked = letters.error("dlq", "purge", "--until", "2100-01-01")
    assert "Remove 1 letter for good?" in str(asked)
    dry = letters.ok("dlq", "purge", "--until", "2100-01-01", "--dry-run")
    assert dry == "1 letter would be removed\n"
    assert letters.ok("dlq", "purge", "--until", "2100-01-01", "--yes") == "1 letter removed\n"
    assert letters.ok("dlq", "list") == "no dead letters\n"
    for options in (
        ("--all",),
        ("--reason", "late"),
        ("--until", "2100-01-01", "--reason", "late"),
    ):
        assert isinstance(letters.error("dlq", "purge", *options), UsageError)


def test_one_letter_with_its_bytes(letters: Home) -> None:
    rows = json.loads(letters.ok("dlq", "list", "--format", "json", "--reason", "malformed"))
    shown = letters.run("dlq", "show", rows[0]["id"])

    assert "no message" in shown.stdout
    assert r"\xff\x00xxx" in shown.stdout
    assert "x" * 2_047 not in shown.stdout
    assert "954 more bytes" in shown.stderr
    raw = letters.run("dlq", "show", rows[0]["id"], "--raw")
    assert raw.stdout_bytes == b"\xff\x00" + b"x" * 3_000


def test_no_letters(home: Home) -> None:
    assert home.ok("dlq", "list") == "no dead letters\n"
    assert home.ok("dlq", "list", "--format", "json") == "[]\n"
    assert not home.path.exists()


def test_what_is_not_there_is_said(letters: Home) -> None:
    for missing in ("99.0", "0.99"):
        assert missing in str(letters.error("dlq", "show", missing))
    assert isinstance(letters.error("dlq", "show", "first"), UsageError)
    error = letters.error("dlq", "list", "--reason", "lates")
    assert isinstance(error, UsageError)
    assert "did you mean 'late'" in str(error)
