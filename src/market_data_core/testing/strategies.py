"""Hypothesis strategies for everything that must not change a bar.

A :class:`Scenario` is one run: which events come in which order, where batches end, where a
process dies, and how many work. Its parts can be drawn alone as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from hypothesis import strategies as st

from market_data_core.events import EventBatch, make_batch
from market_data_core.intervals import NS_PER_MS
from market_data_core.testing.oracle import OracleEvent

START_NS = 1_761_314_520 * 1_000_000_000
"""2025-10-24T14:02:00Z, a multiple of every base window drawn here."""

SYMBOLS = ("SPY", "BTCUSDT", "A")
PROVIDERS = ("one", "two")
BASES_NS = tuple(ms * NS_PER_MS for ms in (100, 500, 1_000, 2_000))
_AWKWARD = (0.0, 0.1, 0.2, 0.3, 1.0, 425.15, 61837.63, 1e-8, 0.00002, 1e15, 123456.78901234567)
_RARE = (5e-324, 1e-300, 1e22, 9007199254740993.0)


@dataclass(frozen=True)
class Scenario:
    """One run of the pipeline over one provider's and a few symbols' events.

    Attributes:
        log: events in the order of arrival, copies and contradictions included.
        base_ns: length of the base window.
        allow_late_ns: allowed lateness.
        horizon_ns: how long a closed window is restated; at least the base window.
        cuts: where a batch ends, ascending indices into `log`.
        crashes: after how many batches a process is killed, ascending.
        workers: number of processes that share the partitions.
    """

    log: tuple[OracleEvent, ...]
    base_ns: int
    allow_late_ns: int
    horizon_ns: int
    cuts: tuple[int, ...]
    crashes: tuple[int, ...]
    workers: int

    def batches(self) -> list[EventBatch]:
        """The log as batches, split at `cuts`."""
        return to_batches(self.log, self.cuts)


def decimals(*, extreme: bool = True) -> st.SearchStrategy[float]:
    """Non-negative float64 as vendors send them: short decimals, awkward ones, huge and tiny ones.

    Args:
        extreme: also, rarely, values whose sums leave 64-bit integers by far.
    """
    short = st.builds(
        lambda whole, places: float(f"{whole}e-{places}"),
        st.integers(0, 10**9),
        st.integers(0, 8),
    )
    usual = st.one_of(short, st.sampled_from(_AWKWARD))
    if not extreme:
        return usual
    rare = st.one_of(st.sampled_from(_RARE), st.floats(0, 1e300))
    return st.integers(0, 15).flatmap(lambda pick: rare if pick == 0 else usual)


def timestamps(span_ns: int) -> st.SearchStrategy[int]:
    """UTC ns from START_NS on, clustered: often equal, often on an edge of a window."""
    ticks_ms = st.integers(0, span_ns // NS_PER_MS - 1)
    edges = ticks_ms.map(lambda ms: ms // 500 * 500)
    ns = st.integers(0, span_ns - 1)
    return st.one_of(
        ticks_ms.map(lambda ms: START_NS + ms * NS_PER_MS),
        edges.map(lambda ms: START_NS + ms * NS_PER_MS),
        ns.map(lambda offset: START_NS + offset),
    )


@st.composite
def events(
    draw: st.DrawFn,
    span_ns: int,
    providers: Sequence[str] = PROVIDERS[:1],
    *,
    extreme: bool = True,
    aggregates: bool = True,
) -> OracleEvent:
    """One trade, or now and then a sub-window aggregate with open, high and low of its own."""
    values = decimals(extreme=extreme)
    close = draw(values)
    prices = [close] * 3
    if aggregates and draw(st.integers(0, 9)) == 0:
        others = draw(st.lists(values, min_size=3, max_size=3))
        prices = [others[0], max(close, *others), min(close, *others)]
    return OracleEvent(
        draw(st.sampled_from(list(providers))),
        draw(st.sampled_from(SYMBOLS)),
        draw(timestamps(span_ns)),
        draw(st.integers(0, 20)),
        prices[0],
        prices[1],
        prices[2],
        close,
        draw(values),
    )


@st.composite
def logs(
    draw: st.DrawFn,
    span_ns: int,
    delay_ns_max: int,
    providers: Sequence[str] = PROVIDERS[:1],
    *,
    extreme: bool = True,
    aggregates: bool = True,
    size_max: int = 60,
) -> tuple[OracleEvent, ...]:
    """Events in an order of arrival, among them copies and contradictions of others.

    Each event arrives at most `delay_ns_max` of event time after its own time, so none is late
    where `delay_ns_max` <= allowed lateness + horizon.
    """
    one = events(span_ns, providers, extreme=extreme, aggregates=aggregates)
    originals = draw(st.lists(one, min_size=1, max_size=size_max))
    again = st.sampled_from(originals)
    copies = draw(st.lists(again, max_size=size_max // 4))
    contradictions = draw(
        st.lists(st.builds(_contradict, again, decimals(extreme=False)), max_size=5)
    )
    everything = originals + copies + contradictions
    delays = draw(
        st.lists(
            st.one_of(st.sampled_from((0, delay_ns_max)), st.integers(0, delay_ns_max)),
            min_size=len(everything),
            max_size=len(everything),
        )
    )
    arrivals = sorted(range(len(everything)), key=lambda i: everything[i].src_ts + delays[i])
    return tuple(everything[i] for i in arrivals)


def cuts(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Where `length` items are cut into batches: ascending indices, 1 … `length` - 1."""
    if length < 2:
        return st.just(())
    picked = st.sets(st.integers(1, length - 1), max_size=min(12, length - 1))
    return picked.map(lambda found: tuple(sorted(found)))


def crash_points(batches: int) -> st.SearchStrategy[tuple[int, ...]]:
    """After how many of `batches` batches a process dies: up to three ascending numbers."""
    picked = st.sets(st.integers(0, batches), max_size=3)
    return picked.map(lambda found: tuple(sorted(found)))


def worker_counts() -> st.SearchStrategy[int]:
    """How many processes share the partitions."""
    return st.integers(1, 4)


@st.composite
def scenarios(
    draw: st.DrawFn, *, late: bool = False, extreme: bool = True, aggregates: bool = True
) -> Scenario:
    """A whole run.

    Args:
        draw: given by Hypothesis.
        late: also let events arrive after their window's horizon.
        extreme: see :func:`decimals`.
        aggregates: also events whose open, high and low differ from their close.
    """
    base_ns = draw(st.sampled_from(BASES_NS))
    allow_late_ns = draw(st.sampled_from((0, 1, 250, 500, 3_000))) * NS_PER_MS
    horizon_ns = base_ns * draw(st.integers(1, 5))
    delay_ns_max = allow_late_ns + horizon_ns
    if late:
        delay_ns_max = 2 * delay_ns_max + 2 * base_ns
    log = draw(
        logs(base_ns * 12, delay_ns_max, extreme=extreme, aggregates=aggregates),
    )
    at = draw(cuts(len(log)))
    return Scenario(
        log=log,
        base_ns=base_ns,
        allow_late_ns=allow_late_ns,
        horizon_ns=horizon_ns,
        cuts=at,
        crashes=draw(crash_points(len(at) + 1)),
        workers=draw(worker_counts()),
    )


def to_batches(log: Sequence[OracleEvent], at: Sequence[int] = ()) -> list[EventBatch]:
    """`log` in columns: a batch ends at each index in `at` and wherever the provider changes."""
    out = []
    for begin, end in pairwise((0, *at, len(log))):
        for provider, group in groupby(log[begin:end], key=lambda e: e.provider):
            rows = list(group)
            _, symbol, src_ts, seq, o, h, low, close, volume = zip(*rows, strict=True)
            trades = o == h == low == close
            ohl = None if trades else (o, h, low)
            out.append(make_batch(provider, symbol, src_ts, seq, close, volume, ohl=ohl))
    return out


def _contradict(event: OracleEvent, price: float) -> OracleEvent:
    """A trade with `event`'s identity at another price."""
    other = price if price != event.close else price + 1.0
    return event._replace(open=other, high=other, low=other, close=other)
