"""Single events read as blocks give what they give one by one, whatever is between them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.contracts.store import Claim, PartitionKey
from market_data_core.deadletters import DeadLetter
from market_data_core.events import EventBatch, Rejected, format_ts, make_batch
from market_data_core.partitioning import partition_of
from market_data_core.records import Mark, Record
from market_data_core.testing.oracle import oracle_bars
from market_data_core.text import event_runs
from market_data_pipeline.bus import codec
from market_data_pipeline.windows.assigner import WindowSpec
from market_data_pipeline.windows.checkpoint import Checkpoint, decode_checkpoint
from market_data_pipeline.windows.group import Topics
from market_data_pipeline.windows.partition import Partition

S, MS = 10**9, 10**6
T = 1_700_000_000 * S
FUTURE_NS = 5 * S
SPEC = WindowSpec((2 * S, 6 * S), 0, 8 * S)
SYMBOLS = ("SPY", "QQQ", "brk.b", "É", "BRK.B", "O:SPY251219C00650000", "A", "B", "C")
HERE = partition_of("SPY", 2)
ODD: dict[str, Sequence[str]] = {
    "ver": ("2", '"1"', "null", "1.0", "true"),
    "provider": ('"x|y"', '""', "5", '"q"', '"p:official"', '" :"'),
    "symbol": ('""', "5", "null", '"a\\u00e9"', '"a\\"b"', '"S,P"', '"x\\ny"', f'"{"ß" * 40}"'),
    "src_ts": ('""', '"soon"', '"2023-11-14T24:00:00Z"', '"2023-11-14T22:13:60Z"', '"2023-11-14"',
               '"2023-11-14T22:13:21,5+00:00"', '" 2023-11-14T22:13:21Z "',
               '"1623-01-01T00:00:00Z"', '"2110-01-01T00:00:00Z"', "1700000000"),
    "ingest_ts": ('""', "null", '"soon"', '"2023-11-14T22:13:21.123456789Z"'),
    "kind": ('"bar"', '"quote"', "null", "1"),
    "interval": ('"60s"', '"1m"', '"x"', '"0s"', "null", '" 2s "'),
    "seq": ("-3", "1.5", "12345678901234567", "99999999999999999999", '"7"', "7.0"),
    "c": ("1e3", "-1", "-0.0", "1e999", "NaN", '"1"', "01", "0.1234567890123456789", "true", "{}"),
    "h": ("0.5", "1e3", "9007199254740993"),
    "v": ("-1", "1E-2", "", "[1]"),
    "event_id": ("5", "null", '"x"', '"x","y":1'),
    "z": ("1", '"x"', "{}", "null", '"x","symbol":5', '1,"provider":5', '"x" ,"y" :5'),
    "": ("",),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A log of pieces, how it is read, and where another owner takes over."""

    seed: int
    pieces: tuple[tuple[str, int], ...]
    shape: int
    strange: int
    cuts: tuple[float, ...]
    over: float
    max_future_ns: int | None

    def records(self) -> list[Record]:
        chance = random.Random(self.seed)
        records: list[Record] = []
        for kind, n in self.pieces:
            for payload, count in _piece(chance, kind, n, self.shape, self.strange):
                offset = records[-1].offset + chance.choice((1, 1, 7)) if records else 3
                at = T + 40 * MS * len(records) + chance.randrange(S)
                records.append(Record(HERE, offset, payload, at, count))
        return records


def _piece(
    chance: random.Random, kind: str, n: int, shape: int, strange: int
) -> list[tuple[bytes, int]]:
    when = [T + chance.randrange(-S, 12 * S) * (chance.random() < 0.95) for _ in range(n)]
    if kind == "json":
        rate = (0.0, 0.002, 0.05)[strange]
        return [(_line(chance, ts, shape, chance.random() < rate), 1) for ts in when]
    if kind == "mark":
        mark = Mark(kind=chance.choice(("progress", "idle", "pause")), provider="p", ts=when[0])
        return [(codec.encode_mark(mark), 0)]
    if kind == "junk":
        rejected = codec.encode_rejected(Rejected("malformed", "broken", b"x", "f:1"))
        return [(chance.choice((rejected, b"", b"{", b"{}", b"MDPCx", b"\xc1", b"[1]")), 1)]
    batch = _batch(chance, when)
    if kind == "columns":
        return [(codec.encode_columns(batch), n)]
    return [(payload, 1) for payload in codec.encode_events(batch, "msgpack")]


def _batch(chance: random.Random, when: Sequence[int]) -> EventBatch:
    symbols = [chance.choice(SYMBOLS) for _ in when]
    seq = [chance.randrange(3) for _ in when]
    price = [chance.randrange(1, 9) / 4 for _ in when]
    return make_batch("p", symbols, list(when), seq, price, price)


def _line(chance: random.Random, ts: int, shape: int, odd: bool) -> bytes:
    price = chance.choice(("1.25", "275.06", "99", "0.000001"))
    provider, kind = chance.choice((("p", "tick"),) * 8 + (("q", "tick"), ("p", "bar")))
    several = shape & 4
    fields = {
        "ver": "1",
        "provider": f'"{provider if several else "p"}"',
        "symbol": json.dumps(chance.choice(SYMBOLS[: 3 + bool(several) * 6]), ensure_ascii=False),
        "src_ts": f'"{format_ts(ts // 1000 * 1000)}"',
        **dict.fromkeys("ohlc", price),
        "v": chance.choice(("1", "2.5", "100")),
        "kind": f'"{kind if several else "tick"}"',
        "interval": chance.choice(('"1s"', '"1s"', '"60s"')) if several else '"1s"',
        "ingest_ts": f'"{format_ts(ts)}"',
        "seq": str(chance.randrange(3)),
        "event_id": '"x"',
    }
    for name in ("ingest_ts", "event_id", "kind", "interval")[: shape & 3]:
        del fields[name]
    if odd:
        name = chance.choice(list(ODD))
        fields[name] = chance.choice(ODD[name])
        if chance.random() < 0.1:
            fields.pop(chance.choice(list(fields)))
    comma, colon = ((",", ":"), (", ", ": "))[shape >> 3]
    line = "{" + comma.join(f'"{k}"{colon}{v}' for k, v in fields.items()) + "}"
    return (line + chance.choice(("", " ", "\r", "\n", "x", "}")) * odd).encode()


PIECES = st.tuples(
    st.sampled_from(("json", "json", "json", "mark", "junk", "columns", "msgpack")),
    st.sampled_from((1, 5, 20, 70, 280)),
)
PLANS = st.builds(
    Plan,
    seed=st.integers(0, 2**32),
    pieces=st.lists(PIECES, min_size=1, max_size=5).map(tuple),
    shape=st.integers(0, 15),
    strange=st.integers(0, 2),
    cuts=st.lists(st.floats(0, 1), max_size=2).map(tuple),
    over=st.floats(0, 1),
    max_future_ns=st.sampled_from((None, FUTURE_NS)),
)


def _read(plan: Plan, records: Sequence[Record]) -> list[Any]:
    """What two owners, one after the other, decide about a log."""
    found: list[Any] = []
    checkpoint = Checkpoint(log_id="log")
    over = int(plan.over * len(records))
    for number, until in enumerate((over, len(records))):
        claim = Claim(PartitionKey("g", "mdp.events", HERE), 3, number, None)
        topics = Topics("mdp.events", 2, "", "mdp.dlq")
        part = Partition(claim, checkpoint, SPEC, topics, codec, plan.max_future_ns)
        mine = [r for r in records[:until] if r.offset >= part.position]
        cuts = sorted(int(cut * len(mine)) for cut in plan.cuts)
        for begin, end in zip((0, *cuts), (*cuts, len(mine)), strict=True):
            part.take(mine[begin:end], T)
        for provider, stream in part.ticks.items():
            if stream.due():
                part.collect(provider)
        group = part.group()
        encoded, messages = group.finish([])
        checkpoint = decode_checkpoint(encoded)
        assert checkpoint.counts.holds()
        found += [_facts(checkpoint), part.position]
        found += [part.last_append] if number == 0 else []  # the other may begin further back
        found.append(sorted(map(_letter, group.letters)))
        found.append(_values(m.payload for m in messages if m.destination == "mdp.events"))
        found.append(
            sorted(
                (b.interval, b.state, *bar) for b in group.bars for bar in oracle_bars(b).items()
            )
        )
    return found


def _facts(checkpoint: Checkpoint) -> Any:
    """A checkpoint, but for how far back its next owner begins to read.

    That follows from what was taken together, as it does from the pieces that the log is read in.
    """
    streams = [
        msgspec.structs.replace(state, replay=0, symbols=[], settled={})
        for state in checkpoint.streams
        if state.kind == "tick"
    ]
    streams.sort(key=lambda state: state.provider)
    return msgspec.structs.replace(checkpoint, resume=0, streams=streams)


def _letter(letter: DeadLetter) -> bytes:
    """A letter, but for the interval of ticks: that of the first one in their batch stands."""
    with suppress(msgspec.MsgspecError):
        event = msgspec.json.decode(letter.original)
        if letter.provider and event["kind"] == "tick":
            original = msgspec.json.encode(event | {"interval": ""})
            letter = msgspec.structs.replace(letter, original=original)
    return msgspec.json.encode(letter)


def _values(payloads: Any) -> list[Any]:
    events: list[Any] = []
    for payload in payloads:
        batch = codec.decode(payload)
        assert isinstance(batch, EventBatch)
        batch = replace(batch, interval="1s") if batch.kind == "tick" else batch
        events += [msgspec.json.encode(event) for event in batch.events()]
    return sorted(events)


@settings(max_examples=100)
@given(PLANS)
def test_blocks_give_what_records_give(plan: Plan) -> None:
    records = plan.records()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_runs, "RUN_MIN", 16)
        by_block = _read(plan, records)
        patch.setattr(event_runs, "RUN_MIN", 1 << 40)
        by_record = _read(plan, records)
    assert by_block == by_record
