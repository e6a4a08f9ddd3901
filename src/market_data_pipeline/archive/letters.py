"""Events that the live run set aside, so that a replay leaves them out as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import polars as pl

from market_data_core.contracts.bus import Bus
from market_data_core.deadletters import decode_letters
from market_data_core.events import StreamEvent, parse_ts

_REASONS = ("late", "id_conflict", "future")
_KEY: dict[str, pl.DataType] = {
    "log": pl.String(), "partition": pl.Int32(), "provider": pl.String(), "symbol": pl.String(),
    "ts": pl.Int64(), "seq": pl.Int64(), **dict.fromkeys("ohlcv", pl.Float64()),
}  # fmt: skip


class Aside(NamedTuple):
    """An event that was set aside: why, the log and partition it came from, its JSON."""

    reason: str
    log_id: str
    partition: int
    original: bytes


async def letters_of(
    bus: Bus, topic: str, archived: pl.DataFrame, providers: Iterable[str], from_ts: int, to_ts: int
) -> list[Aside]:
    """What was set aside, by the archive and by the topic of dead letters, each letter once.

    Args:
        bus: holds the topic.
        topic: its name.
        archived: letters of the archive.
        providers: feeds of which letters are wanted.
        from_ts: least src_ts, UTC ns.
        to_ts: src_ts that they stay below.
    """
    known = set()
    found = []
    info = await bus.find_topic(topic)
    for provider in sorted(providers) if info else ():
        for record in await bus.scan(topic, 0, provider, from_ts, to_ts):
            known.add((info.log_id if info else "", record.offset))
            found += [
                Aside(letter.reason, letter.log_id, letter.partition, letter.original)
                for letter in decode_letters(record.payload)
                if letter.provider == provider and from_ts <= letter.src_ts < to_ts
            ]
    columns = ("log", "offset", "reason", "of_log", "of_partition", "original")
    found += [
        Aside(*row[2:]) for row in archived.select(columns).iter_rows() if row[:2] not in known
    ]
    return found


def set_aside(letters: Iterable[Aside]) -> pl.DataFrame:
    """The events among `letters`, with how often each was set aside (``n``)."""
    counts = Counter(_key(letter) for letter in letters if letter.reason in _REASONS)
    rows = [(*key, n) for key, n in sorted(counts.items())]
    return pl.DataFrame(rows, schema=_KEY | {"n": pl.UInt32()}, orient="row")


def _key(letter: Aside) -> tuple[str | int | float, ...]:
    event = msgspec.json.decode(letter.original, type=StreamEvent)
    values = (event.o, event.h, event.l, event.c, event.v)
    place = (letter.log_id, letter.partition, event.provider, event.symbol)
    return (*place, parse_ts(event.src_ts), event.seq, *values)


def less_set_aside(frame: pl.DataFrame, aside: pl.DataFrame) -> pl.DataFrame:
    """`frame` without the events in `aside`, which :func:`set_aside` gave.

    Of equal copies the first one counted, so that the last ones go. A misplaced event goes with
    the one that was written in its place.

    Args:
        frame: events in the order of the log, where their src_ts are equal.
        aside: what to leave out.
    """
    if not len(aside) or not len(frame):
        return frame
    numbered = frame.with_row_index("at").with_columns(pl.col("src_ts").cast(pl.Int64).alias("ts"))
    hit = numbered.join(aside, on=list(_KEY)).sort("at", descending=True)
    gone = hit.filter(pl.int_range(pl.len()).over(*_KEY) < pl.col("n")).select("at")
    elsewhere = numbered.filter("misplaced").join(aside, on=list(_KEY)[2:], how="semi")
    gone = pl.concat([gone, elsewhere.select("at")])
    return numbered.join(gone, on="at", how="anti", maintain_order="left").drop("at", "ts")
