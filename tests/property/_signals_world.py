"""A small world of bars, workers of inference that can die, and what they should have found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tests.property._harness import coordinated
from tests.property._memory import Crash, Life, Mortal
from tests.property._memory_bus import MemoryBus

from market_data_core.bars import BarBatch
from market_data_core.clock import ManualClock
from market_data_core.config import BAR_COLUMNS, FeaturesSettings, FeatureWindow
from market_data_core.contracts.store import BadRow, Claim, Gap, Message, PartitionKey, Store
from market_data_core.errors import LogHoleError
from market_data_core.intervals import NS_PER_S
from market_data_core.partitioning import partition_of
from market_data_core.records import Entry, Record
from market_data_core.signals import Signal
from market_data_core.tables import SIGNALS, Select
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.inference.adapters.rules import RulesAdapter
from market_data_pipeline.signals.checkpoint import Edition, decode_signals_checkpoint
from market_data_pipeline.signals.editions import Editions, EditionsOf
from market_data_pipeline.signals.evaluator import Evaluator, Unguarded
from market_data_pipeline.signals.ranges import revise_range
from market_data_pipeline.signals.reading import signals_of
from market_data_pipeline.signals.settings import SignalsSettings
from market_data_pipeline.signals.worker import SignalWorker
from market_data_store.backends.sqlite import SqliteStore

INTERVAL_NS = 2 * NS_PER_S
START_NS = 1_760_000_000 * NS_PER_S
INTERVAL, BARS, TOPIC = "2s", "mdp.bars", "mdp.signals"
PROVIDER, SLOW_PROVIDER = "p", "q"
SYMBOLS = ("A", "B", "C", "D", "E")
PARTITIONS = 2
LEASE_NS = NS_PER_S
FEATURES = FeaturesSettings(
    windows=(
        FeatureWindow(name="ret_6s", horizon="6s"),
        FeatureWindow(name="vol_30s", horizon="30s"),
        FeatureWindow(name="sma_3", bars=3),
        FeatureWindow(name="sma_5", bars=5),
        FeatureWindow(name="excess_6s", horizon="6s"),
    ),
    session_gap="20s",
    index="A",
)
RULES = """
- {name: above, condition: "close > sma_3", signal: 1}
- {name: crossed, condition: "cross_up(close, sma_3) or prev(ret_6s, 2) > 0.02", signal: 1}
- {name: rare, condition: "close > 0", signal: 0, cooldown: 7s}
- {name: wild, condition: "not (vol_30s < 0.01)", signal: -1, score: 0.5, meta: [vol_30s, volume]}
- {name: ahead, condition: "excess_6s > 0.01", signal: 1, meta: [excess_6s]}
"""


@dataclass(frozen=True)
class Bar:
    symbol: str
    slot: int
    close: float
    provider: str = PROVIDER


OTHER_RULES = """
- {name: above, condition: "close > prev(sma_3, 2)", signal: 2}
- {name: rare, condition: "close > 0", signal: 0, cooldown: 9s}
- {name: below, condition: "close < sma_5", signal: -1}
"""


def evaluator(rules: str = RULES) -> Evaluator:
    known = frozenset((*catalog(FEATURES, INTERVAL_NS), *BAR_COLUMNS))
    adapter = RulesAdapter.of_text(rules, "rules", known, INTERVAL, [INTERVAL])
    features = lambda length_ns: catalog(FEATURES, length_ns)  # noqa: E731
    made = Evaluator(features, [Unguarded(adapter)], FEATURES.session_gap_ns, "", rules)
    made.needs(INTERVAL_NS)
    return made


def batches_of(bars: Sequence[Bar]) -> list[BarBatch]:
    """The latest version of each, a batch for each feed."""
    latest = {(bar.provider, bar.symbol, bar.slot): bar for bar in bars}
    by: dict[str, list[Bar]] = {}
    for bar in latest.values():
        by.setdefault(bar.provider, []).append(bar)
    return [batch_of(provider, some) for provider, some in sorted(by.items())]


def batch_of(provider: str, bars: Sequence[Bar]) -> BarBatch:
    close = np.array([bar.close for bar in bars])
    return BarBatch(
        provider, INTERVAL, "final", SYMBOLS,
        np.array([SYMBOLS.index(bar.symbol) for bar in bars], np.uint32),
        START_NS + np.array([bar.slot for bar in bars], np.int64) * INTERVAL_NS,
        close, close, close, close, np.ones(len(bars)), close,
        np.ones(len(bars), np.int64),
    )  # fmt: skip


class LossyBus(MemoryBus):
    """A log whose records are gone here and there."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.holes: dict[int, list[tuple[int, int]]] = {}

    def cut(self, partition: int, begin: int, end: int) -> None:
        """Remove the records that stand at [begin, end) among those kept, if more stand behind."""
        log = self.logs[BARS, partition]
        lost, left = log.kept[begin:end], log.kept[:begin] + log.kept[end:]
        if not lost or end >= len(log.kept):
            return
        log.kept = left
        if begin:
            behind = lost[-1].record.offset + 1
            self.holes.setdefault(partition, []).append((lost[0].record.offset, behind))
        else:
            log.first = left[0].record.offset


class LossyReader:
    """The log as one process reads it: it is told of each hole once."""

    def __init__(self, bus: LossyBus) -> None:
        self._bus = bus
        self._told: set[tuple[int, int, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def poll(
        self, topic: str, positions: Mapping[int, int], max_bytes: int, timeout_s: float
    ) -> dict[int, list[Record]]:
        for partition, position in positions.items() if topic == BARS else ():
            for begin, behind in self._bus.holes.get(partition, []):
                if position < behind and (partition, begin, behind) not in self._told:
                    before = [
                        k
                        for k in self._bus.logs[BARS, partition].kept
                        if position <= k.record.offset < begin
                    ]
                    if before:  # it has to be read first
                        return {partition: [before[0].record]}
                    self._told.add((partition, begin, behind))
                    raise LogHoleError("a hole", partition, behind, 1)
        return await self._bus.poll(topic, positions, max_bytes, timeout_s)


class MortalStore(Mortal):
    """As one process sees the store."""

    def scan(self, *args: Any, **kwargs: Any) -> Any:
        self._life.step("scan")
        return self._inner.scan(*args, **kwargs)


@dataclass
class Written:
    """A micro-batcher's group of one batch of bars."""

    claim: Claim
    bars: Sequence[BarBatch]
    bars_topic: str = BARS
    tells_all: bool = False
    signals: Sequence[Signal] = ()
    gaps: Sequence[Gap] = ()

    def finish(self, bad: Sequence[BadRow]) -> tuple[bytes, Sequence[Message]]:  # noqa: ARG002
        return b"", ()

    def refused(self, checkpoint: bytes) -> Sequence[BadRow]:  # noqa: ARG002
        return ()


class World:
    def __init__(self, path: Path) -> None:
        self.clock = ManualClock(START_NS)
        self.bus = LossyBus(self.clock)
        self.store: Store = SqliteStore(path / "store.db", clock=self.clock)
        self.claims: dict[int, Claim] = {}
        self.members = 0
        self.chance = Random(1)
        self.left: list[Entry] = []

    async def open(self) -> None:
        await self.store.migrate()
        for topic in (BARS, TOPIC):
            await self.bus.create_topic(topic, PARTITIONS)

    async def write(self, bars: Sequence[Bar], slow: bool = False) -> None:
        """Store bars and publish those that changed, each partition's in one commit.

        Args:
            bars: to write.
            slow: whether they are published with later ones only.
        """
        for number in range(PARTITIONS):
            mine = [bar for bar in bars if partition_of(bar.symbol, PARTITIONS) == number]
            if not mine:
                continue
            if number not in self.claims:
                key = PartitionKey("windows", "mdp.events", number)
                claim = await self.store.claim(key, "w", 10**18)
                assert claim is not None
                self.claims[number] = claim
            claim = self.claims[number]
            result = await self.store.commit([Written(claim, batches_of(mine))], [])
            self.claims[number] = Claim(claim.key, claim.token, claim.sequence + 1, None)
            self.left += [
                Entry(number, i.message.payload, key=i.message.key) for i in result.outbox
            ]
        if not slow:
            await self.bus.append(BARS, self.left)
            self.left = []

    def worker(self, life: Life, poll_bytes: int = 4_000, rules: str = RULES) -> SignalWorker:
        self.members += 1
        config = SignalsSettings(
            "g-infer", f"m{self.members}", LEASE_NS, 1, poll_bytes, TOPIC, 10**15
        )
        store: Any = MortalStore(self.store, life)
        bus: Any = Mortal(LossyReader(self.bus), life)
        editions = Editions(evaluator(rules), evaluator)
        info = self.bus.infos[BARS]
        return SignalWorker(
            bus, store, coordinated(store), info, config, editions, self.clock, self.closed
        )

    async def closed(self, provider: str, symbol: str, start: int) -> int | None:
        """Has not come as far, as it happens."""
        assert provider in (PROVIDER, SLOW_PROVIDER)
        assert symbol == FEATURES.index
        return start if self.chance.random() < 0.1 else None

    async def infer(
        self, lives: Sequence[Life], poll_bytes: int = 4_000, rules: str = RULES
    ) -> None:
        """Workers at once, until they have read all there is, or are dead."""
        self.clock.advance(2 * LEASE_NS)
        await asyncio.gather(*(self._one(self.worker(life, poll_bytes, rules)) for life in lives))

    async def _one(self, worker: SignalWorker) -> None:
        stop = asyncio.Event()
        stop.set()
        with suppress(Crash):
            await worker.run(stop, drain_s=30)

    async def owned(self, owners: int) -> bool:
        """Whether the partitions have so many owners."""
        rows = await self.store.status("g-infer", BARS)
        return len(rows) == PARTITIONS and len({row.owner for row in rows} - {""}) == owners

    async def done(self) -> bool:
        """Whether all that was published of bars has been evaluated and committed."""
        rows = {r.key.partition: r for r in await self.store.status("g-infer", BARS)}
        for number in range(PARTITIONS):
            bounds = await self.bus.bounds(BARS, number)
            if bounds.next > bounds.first:
                known = rows[number].checkpoint if number in rows else None
                if not known or decode_signals_checkpoint(known).position < bounds.next:
                    return False
        return True

    async def editions(self) -> dict[int, list[Edition]]:
        """Which rules were in force when, partition by partition."""
        rows = await self.store.status("g-infer", BARS)
        known = {r.key.partition: r.checkpoint for r in rows if r.checkpoint}
        return {p: decode_signals_checkpoint(c).editions for p, c in known.items()}

    async def begun(self) -> bool:
        """Whether bars of every partition were evaluated: what is lost before is nobody's."""
        rows = await self.store.status("g-infer", BARS)
        known = [decode_signals_checkpoint(r.checkpoint) for r in rows if r.checkpoint]
        return len(known) == PARTITIONS and all(checkpoint.series for checkpoint in known)

    async def active(self) -> dict[Any, Any]:
        frame = await self.store.select(Select(SIGNALS))
        return {
            s.key: (s.value, s.score, s.metadata) for s in signals_of(frame) if s.state == "active"
        }

    async def published(self) -> dict[Any, str]:
        """What a reader of the topic believes in the end."""
        found = {}
        for number in range(PARTITIONS):
            records = await self.bus.poll(TOPIC, {number: 0}, 1 << 30, 0)
            for record in records.get(number, ()):
                signal = Signal.decode(record.payload)
                found[signal.key] = signal.state
        return {key: state for key, state in found.items() if state == "active"}


async def expected(
    bars: Sequence[Bar], editions: Mapping[int, list[Edition]] | None = None
) -> dict[Any, Any]:
    """The signals of the latest version of all bars, worked out in one go."""
    made = Editions(evaluator(), evaluator)
    for edition in (e for some in (editions or {}).values() for e in some):
        made.of(edition)
    of = lambda symbol: (editions or {}).get(partition_of(symbol, PARTITIONS), [])  # noqa: E731
    signals: list[Signal] = []
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        await world.open()
        await world.store.write_bars(batches_of(bars))
        everything = (START_NS, START_NS + 10**15)
        for provider in sorted({bar.provider for bar in bars}):
            whose: Any = EditionsOf(made, (provider, INTERVAL), of, lambda _: 2**62)
            whose = whose if editions else evaluator()
            spans = {bar.symbol: everything for bar in bars if bar.provider == provider}
            found = await revise_range(world.store, whose, provider, INTERVAL_NS, spans)
            signals += found.changes
        await world.store.close()
    return {s.key: (s.value, s.score, s.metadata) for s in signals}


def bars_of(seed: int, number: int, sorted_by: str) -> list[Bar]:
    """Bars of a few symbols in some order, some of them several times with other prices.

    Two feeds have the same symbols, and one of them is behind.
    """
    random = Random(seed)
    closes = (99.0, 100.0, 100.5, 101.0, 103.25, 0.1, 1e9)
    bars = [
        Bar(
            random.choice(SYMBOLS),
            random.randrange(45),
            random.choice(closes),
            SLOW_PROVIDER if random.random() < 0.3 else PROVIDER,
        )
        for _ in range(number)
    ]
    behind = {PROVIDER: 0, SLOW_PROVIDER: 15}
    if sorted_by == "time":
        return sorted(bars, key=lambda bar: bar.slot + behind[bar.provider])
    if sorted_by == "nearly":
        return sorted(bars, key=lambda bar: bar.slot + behind[bar.provider] + random.randrange(8))
    return bars


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.005)
