"""Signals that hold one another off: what one late bar changes, far behind it too."""

from __future__ import annotations

import pytest
from tests.property._signals_world import (
    INTERVAL_NS,
    PROVIDER,
    RULES,
    START_NS,
    Bar,
    World,
    batches_of,
    evaluator,
    expected,
)

from market_data_core.tables import SIGNALS
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.signals import ranges
from market_data_pipeline.signals.evaluator import Evaluator, Found
from market_data_pipeline.signals.ranges import Revised, revise_range

pytestmark = pytest.mark.timeout(60)

MOST = 100
SLOTS = 2_000


@pytest.fixture(autouse=True)
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bars were read at once."""
    numbers: list[int] = []

    class Counted(Panel):
        def select(self, rows: object) -> object:  # type: ignore[override]
            numbers.append(len(self.ts))
            return super().select(rows)  # type: ignore[arg-type]

    monkeypatch.setattr("market_data_pipeline.signals.reading.Panel", Counted)
    monkeypatch.setattr(ranges, "_BARS_AT_ONCE", MOST)
    return numbers


def bars(*slots: range) -> list[Bar]:
    return [Bar("B", slot, 100.0) for some in slots for slot in some]


async def revised(world: World, stored: list[Bar], late: Bar, read: list[int]) -> Revised:
    """What a late bar changes, among bars whose signals are stored."""
    await world.store.write_bars(batches_of(stored))
    spans = {"B": (START_NS - INTERVAL_NS, START_NS + SLOTS * INTERVAL_NS)}
    before = await revise_range(world.store, evaluator(), PROVIDER, INTERVAL_NS, spans)
    await world.store.upsert(SIGNALS, before.changes)
    await world.store.write_bars(batches_of([late]))
    start = START_NS + late.slot * INTERVAL_NS
    span = {"B": (start, start)}
    read.clear()
    found = await revise_range(world.store, evaluator(), PROVIDER, INTERVAL_NS, span)
    await world.store.upsert(SIGNALS, found.changes)
    return found


async def test_all_that_follows_is_held_off_by_others(world: World, read: list[int]) -> None:
    """They never agree again, and not all bars are in memory at once for that."""
    stored, late = bars(range(1, SLOTS)), Bar("B", 0, 100.0)
    found = await revised(world, stored, late, read)
    assert max(read) < 2 * MOST
    assert sum(s.name == "rare" for s in found.changes) == 2 * SLOTS // 4
    assert await world.active() == await expected([*stored, late])


async def test_they_agree_after_a_pause(world: World, read: list[int]) -> None:
    """Nobody looks at what is behind it."""
    stored, late = bars(range(1, 10), range(20, SLOTS)), Bar("B", 0, 100.0)
    found = await revised(world, stored, late, read)
    assert await world.active() == await expected([*stored, late])
    assert found.bars < 100


async def test_no_signal_for_a_while_is_no_agreement(
    world: World, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stretch without any says nothing of what is behind it."""
    rules = '- {name: rare, condition: "close > 100", signal: 1, cooldown: 200s}'
    rare = evaluator(rules)
    monkeypatch.setattr(f"{__name__}.evaluator", lambda: rare)
    high = dict.fromkeys((0, 95, 150), 101.0)
    stored = [Bar("B", slot, high.get(slot, 100.0)) for slot in range(SLOTS)]
    late = Bar("B", -8, 101.0)
    found = await revised(world, stored, late, read)
    assert found.bars < 500  # the last one holds nothing off any more
    ends = sorted((ts - START_NS) // INTERVAL_NS for _, _, ts, _ in await world.active())
    assert ends == [-7, 96]


async def test_a_model_that_fails_behind_changes_nothing_before(
    world: World, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next attempt would find what is before as it should be, and go no further."""
    evaluate, fails = Evaluator.evaluate, False

    async def failing(self: Evaluator, provider: str, selection: Selection) -> Found:
        found = await evaluate(self, provider, selection)
        if fails and selection.starts.max(initial=0) > START_NS + 20 * INTERVAL_NS:
            found.unanswered.add("rare")
            found.names.discard("rare")
            found.signals = [one for one in found.signals if one[0].name != "rare"]
        return found

    monkeypatch.setattr(Evaluator, "evaluate", failing)
    stored, late = bars(range(1, 200)), Bar("B", 0, 100.0)
    await world.store.write_bars(batches_of(stored))
    spans = {"B": (START_NS, START_NS + SLOTS * INTERVAL_NS)}
    before = await revise_range(world.store, evaluator(), PROVIDER, INTERVAL_NS, spans)
    await world.store.upsert(SIGNALS, before.changes)
    await world.store.write_bars(batches_of([late]))
    for fails in (True, False):
        span = {"B": (START_NS, START_NS)}
        found = await revise_range(world.store, evaluator(), PROVIDER, INTERVAL_NS, span)
        assert found.unanswered == ({"rare"} if fails else set())
        await world.store.upsert(SIGNALS, found.changes)
    assert len(read) > 4
    assert await world.active() == await expected([*stored, late])


async def test_bars_that_are_not_there_any_more(world: World) -> None:
    """The log may tell of some that retention has removed."""
    spans = {"B": (START_NS, START_NS), "C": (START_NS, START_NS + INTERVAL_NS)}
    assert await revise_range(world.store, evaluator(), PROVIDER, INTERVAL_NS, spans) == Revised([])


async def test_sparse_and_dense_symbols_change_together(
    world: World, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is between two bars of a sparse one is not read again and again of a dense one."""
    slow = evaluator(f'{RULES}\n- {{name: slow, condition: "close > 0", signal: 1, cooldown: 3h}}')
    monkeypatch.setattr(f"{__name__}.evaluator", lambda: slow)
    sparse = [Bar("C", slot, 100.0) for slot in range(SLOTS + SLOTS // 2, 40 * SLOTS, SLOTS)]
    stored, late = bars(range(1, SLOTS)), [Bar("B", 0, 100.0), Bar("C", 0, 100.0)]
    await world.store.write_bars(batches_of([*stored, *sparse]))
    everything = (START_NS, START_NS + 50 * SLOTS * INTERVAL_NS)
    for span in (everything, (START_NS, START_NS)):
        read.clear()
        spans = {"B": span, "C": span}
        found = await revise_range(world.store, evaluator(), PROVIDER, INTERVAL_NS, spans)
        await world.store.upsert(SIGNALS, found.changes)
        await world.store.write_bars(batches_of(late))

    assert sum(read) < 2 * SLOTS
    active = await world.active()
    spans = {"B": everything, "C": everything}
    again = await revise_range(world.store, slow, PROVIDER, INTERVAL_NS, spans)
    assert again.changes == []
    assert {key[3] for key in active if key[1] == "C"} >= {"slow"}
