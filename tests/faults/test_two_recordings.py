"""Two recordings of one feed that overlap and meet inside a window: always the same bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults import checks
from tests.faults.lab import BARS, EVENTS, WINDOWS, Lab, cases, wait_until
from tests.faults.recordings import START_NS, trades, write_recording

from market_data_core.events import StreamEvent, parse_ts
from market_data_core.intervals import NS_PER_S, parse_interval
from market_data_core.testing.oracle import OracleBar, OracleEvent, batch_bars

DEPLOYMENTS = ("embedded-sqlite", "embedded-postgres", "redis-sqlite", "kafka-postgres")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_EVENTS = 4_000
_MEET_NS, _OVERLAP_NS = START_NS + int(31.3 * NS_PER_S), int(4.2 * NS_PER_S)


@pytest.fixture(scope="module")
def source() -> list[StreamEvent]:
    return trades(7, _EVENTS, 60)


@pytest.fixture(scope="module")
def expected(source: list[StreamEvent]) -> dict[checks.StoredKey, OracleBar]:
    """What all trades give at once."""
    events = [
        OracleEvent(e.provider, e.symbol, parse_ts(e.src_ts), e.seq, e.o, e.h, e.l, e.c, e.v)
        for e in source
    ]
    return {
        (provider, symbol, window, ts): bar
        for window in WINDOWS
        for (provider, symbol, ts), bar in batch_bars(events, parse_interval(window)).items()
    }


@pytest.fixture
def halves(tmp_path: Path, source: list[StreamEvent]) -> tuple[str, str]:
    """Two files that share four seconds and end and begin in the middle of windows."""
    parts = (
        [e for e in source if parse_ts(e.src_ts) < _MEET_NS + _OVERLAP_NS],
        [e for e in source if parse_ts(e.src_ts) >= _MEET_NS],
    )
    names = []
    for name, part in zip(("first", "second"), parts, strict=True):
        path = tmp_path / f"{name}.ndjson"
        write_recording(path, 0, part)
        names.append(str(path))
    return names[0], names[1]


def _apart(lab: Lab, first: str, second: str) -> None:
    lab.run("run", first)
    lab.run("run", second)


def _reversed(lab: Lab, first: str, second: str) -> None:
    _apart(lab, second, first)


def _together(lab: Lab, first: str, second: str) -> None:
    lab.run("run", first, second)


def _at_once(lab: Lab, first: str, second: str) -> None:
    workers = [lab.start("run", file) for file in (first, second)]
    assert [worker.wait() for worker in workers] == [0, 0], [w.output for w in workers]


def _cut_short(lab: Lab, first: str, second: str) -> None:
    """The first one is killed half way; the second one is carried; then the first one again."""
    lab.block_rows = 100
    worker = lab.start("run", first)
    wait_until(lambda: _bars(lab) > 60, "it is half way")
    assert worker.kill()
    lab.run("run", second)
    lab.run("run", first)


def _bars(lab: Lab) -> int:
    return lab.number("SELECT count(*) FROM bars_ohlcv")


@pytest.mark.parametrize("way", cases([_cut_short, _at_once, _apart, _reversed, _together], 2))
def test_every_way_gives_the_same_bars(
    lab: Lab,
    halves: tuple[str, str],
    expected: dict[checks.StoredKey, OracleBar],
    way: Callable[[Lab, str, str], None],
) -> None:
    lab.micro_batch = {"max_batch_size": 20}
    way(lab, *halves)
    assert checks.stored_bars(lab) == expected
    stored = 0
    for topic in checks.lane_topics(lab):
        counts = checks.total_counts(lab, topic)
        assert counts.holds()
        assert counts.open == 0
        stored += counts.stored
    base = [bar for key, bar in expected.items() if key[2] == WINDOWS[0]]
    assert stored == sum(bar.trade_count for bar in base)
    if way is _apart:
        _check_again(lab, [halves[0]], [halves[1]], list(halves))
    else:
        _check_again(lab, *([list(halves)] if way is _together else [[halves[0]]]))
    checks.check_published(lab, [t.replace(EVENTS, BARS) for t in checks.lane_topics(lab)])
    checks.check_files(lab)


def _check_again(lab: Lab, *runs: list[str]) -> None:
    """The same files again, or the same events as another lane, change no row, and say so."""
    tables = ("bars_ohlcv", "bars_ohlcv_history", "outbox", "gaps")
    before = [lab.table(table) for table in tables]
    for files in runs:
        assert " 0 inserted, 0 updated" in lab.run("run", *files)
    assert [lab.table(table) for table in tables] == before
