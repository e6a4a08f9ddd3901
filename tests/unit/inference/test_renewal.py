"""Files of rules that change while a worker runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.property._signals_world import OTHER_RULES, RULES, evaluator

from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.renewal import Renewal


class Rules:
    """A file of rules, and what is read from it."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, list[str]()
        path.write_text(RULES)
        self.renewal = Renewal([path], self._build, evaluator(RULES).version)

    def _build(self) -> Evaluator:
        self.read.append(self.path.read_text())
        return evaluator(self.read[-1])


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(tmp_path / "rules.yaml")


async def test_a_file_that_is_being_written_is_left_alone(rules: Rules) -> None:
    """An editor empties it first, and a slow one writes it in parts."""
    half = OTHER_RULES[: OTHER_RULES.index("- {name: below")]
    for text in (RULES, "", half, OTHER_RULES):
        rules.path.write_text(text)
        assert await rules.renewal() is None
    made = await rules.renewal()
    assert made is not None
    assert rules.read == [OTHER_RULES]
    assert await rules.renewal() is None


async def test_what_was_written_and_taken_back_is_nothing_new(rules: Rules) -> None:
    was = rules.path.stat()
    rules.path.write_text(OTHER_RULES)
    assert await rules.renewal() is None
    rules.path.write_text(RULES)
    os.utime(rules.path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert await rules.renewal() is None
    assert rules.read == []
