"""NDJSON read by columns gives what reading it line by line gives, whatever a line looks like."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.events import Rejected
from market_data_core.text.uniform_json import uniform_lines
from market_data_pipeline.providers.recording import RecordingOptions, open_recording

LINES = 200
BY_LINE = RecordingOptions(format="ndjson", chunk_events=1)
BY_COLUMN = RecordingOptions(format="ndjson")
NUMBERS = (
    "1", "0", "0.5", "275.06", "144.0", "99999999", "999999999", "123456789.123456", "1e3", "1E-2",
    "0.000001", "12345678.5", "1234567.25", "0.1234567", "0.12345678", "123456789012345",
    "9007199254740993", "1234567890123.45", "-1", "01", ".5", "5.", "+1", "1e999", "NaN", '"1"',
    "true", "null", "1.2.3", "",
)  # fmt: skip
GOOD = NUMBERS[:18]
TIMES = (
    "2025-10-24T14:00:00.000177Z", "2025-10-24T14:00:59Z", "2025-10-24T14:01:00.5Z",
    "2025-10-24T23:59:59.999999999Z", "2024-02-29T00:00:00.123Z", "2025-02-29T00:00:00Z",
    "2025-10-24T24:00:00Z", "2025-10-24T14:00:60Z", "2025-10-24 14:00:00Z",
    "2025-10-24T14:00:00.0001775", "2025-10-24T16:00:00.5+02:00", "1761314400", "",
)  # fmt: skip
SYMBOLS = ("SPY", "BRK.B", "O:SPY251219C00650000", "btc-usd", "A" * 30, "É", "")


@dataclass(frozen=True)
class Plan:
    """How a file is made: lines of one shape, most of them plain, some spoilt in one place."""

    seed: int
    separators: tuple[str, str]
    absent: frozenset[str]
    alike: bool
    places: int
    odd: tuple[int, ...]
    spoilt: tuple[tuple[float, int], ...]
    wrong: tuple[tuple[str, str], ...]

    def data(self) -> bytes:
        chance = random.Random(self.seed)
        lines = [self._line(chance, i, i in self.odd) for i in range(LINES)]
        data = bytearray("\n".join(lines).encode() + b"\n")
        for place, byte in self.spoilt:
            data[int(place * (len(data) - 1))] = byte
        return bytes(data)

    def _line(self, chance: random.Random, number: int, odd: bool) -> str:
        def pick(plain: Sequence[str], every: Sequence[str]) -> str:
            return chance.choice(every if odd else plain)

        price = pick(GOOD, NUMBERS)
        time = f"2025-10-24T14:{number // 60:02d}:{number % 60:02d}"
        if self.places:
            time += f".{chance.randrange(10**self.places):0{self.places}d}"
        fields = {
            "ver": pick(("1",), ("1", "2", "1.0")),
            "provider": json.dumps(pick(("bench",), ("bench", "x|y", ""))),
            "symbol": json.dumps(pick(SYMBOLS[:3], SYMBOLS)),
            "src_ts": json.dumps(pick((f"{time}Z",), TIMES)),
            **{name: price if self.alike else pick(GOOD, NUMBERS) for name in "ohlc"},
            "v": pick(GOOD, NUMBERS),
            "kind": json.dumps(pick(("tick",), ("tick", "bar", "quote"))),
            "interval": json.dumps(pick(("1s",), ("1s", "60s", "x"))),
            "ingest_ts": json.dumps(pick((f"{time}Z",), TIMES)),
            "seq": pick(("7", "12", str(number)), ("7", "1.5", "-3", "12345678901234567")),
            "event_id": json.dumps(f"bench|{number}"),
        }
        for key, kind in self.wrong:  # every line has the same wrong type
            plain = fields[key].strip('"')
            fields[key] = {"quoted": f'"{plain}"', "bare": plain, "null": "null"}.get(kind, kind)
        comma, colon = self.separators
        parts = [f'"{k}"{colon}{v}' for k, v in fields.items() if k not in self.absent]
        return "{" + comma.join(parts) + "}"


PLANS = st.builds(
    Plan,
    seed=st.integers(0, 2**32),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (",", ": ")]),
    absent=st.frozensets(st.sampled_from(["kind", "interval", "seq", "ingest_ts", "event_id"])),
    alike=st.booleans(),
    places=st.integers(0, 9),
    odd=st.lists(st.integers(0, LINES - 1), max_size=3).map(tuple),
    wrong=st.lists(
        st.tuples(
            st.sampled_from(["ver", "provider", "symbol", "src_ts", "o", "c", "seq", "event_id"]),
            st.sampled_from(["quoted", "bare", "null", "5", '""', "true"]),
        ),
        max_size=1,
    ).map(tuple),
    spoilt=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=2).map(tuple),
)


def values(path: Path, options: RecordingOptions) -> list[Any]:
    with TemporaryDirectory() as spool:
        recording = open_recording([str(path)], spool_dir=Path(spool), options=options)
        found: list[Any] = []
        for item in recording.read():
            if isinstance(item, Rejected):
                found.append(item)
            else:
                found += list(item.events())
    return found


@settings(max_examples=150)
@given(PLANS)
def test_columns_give_what_lines_give(plan: Plan) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "events.ndjson"
        path.write_bytes(plan.data())
        by_column, by_line = values(path, BY_COLUMN), values(path, BY_LINE)
    rejected = [x for x in by_line if isinstance(x, Rejected)]
    assert [x for x in by_column if isinstance(x, Rejected)] == rejected
    events = [x for x in by_line if not isinstance(x, Rejected)]
    assert [x for x in by_column if not isinstance(x, Rejected)] == events


def test_plain_lines_take_the_way_by_columns() -> None:
    line = (
        '{"ver":1,"provider":"bench","symbol":"SPY","src_ts":"2025-10-24T14:00:00.5Z",'
        '"o":1.25,"h":1.25,"l":1.25,"c":1.25,"v":3,"seq":%d}\n'
    )
    data = "".join(line % i for i in range(100)).encode()
    found = uniform_lines(data, 100)
    assert found is not None
    seq = found.numbers("seq")
    assert seq is not None
    assert seq.mantissa.tolist() == list(range(100))
    price = found.numbers("c")
    assert price is not None
    assert price.to_floats().tolist() == [1.25] * 100
    assert found.texts("symbol") is not None
    assert uniform_lines(data.replace(b'"v":3', b'"w":3', 1), 100) is None
