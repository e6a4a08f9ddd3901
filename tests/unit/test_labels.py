"""Labels look ahead within their horizon, features never."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.features._walks import INDEX, INTERVAL_NS, START_NS, compute, feature, prices, walks

from market_data_core.config import FeaturesSettings
from market_data_core.contracts.feature import Floats
from market_data_core.errors import UsageError
from market_data_core.intervals import parse_interval
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.labels import Label, parse_label

GAP_NS = 12 * INTERVAL_NS
TEXTS = ("2s", "7s", "10s", "1m", "1bars", "5bars", "40bars")
LABELS = [parse_label(text, INTERVAL_NS) for text in TEXTS]
FEATURES = catalog(FeaturesSettings(windows=(), index=INDEX), INTERVAL_NS)


def labelled(label: Label, frame: pl.DataFrame, gap_ns: int = GAP_NS) -> Floats:
    return label.of(Panel(INTERVAL_NS, frame, gap_ns))


def expected(text: str, frame: pl.DataFrame, row: int, gap_ns: int = GAP_NS) -> float:
    """The definition, bar by bar."""
    symbols, ts, close = (frame[name].to_list() for name in ("symbol", "ts", "close"))
    session = [row]
    for i in range(row + 1, len(ts)):
        if symbols[i] != symbols[row] or (gap_ns and ts[i] - ts[i - 1] - INTERVAL_NS >= gap_ns):
            break
        session.append(i)
    if text.endswith("bars"):
        ahead = int(text.removesuffix("bars"))
        later = session[ahead] if ahead < len(session) else None
    else:
        until = ts[row] + parse_interval(text)
        within = [i for i in session[1:] if ts[i] <= until]
        later = within[-1] if within and ts[session[-1]] >= until else None
    return math.nan if later is None else (close[later] - close[row]) / close[row]


frames = st.builds(
    lambda seed, lengths, holes: walks(np.random.default_rng(seed), lengths, holes=holes),
    st.integers(0, 2**32),
    st.lists(st.integers(1, 50), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.1, 0.5]),
)


@given(frame=frames, gap_ns=st.sampled_from([0, GAP_NS]))
def test_a_label_is_what_it_is_defined_as(frame: pl.DataFrame, gap_ns: int) -> None:
    for text, label in zip(TEXTS, LABELS, strict=True):
        wanted = [expected(text, frame, row, gap_ns) for row in range(len(frame))]
        np.testing.assert_array_equal(labelled(label, frame, gap_ns), wanted)


@given(frame=frames, data=st.data())
@settings(max_examples=30)
def test_labels_look_ahead_within_their_horizon_and_features_never(
    frame: pl.DataFrame, data: st.DataObject
) -> None:
    """Other bars after a time, in whatever number: what was known before it stays as it is."""
    row = data.draw(st.integers(0, len(frame) - 1))
    symbol, ts = frame["symbol"][row], int(frame["ts"][row])
    rest = frame.filter((pl.col("symbol") != symbol) | (pl.col("ts") <= ts))
    more = data.draw(st.integers(0, 40))
    others = walks(np.random.default_rng(row), [more] if more else [1], holes=0.2)
    others = others.with_columns(
        pl.lit(symbol).alias("symbol"), pl.col("ts") - START_NS + ts, pl.col("close") * 3
    )
    changed = pl.concat([rest, others[:more]]).sort("symbol", "ts")

    before, after = (
        ((f["symbol"] != symbol) | (f["ts"] <= ts)).to_numpy() for f in (frame, changed)
    )
    some, same = (compute(FEATURES, f, session_gap_ns=GAP_NS) for f in (frame, changed))
    for name in FEATURES:
        assert some[name][before].tobytes() == same[name][after].tobytes(), name
    own = (rest["symbol"] == symbol).to_numpy()
    following = np.cumsum(own[::-1])[::-1] - own  # bars of the symbol that stay as they are
    for label in LABELS:
        if label.horizon_ns is None:
            within = following >= label.bars
        else:
            within = rest["ts"].to_numpy() + label.horizon_ns <= ts
        within |= ~own
        now, then = labelled(label, frame)[before], labelled(label, changed)[after]
        assert now[within].tobytes() == then[within].tobytes(), label.name


@given(frame=frames, data=st.data())
def test_what_is_settled_no_later_bar_changes(frame: pl.DataFrame, data: st.DataObject) -> None:
    symbol = frame["symbol"][-1]
    begin = int((frame["symbol"] != symbol).sum())
    until = data.draw(st.integers(begin + 1, len(frame)))
    for label in LABELS:
        known = frame[begin:until]
        settled = label.settled(known["ts"].to_numpy())
        whole = labelled(label, frame)[begin : begin + settled]
        np.testing.assert_array_equal(labelled(label, known)[:settled], whole)


def test_a_label_is_the_momentum_of_the_bar_a_horizon_later() -> None:
    frame = walks(np.random.default_rng(3), [200], holes=0.0)
    label = labelled(parse_label("1m", INTERVAL_NS), frame)
    later = compute({"m": feature("momentum", horizon="1m")}, frame)["m"]
    assert label[:-30].tobytes() == later[30:].tobytes()
    assert np.isnan(label[-30:]).all()


def test_a_close_of_zero_has_no_return() -> None:
    found = labelled(parse_label("1bars", INTERVAL_NS), prices([1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(found, [-1.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soon", "write how far ahead, such as 60s or 30bars"),
        ("30", "write how far ahead"),
        ("1s", "looks 0 bars of 2s ahead"),
        ("0bars", "looks 0 bars"),
        ("100001bars", "it must be 1 to 100000"),
        ("900d", "it must be 1 to 100000"),
    ],
)
def test_what_is_no_label_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_label(text, INTERVAL_NS)
