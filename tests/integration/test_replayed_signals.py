"""What was archived gives, run and replayed, the signals that the live run gave."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.signals_place import CLOSING, LATE, TICKS, Place, use
from typer.testing import CliRunner

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


def test_a_replay_gives_what_other_rules_say(live: Place) -> None:
    Path("rules.yaml").write_text("- {name: other, condition: 'ret > 0', signal: 1}")
    output = command("stream", "replay", "--archive", "--path", "../archive")
    assert "signals        0 inserted" not in output
    assert "other" in {key[3] for key in live.active()}
