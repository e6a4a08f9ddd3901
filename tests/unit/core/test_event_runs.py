"""Which records are read as a block, and which one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from market_data_core.records import Record
from market_data_core.text import event_runs
from market_data_core.text.event_lines import event_columns

T = 1_700_000_000 * 10**9
LINE = (
    '{"ver":1,"provider":"p","symbol":"%s","src_ts":"2023-11-14T22:13:20.%03dZ",'
    '"o":1.25,"h":1.25,"l":1.25,"c":1.25,"v":3,"seq":%d}'
)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_runs, "RUN_MIN", 10)


def lines(n: int, symbol: str = "SPY") -> list[bytes]:
    return [(LINE % (symbol, i, i)).encode() for i in range(n)]


def cut(payloads: Sequence[bytes]) -> list[tuple[int, bool]]:
    """How many records each part has, and whether it was read as a block."""
    records = [Record(0, i, payload, T, 1) for i, payload in enumerate(payloads)]
    parts = list(event_runs.event_runs(records))
    assert [record for run, _ in parts for record in run] == records
    return [(len(run), built is not None) for run, built in parts]


def test_a_run_of_json_events_is_one_block() -> None:
    assert cut(lines(40)) == [(40, True)]
    assert cut(lines(9)) == [(9, False)]
    assert cut([]) == [(0, False)]


def test_what_is_no_json_object_ends_a_run() -> None:
    found = cut([*lines(20), b"MDPM", b"", *lines(15), b" {}", *lines(3)])
    assert found == [(20, True), (2, False), (15, True), (1, False), (3, False)]


@pytest.mark.parametrize("odd", [b"{}", lines(1)[0] + b"\n", b"{\n}", b'{"ver":2}'])
def test_a_message_that_is_not_plain_leaves_the_others_their_block(odd: bytes) -> None:
    found = cut([*lines(50), odd, *lines(50)])
    assert sum(n for n, block in found if block) > 80
    assert sum(n for n, block in found if not block) < 20


def test_long_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_runs, "_RUN_MAX", 30)
    assert cut(lines(75)) == [(30, True), (30, True), (15, True)]


def test_symbols_that_are_one_in_upper_case_are_one() -> None:
    payloads = [*lines(10, "spy"), *lines(10, "SPY"), *lines(10, "QQQ")]
    records = [Record(0, i, payload, T, 1) for i, payload in enumerate(payloads)]
    ((_, built),) = event_runs.event_runs(records)
    assert built is not None
    ((batch, origin),) = built[0]
    assert sorted(batch.symbols) == ["QQQ", "SPY"]
    assert [batch.symbols[code] for code in batch.codes] == ["SPY"] * 20 + ["QQQ"] * 10
    assert list(origin) == records
    assert batch.ingest_ts.tolist() == [T] * 30


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('"symbol":5,"x":1', '"symbol":"A"'),  # a number for a text, hidden by an unknown key
        ('"symbol":"A","event_id":5', '"symbol":"A","event_id":"x","y":1'),
        ('"symbol":5,"x" :1', '"symbol":"A"'),
    ],
)
def test_keys_that_make_up_for_each_other_are_noticed(one: str, other: str) -> None:
    rest = (
        ',"ver":1,"provider":"p","src_ts":"2023-11-14T22:13:20Z","o":1,"h":1,"l":1,"c":1,"v":3}\n'
    )
    assert event_columns(f'{{"symbol":"A"{rest}{{"symbol":"B"{rest}'.encode(), 2) is not None
    assert event_columns(f"{{{one}{rest}{{{other}{rest}".encode(), 2) is None
