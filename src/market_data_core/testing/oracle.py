"""The bars again, computed the slow and obvious way, to hold the engine's against.

Nothing here shares code with the window engine: events are plain tuples, sums are decimals of
unlimited length, windows are dictionaries. Where engine and oracle agree bit for bit, two
independent derivations of the rules agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import NamedTuple

from market_data_core.bars import BarBatch
from market_data_core.events import EventBatch, Rejected
from market_data_core.records import Mark
from market_data_core.scaled import Scaled

EventKey = tuple[str, str, int, int]
"""provider, symbol, src_ts (UTC ns), seq."""
BarKey = tuple[str, str, int]
"""provider, symbol, start of the window (UTC ns)."""

# Products of float64 decimals lie between 1e-648 and 1e617; with Inexact trapped, a sum that did
# not fit would be an error, never a rounding.
_EXACT = Context(prec=4_000, traps=[Inexact, InvalidOperation])
_BEFORE_ALL = -(1 << 80)
_AFTER_ALL = 1 << 80


class OracleEvent(NamedTuple):
    """One event in plain numbers; `src_ts` in UTC ns, prices and size as float64."""

    provider: str
    symbol: str
    src_ts: int
    seq: int
    open: float
    high: float
    low: float
    close: float
    volume: float

    @property
    def key(self) -> EventKey:
        """What identifies the event."""
        return self[:4]

    @property
    def payload(self) -> tuple[float, ...]:
        """What two events of one identity must share to be duplicates."""
        return self[4:]


class OracleBar(NamedTuple):
    """One bar's values; `vwap` is None at zero volume or where it has no value."""

    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None
    trade_count: int


LogItem = OracleEvent | Rejected | Mark
"""What one partition's log holds, in its order."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The terms of the conservation equation, in events."""

    received: int = 0
    stored: int = 0
    open: int = 0
    deduplicated: int = 0
    late: int = 0
    dead_lettered: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def balanced(self) -> bool:
        """Whether every event received is in exactly one of the other terms."""
        settled = self.stored + self.open + self.deduplicated + self.late + self.dead_lettered
        return self.received == settled


@dataclass(slots=True)
class ReferenceRun:
    """What one partition's log must have led to.

    Attributes:
        bars: the closed windows' bars, latest version.
        counts: the terms of the conservation equation.
        late: the events beyond their window's horizon, in log order.
        conflicts: the events of closed windows whose identity was taken, in log order.
        watermarks: final watermark of every provider, UTC ns.
    """

    bars: dict[BarKey, OracleBar]
    counts: Counts
    late: list[OracleEvent] = field(default_factory=list)
    conflicts: list[OracleEvent] = field(default_factory=list)
    watermarks: dict[str, int] = field(default_factory=dict)


def oracle_events(batch: EventBatch) -> list[OracleEvent]:
    """The rows of `batch` in their order."""
    columns = [_floats(column) for column in (*batch.prices(), batch.close, batch.volume)]
    symbols = [batch.symbols[code] for code in batch.codes.tolist()]
    rows = zip(symbols, batch.src_ts.tolist(), batch.seq.tolist(), *columns, strict=True)
    return [OracleEvent(batch.provider, *row) for row in rows]


def oracle_bars(batch: BarBatch) -> dict[BarKey, OracleBar]:
    """The engine's bars in the shape of :func:`batch_bars`, ready to compare."""
    prices = (batch.open, batch.high, batch.low, batch.close, batch.volume)
    values = zip(
        *(column.tolist() for column in prices),
        batch.vwap_column(),
        batch.trade_count.tolist(),
        strict=True,
    )
    keys = zip(batch.symbol_column(), batch.ts.tolist(), strict=True)
    return {
        (batch.provider, symbol, ts): OracleBar(*row)
        for (symbol, ts), row in zip(keys, values, strict=True)
    }


def deduplicate(
    events: Iterable[OracleEvent],
) -> tuple[list[OracleEvent], list[OracleEvent], list[OracleEvent]]:
    """First events, their exact copies, and events of a known identity with other values.

    Each of the three lists is in the order of `events`.
    """
    first: dict[EventKey, OracleEvent] = {}
    copies: list[OracleEvent] = []
    conflicts: list[OracleEvent] = []
    for event in events:
        known = first.get(event.key)
        if known is None:
            first[event.key] = event
        else:
            (copies if known.payload == event.payload else conflicts).append(event)
    return list(first.values()), copies, conflicts


def window_of(src_ts: int, interval_ns: int) -> int:
    """Start of the window that holds `src_ts`, both UTC ns."""
    return src_ts // interval_ns * interval_ns


def batch_bars(events: Iterable[OracleEvent], interval_ns: int) -> dict[BarKey, OracleBar]:
    """Bars over all `events` at once; of several events with one identity the first counts.

    Args:
        events: in the order in which the log holds them.
        interval_ns: length of the windows, which begin at multiples of it.
    """
    windows: dict[BarKey, list[OracleEvent]] = {}
    for event in deduplicate(events)[0]:
        start = window_of(event.src_ts, interval_ns)
        windows.setdefault((event.provider, event.symbol, start), []).append(event)
    return {key: _bar(members) for key, members in windows.items()}


def reference_run(
    log: Sequence[LogItem], base_ns: int, allow_late_ns: int, horizon_ns: int
) -> ReferenceRun:
    """Decide, one item after the other, what becomes of every event of one partition.

    Every provider has a watermark of its own: the greatest ``src_ts`` less `allow_late_ns`, raised
    by progress marks (less `allow_late_ns`) and idle marks (as they are), ended by the end mark.
    An event whose window ended `horizon_ns` or more before the watermark that it meets is late.
    Copies inside a window that is still open at the end count as open: they are found out only
    when the window closes.

    Args:
        log: one partition's items in log order.
        base_ns: length of the base window.
        allow_late_ns: allowed lateness.
        horizon_ns: how long a closed window can still be restated.
    """
    marks: dict[str, int] = {}
    ended = False
    taken: list[OracleEvent] = []
    late: list[OracleEvent] = []
    received = rejected = 0
    for item in log:
        if isinstance(item, Mark):
            ended |= item.kind == "end"
            _apply_mark(marks, item, allow_late_ns)
            continue
        received += 1
        if isinstance(item, Rejected):
            rejected += 1
            continue
        watermark = _AFTER_ALL if ended else marks.get(item.provider, _BEFORE_ALL)
        window_end = window_of(item.src_ts, base_ns) + base_ns
        (late if window_end <= watermark - horizon_ns else taken).append(item)
        marks[item.provider] = max(watermark, item.src_ts - allow_late_ns)
    if ended:
        marks = dict.fromkeys(marks, _AFTER_ALL)
    closed = [e for e in taken if window_of(e.src_ts, base_ns) + base_ns <= marks[e.provider]]
    unique, copies, conflicts = deduplicate(closed)
    counts = Counts(
        received=received,
        stored=len(unique),
        open=len(taken) - len(closed),
        deduplicated=len(copies),
        late=len(late),
        dead_lettered=rejected + len(conflicts),
    )
    return ReferenceRun(batch_bars(unique, base_ns), counts, late, conflicts, marks)


def combined(runs: Iterable[ReferenceRun]) -> ReferenceRun:
    """Several partitions' runs as one: bars and ledgers joined, counts added.

    Watermarks are left out: each belongs to one partition.
    """
    total = ReferenceRun({}, Counts())
    for run in runs:
        total.bars |= run.bars
        total.counts += run.counts
        total.late += run.late
        total.conflicts += run.conflicts
    return total


def _apply_mark(marks: dict[str, int], mark: Mark, allow_late_ns: int) -> None:
    reached = {"progress": mark.ts - allow_late_ns, "idle": mark.ts}.get(mark.kind)
    if reached is not None:
        marks[mark.provider] = max(marks.get(mark.provider, _BEFORE_ALL), reached)


def _bar(events: list[OracleEvent]) -> OracleBar:
    ordered = sorted(events, key=lambda e: (e.src_ts, e.seq))
    size = notional = Decimal(0)
    for event in events:
        volume = Decimal(repr(event.volume))
        size = _EXACT.add(size, volume)
        notional = _EXACT.add(notional, _EXACT.multiply(Decimal(repr(event.close)), volume))
    total, value = float(size), float(notional)
    vwap = value / total if total else None
    return OracleBar(
        open=ordered[0].open,
        high=max(e.high for e in events),
        low=min(e.low for e in events),
        close=ordered[-1].close,
        volume=total,
        # infinite notional over infinite volume has no value
        vwap=None if vwap is None or vwap != vwap else vwap,  # noqa: PLR0124
        trade_count=len(events),
    )


def _floats(column: Scaled) -> list[float]:
    # through the decimal text, which has nothing in common with the column's own conversion
    return [float(f"{int(m)}e-{column.scale}") for m in column.mantissa.tolist()]
