from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import RejectedError
from market_data_core.events import SRC_TS_MAX, SRC_TS_MIN, parse_ts
from market_data_core.signals import SIGNAL_NAME_MAX, Signal

TS = parse_ts("2025-10-24T14:02:02Z")
SIGNAL = Signal(
    provider="feed",
    symbol="SPY",
    ts=TS,
    name="vwap_cross_up",
    value=1.0,
    score=0.82,
    metadata={"window": "1m", "price": 425.15},
)
EVENT: dict[str, Any] = {
    "ver": 1, "provider": "feed", "symbol": "SPY", "ts": "2025-10-24T14:02:02Z",
    "name": "vwap_cross_up", "value": 1.0, "score": 0.82, "meta": {"window": "1m", "price": 425.15},
}  # fmt: skip


def test_the_event_is_compact_json() -> None:
    assert SIGNAL.encode() == (
        b'{"ver":1,"provider":"feed","symbol":"SPY","ts":"2025-10-24T14:02:02.000000Z",'
        b'"name":"vwap_cross_up","value":1.0,"score":0.82,'
        b'"meta":{"window":"1m","price":425.15}}'
    )
    assert SIGNAL.key == ("feed", "SPY", TS, "vwap_cross_up")


def test_only_a_retracted_signal_tells_its_state() -> None:
    gone = Signal(provider="p", symbol="A", ts=TS, name="n", value=-1.0, state="retracted")

    fields = json.loads(gone.encode())
    assert (fields["state"], fields["score"], fields["meta"]) == ("retracted", None, {})
    assert Signal.decode(gone.encode()) == gone


def test_anybodys_json_of_the_shape_is_read() -> None:
    text = json.dumps(EVENT | {"symbol": "spy", "value": 1, "of_a_later_release": [1]}, indent=1)
    assert Signal.decode(text.encode()) == SIGNAL
    few = {k: v for k, v in EVENT.items() if k not in ("score", "meta")}
    signal = Signal.decode(json.dumps(few | {"state": "active"}).encode())
    assert (signal.score, signal.metadata, signal.state) == (None, {}, "active")
    official = Signal.decode(json.dumps(EVENT | {"provider": "feed:official"}).encode())
    assert official.provider == "feed:official"


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_floats = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Signal,
        provider=st.from_regex(r"[a-z]{1,9}", fullmatch=True),
        symbol=st.from_regex(r"[A-Z./]{1,9}", fullmatch=True),
        ts=st.integers(SRC_TS_MIN, SRC_TS_MAX - 1),
        name=st.text(min_size=1, max_size=SIGNAL_NAME_MAX),
        value=_floats,
        score=st.none() | _floats,
        state=st.sampled_from(["active", "retracted"]),
        metadata=st.dictionaries(st.text(), _json, max_size=3),
    )
)
def test_decoding_gives_back_what_was_encoded(signal: Signal) -> None:
    found = Signal.decode(signal.encode())

    assert found == signal
    assert found.value.hex() == signal.value.hex()
    assert found.encode() == signal.encode()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"{", "malformed"),
        (b"\xff", "malformed"),
        (b'"\xff"', "malformed"),
        (b"[" * 100_000, "malformed"),
        (json.dumps(EVENT).replace("1.0", "1e999").encode(), "malformed"),
        (json.dumps(EVENT).replace("1.0", "NaN").encode(), "malformed"),
        (b"[]", "bad_type"),
        (b"{}", "bad_type"),
        (EVENT | {"ver": 2, "value": "new"}, "bad_version"),
        (EVENT | {"ver": True}, "bad_type"),
        (EVENT | {"ver": "1"}, "bad_type"),
        (EVENT | {"value": "1"}, "bad_type"),
        (EVENT | {"value": None}, "bad_type"),
        (EVENT | {"value": True}, "bad_type"),
        (EVENT | {"score": "x"}, "bad_type"),
        (EVENT | {"meta": []}, "bad_type"),
        (EVENT | {"state": "open"}, "bad_type"),
        (EVENT | {"name": ""}, "bad_type"),
        (EVENT | {"name": "x" * (SIGNAL_NAME_MAX + 1)}, "bad_type"),
        (EVENT | {"symbol": ""}, "bad_type"),
        (EVENT | {"provider": "a|b"}, "bad_type"),
        (EVENT | {"ts": 5}, "bad_type"),
        (EVENT | {"ts": "yesterday"}, "bad_timestamp"),
        (EVENT | {"ts": "2200-01-01"}, "bad_timestamp"),
    ],
)
def test_what_is_no_signal_is_refused(payload: bytes | dict[str, Any], reason: str) -> None:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()

    with pytest.raises(RejectedError) as caught:
        Signal.decode(raw)
    assert caught.value.reason == reason
    assert str(caught.value)


@pytest.mark.parametrize("missing", ["ver", "provider", "symbol", "ts", "name", "value"])
def test_a_field_that_is_missing_is_named(missing: str) -> None:
    event = {name: value for name, value in EVENT.items() if name != missing}

    with pytest.raises(RejectedError, match=missing) as caught:
        Signal.decode(json.dumps(event).encode())
    assert caught.value.reason == "bad_type"
