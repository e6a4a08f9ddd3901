"""Features and inference of one configuration: selected bars in, what holds at them out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from time import perf_counter
from typing import Protocol

import numpy as np

from market_data_core.contracts.feature import Feature, Floats
from market_data_core.contracts.inference import Firing
from market_data_core.errors import ModelError
from market_data_core.intervals import format_interval
from market_data_core.signals import Signal, shown_ts
from market_data_pipeline import metrics
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.inference.adapters.rules import RulesAdapter
from market_data_pipeline.inference.guard import Said
from market_data_pipeline.signals.rows import Needs, SelectedRows

_VERSION_CHARS = 12
_ROWS_AT_ONCE = 16_384
"""Bars that are evaluated at once, so that memory and a model's time for one call are bounded."""
ALL_SYMBOLS = "*"
"""Features are worked out for all symbols at once; the metric's label says so."""


class Guard(Protocol):
    """Rules or a model that answer in time, or not at all.

    Attributes:
        name: of the adapter.
        version: of what it evaluates.
        names: of all signals that it can give.
        cooldown_ns: the longest cooldown of any of them.
        standby: version of what answers in its place; "" for nothing.
    """

    name: str
    version: str
    names: tuple[str, ...]
    cooldown_ns: int
    standby: str

    def columns(self, interval: str) -> Mapping[str, int]:
        """Column -> how many bars back it is looked at; empty if it says nothing of such bars."""
        ...

    async def evaluate(self, rows: SelectedRows) -> Said:
        """What holds for the rows.

        Raises:
            ModelError: there is no answer.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Unguarded:
    """Rules, which need no deadline: their cost is known."""

    def __init__(self, adapter: RulesAdapter) -> None:
        self.text = adapter.text
        self.name, self.version, self.names = adapter.name, adapter.version, adapter.names
        self.cooldown_ns, self.columns = adapter.cooldown_ns, adapter.columns
        self.standby = ""
        self._adapter = adapter

    async def evaluate(self, rows: SelectedRows) -> Said:
        """What holds for the rows."""
        return Said(await asyncio.to_thread(self._adapter.evaluate, rows), self.names)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class Found:
    """What holds at some bars.

    Attributes:
        signals: with each one's cooldown in ns, in the order of the rows for each name.
        names: of all signals that could have been found: those of adapters that answered.
        unanswered: names of signals of which nobody answered, for some of the bars at least.
    """

    signals: list[tuple[Signal, int]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)


class Evaluator:
    """What is computed of bars, for every interval that rules or models look at.

    Args:
        catalog: every feature by name, for bars of an interval given in ns.
        guards: rules and models.
        session_gap_ns: a hole at least this long begins a new session; 0: never.
        settings: the features' settings, as a text: with the adapters' versions, what tells
            whether bars have to be evaluated again.
        text: of the rules.

    Attributes:
        version: SHA-256 of all that signals depend on but bars, in hex.
        text: of the rules, "" if there are none.
        guards: rules and models.
    """

    def __init__(
        self,
        catalog: Callable[[int], Mapping[str, Feature]],
        guards: Sequence[Guard],
        session_gap_ns: int,
        settings: str,
        text: str = "",
    ) -> None:
        words = (settings, *(f"{g.name} {g.version} {g.standby}".rstrip() for g in guards))
        self.version = sha256("\n".join(words).encode()).hexdigest()
        self._catalog, self.guards, self.session_gap_ns = catalog, tuple(guards), session_gap_ns
        self._needs: dict[int, Needs | None] = {}
        self.text = text

    def close(self) -> None:
        """Release rules and models."""
        for guard in self.guards:
            guard.close()

    def reach(self, interval_ns: int) -> int:
        """How many bars, at most, look at a bar, its own among them; 0 if nothing does."""
        needs = self.needs(interval_ns)
        return needs.reach if needs else 0

    def indices(self, interval_ns: int) -> tuple[str, ...]:
        """The symbols that others are compared with."""
        needs = self.needs(interval_ns)
        return needs.indices if needs else ()

    @property
    def compared_with(self) -> frozenset[str]:
        """The same, for all intervals that were asked for."""
        needs = filter(None, self._needs.values())
        return frozenset(symbol for one in needs for symbol in one.indices)

    def parts(self, selection: Selection) -> list[tuple[Evaluator, Selection]]:
        """All bars are evaluated by itself."""
        return [(self, selection)]

    def needs(self, interval_ns: int) -> Needs | None:
        """What has to be kept of bars of an interval; None if nothing looks at them."""
        if interval_ns not in self._needs:
            backs = needed_columns(self.guards, format_interval(interval_ns))
            catalog = self._catalog(interval_ns)
            self._needs[interval_ns] = Needs.of(catalog, backs, interval_ns) if backs else None
        return self._needs[interval_ns]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all signals that there can be."""
        return tuple(name for guard in self.guards for name in guard.names)

    @property
    def cooldown_ns(self) -> int:
        """The longest cooldown of any of them."""
        return max((guard.cooldown_ns for guard in self.guards), default=0)

    async def evaluate(self, provider: str, selection: Selection) -> Found:
        """What holds at the selected bars.

        An adapter that does not answer says nothing, neither for nor against a signal.
        """
        found = Found()
        needs = self.needs(selection.interval_ns)
        if needs is None:
            return found
        for at in range(0, len(selection), _ROWS_AT_ONCE):
            part = np.arange(at, min(at + _ROWS_AT_ONCE, len(selection)), dtype=np.intp)
            await self._evaluate(SelectedRows(provider, selection.take(part), needs), found)
        found.names -= found.unanswered
        found.signals = [one for one in found.signals if one[0].name not in found.unanswered]
        return found

    async def _evaluate(self, rows: SelectedRows, found: Found) -> None:
        began = perf_counter()
        await asyncio.to_thread(rows.compute)
        spent = perf_counter() - began
        metrics.FEATURES_UPDATE_DURATION.labels(ALL_SYMBOLS, rows.interval).observe(spent)
        for guard in self.guards:
            if guard.columns(rows.interval):
                await _ask(guard, rows, found)


def told_version(guard: Guard) -> str:
    """The version of rules or a model as the metadata of their signals tells it."""
    return guard.version[:_VERSION_CHARS]


def needed_columns(guards: Sequence[Guard], interval: str) -> dict[str, int]:
    """Column -> how many bars back any of them looks at it."""
    backs: dict[str, int] = {}
    for guard in guards:
        for name, back in guard.columns(interval).items():
            backs[name] = max(backs.get(name, 0), back)
    return backs


async def _ask(guard: Guard, rows: SelectedRows, found: Found) -> None:
    began = perf_counter()
    try:
        said = await guard.evaluate(rows)
    except ModelError:  # the guard has counted and told it
        found.unanswered.update(guard.names)
        return
    finally:
        metrics.INFERENCE_EVAL_DURATION.labels(guard.name).observe(perf_counter() - began)
    found.names.update(said.names)
    found.unanswered.update(set(guard.names).difference(said.names))
    for firing in said.firings:
        found.signals += _signals(rows, firing, guard)


def _signals(rows: SelectedRows, firing: Firing, guard: Guard) -> list[tuple[Signal, int]]:
    at = firing.rows
    lineage = {
        "adapter": guard.name,
        "version": told_version(guard),
        "interval": rows.interval,
        **firing.notes,
    }
    scores = [None] * len(at) if firing.score is None else firing.score.tolist()
    signals = []
    for code, ts, start, value, score, features in zip(
        rows.codes[at].tolist(),
        rows.ts[at].tolist(),
        rows.starts[at].tolist(),
        firing.value.tolist(),
        scores,
        _told(firing.meta, len(at)),
        strict=True,
    ):
        signal = Signal(
            provider=rows.provider,
            symbol=rows.symbols[code],
            ts=ts,
            name=firing.name,
            value=value,
            score=score,
            metadata={**lineage, "bar": shown_ts(start), "features": features},
        )
        signals.append((signal, firing.cooldown_ns))
    return signals


def _told(meta: Mapping[str, Floats], number: int) -> list[dict[str, float]]:
    """The columns of each signal's metadata, without values that are not known."""
    columns = {
        name: (values.tolist(), np.isfinite(values).tolist()) for name, values in meta.items()
    }
    return [
        {name: values[i] for name, (values, known) in columns.items() if known[i]}
        for i in range(number)
    ]
