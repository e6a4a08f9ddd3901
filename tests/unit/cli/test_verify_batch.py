from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.testing import strategies
from market_data_core.testing.oracle import OracleBar, OracleEvent, batch_bars
from market_data_pipeline._verify_batch import BatchQuery, decimals_of
from market_data_pipeline._verify_raw import SCHEMA

START = 1_761_314_400 * 10**9  # 2025-10-24T14:00:00Z


@given(st.lists(strategies.decimals(), min_size=1))
def test_decimals_are_those_of_the_texts(values: list[float]) -> None:
    integers, index, places = decimals_of(np.array(values))

    assert [float(f"{integers[i]}e-{places}") for i in index.tolist()] == values


def frame(events: list[OracleEvent], codes: dict[str, int]) -> pl.DataFrame:
    rows = [
        (codes[e.symbol], e.src_ts, e.seq, e.open, e.high, e.low, e.close, e.volume, 2**62, 0, "1s")
        for e in events
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@settings(max_examples=60)
@given(st.data(), st.booleans())
def test_the_batch_query_gives_the_reference_bars(data: st.DataObject, extreme: bool) -> None:
    """Any slices, any decimals, any window lengths."""
    log = data.draw(strategies.logs(60 * 10**9, 10**9, extreme=extreme))
    first = {e.key: e for e in reversed(log)}
    events = list(first.values())
    cuts = data.draw(st.lists(strategies.timestamps(60 * 10**9), max_size=4))
    codes = {symbol: i for i, symbol in enumerate(sorted({e.symbol for e in events}))}
    lengths = [2 * 10**9, 3 * 10**9, 60 * 10**9]
    query = BatchQuery(lengths, {length: {0: 0} for length in lengths})

    for start, end in pairwise(sorted({-(10**18), *cuts, 7 * 10**18})):
        query.add(frame([e for e in events if start <= e.src_ts < end], codes), start, end)

    names = {code: symbol for symbol, code in codes.items()}
    for length in lengths:
        found = {
            (events[0].provider, names[row[0]], row[1]): OracleBar(*row[2:9])
            for row in query.bars(length).iter_rows()
        }
        assert found == batch_bars(log, length)


def test_sums_beyond_128_bits_stay_exact() -> None:
    """Each factor fits 64 bits and each product 128, but not the sum of the products."""
    price, size = 9.1e18, 9.2e18
    events = [
        OracleEvent("feed", "A", START + i, i, price, price, price, price, size) for i in range(9)
    ]
    length = 2 * 10**9
    query = BatchQuery([length], {length: {0: 0}})
    query.add(frame(events, {"A": 0}), START, START + length)

    (row,) = query.bars(length).iter_rows()
    assert OracleBar(*row[2:9]) == batch_bars(events, length)["feed", "A", START]
