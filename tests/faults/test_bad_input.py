"""Every kind of unusable input at once: dead-lettered with its bytes, counted, never in the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from tests.faults import checks
from tests.faults.lab import Lab
from tests.faults.recordings import START_NS, trade, trades

from market_data_core.events import StreamEvent

pytestmark = [pytest.mark.faults]

_GOOD = msgspec.json.decode(msgspec.json.encode(trade("rec", "S00", START_NS, 0, 10.5, 1.0)))


def _line(**changed: object) -> bytes:
    return msgspec.json.encode({**_GOOD, **changed})


def _as_text(name: str, text: str) -> bytes:
    """A number as no JSON encoder would write it."""
    return _line(**{name: "@"}).replace(b'"@"', text.encode())


_HUGE = b'{"ver": 1, "note": "' + b"x" * 10_000_000 + b'"}'
BAD: dict[bytes, set[str]] = {
    b"not a message": {"malformed"},
    b'{"ver": 1, "provider": "rec", "symb': {"malformed"},
    b"[1, 2, 3]": {"bad_type", "malformed"},
    b"null": {"bad_type", "malformed"},
    b"\xff\xfe\x00 not UTF-8": {"malformed"},
    _line(symbol="@").replace(b"@", b"\xc3\x28"): {"malformed"},
    _line(o="10.5"): {"bad_type"},
    _line(seq=1.5): {"bad_type"},
    _line(seq=2**70): {"bad_type", "malformed"},
    _line(symbol=""): {"bad_type"},
    _line(symbol=None): {"bad_type"},
    _line(kind="quote"): {"bad_type"},
    _line(interval="soon"): {"bad_type"},
    msgspec.json.encode({k: v for k, v in _GOOD.items() if k != "c"}): {"bad_type"},
    _line(ver=2): {"bad_version"},
    _line(ver=0): {"bad_version"},
    _as_text("c", "NaN"): {"malformed", "not_finite"},
    _as_text("h", "Infinity"): {"malformed", "not_finite"},
    _as_text("o", "-Infinity"): {"malformed", "not_finite"},
    _as_text("h", "1e999"): {"bad_type", "malformed", "not_finite"},
    _line(v=-1.0): {"negative"},
    _line(o=-1.0, h=-1.0, l=-1.0, c=-1.0): {"negative"},
    _line(h=10.0, l=11.0): {"high_below_low"},
    _line(h=10.4): {"high_below_low"},
    _line(l=10.6): {"high_below_low"},
    _line(src_ts="tomorrow"): {"bad_timestamp"},
    _line(src_ts="1492-10-12T00:00:00Z"): {"bad_timestamp"},
    _line(src_ts="9999-12-31T23:59:59Z"): {"bad_timestamp"},
    _line(src_ts="2025-13-45T00:00:00Z"): {"bad_timestamp"},
    _line(src_ts=""): {"bad_timestamp"},
    _HUGE: {"bad_type"},
}


def _write(path: Path, good: list[StreamEvent]) -> None:
    """Good lines, a bad one after every tenth, blank lines and odd line ends between them."""
    lines = [msgspec.json.encode(event) for event in good]
    for i, bad in enumerate(BAD):
        lines.insert(11 * i + 10, bad)
    lines[5:5] = [b"", b"   ", b"\r"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines))  # no end of line after the last one


def test_bad_lines_among_good_ones(lab: Lab) -> None:
    good = trades(11, 600, 30)
    _write(lab.path / "rec.ndjson", good)
    output = lab.run("run", str(lab.path / "rec.ndjson"))
    (topic,) = checks.lane_topics(lab)
    counts = checks.total_counts(lab, topic)
    assert counts.holds()
    assert (counts.received, counts.stored) == (len(good) + len(BAD), len(good))
    assert counts.dead_lettered == len(BAD)
    assert f"{len(BAD)} dead-lettered" in output
    letters = checks.dead_letters(lab)
    assert Counter(letter.original for letter in letters) == Counter(list(BAD))
    wrong = {x.original[:80]: x.reason for x in letters if x.reason not in BAD[x.original]}
    assert wrong == {}
    numbered = (lab.path / "rec.ndjson").read_bytes().split(b"\n")
    for letter in letters:
        file, _, line = letter.where.rpartition(":")
        assert file.endswith("rec.ndjson")
        assert numbered[int(line) - 1] == letter.original
        assert letter.detail
    assert checks.stored_bars(lab) == checks.check_topic(lab, topic)
    listed = msgspec.json.decode(b"[" + _lines(lab) + b"]")
    assert Counter(row["reason"] for row in listed) == Counter(x.reason for x in letters)


def _lines(lab: Lab) -> bytes:
    """`mdp dlq list` as JSON, whether it is one array or an object a line."""
    text = lab.run("dlq", "list", "--format", "json").strip()
    return text.strip("[]").replace("}\n{", "},{").encode()


def test_only_bad_lines(lab: Lab) -> None:
    lab.path.mkdir(parents=True)
    (lab.path / "rec.ndjson").write_bytes(b"\n".join(BAD))
    lab.run("run", "--format", "ndjson", str(lab.path / "rec.ndjson"))
    (topic,) = checks.lane_topics(lab)
    counts = checks.total_counts(lab, topic)
    assert counts.holds()
    assert (counts.received, counts.dead_lettered) == (len(BAD), len(BAD))
    assert checks.stored_bars(lab) == {}


@pytest.mark.parametrize("content", [b"", b"\n\n \n"])
def test_a_file_without_events(lab: Lab, content: bytes) -> None:
    lab.path.mkdir(parents=True)
    (lab.path / "rec.ndjson").write_bytes(content)
    output = lab.run("run", str(lab.path / "rec.ndjson"))
    assert "0 received = 0 stored" in output
    assert checks.stored_bars(lab) == {}
