"""Which signals were given, so that those which no longer hold can be taken back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from market_data_core.signals import Signal
from market_data_pipeline.features.history import AT_ONCE

KEPT = 4 * AT_ONCE
"""Signals of a symbol and name that a live worker keeps: those of all bars that it can work out
again from memory, and some before them, for what holds others off."""


class Told:
    """The active signals of one provider and interval, by symbol and name in order of time.

    Args:
        kept: how many of a symbol and name are kept.

    Attributes:
        ends: symbol and name -> times of the last signals that the latest :meth:`revise` has found
            there and that were there before, None if there was none: where they are not the same,
            what follows may be held off by another one than before.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self.ends: dict[tuple[str, str], tuple[int | None, int | None]] = {}
        self._active: dict[str, dict[str, list[Signal]]] = {}

    def learn(self, signals: Iterable[Signal], since: Mapping[str, int] | None = None) -> None:
        """Take over what is stored, in order of time within a symbol and name.

        Args:
            signals: in that order.
            since: symbol -> from when on (UTC ns) a name is read that is known already: what was
                before has been revised since.
        """
        before = {(symbol, name) for symbol, names in self._active.items() for name in names}
        for signal in signals:
            key = signal.symbol, signal.name
            known = key in before and since is not None and signal.ts < since[signal.symbol]
            if signal.state == "active" and not known:
                self._active.setdefault(key[0], {}).setdefault(key[1], []).append(signal)

    def forget(self, symbols: Iterable[str]) -> None:
        """Drop what is known of symbols; it will be read again."""
        for symbol in symbols:
            self._active.pop(symbol, None)

    def revise(
        self,
        found: Sequence[tuple[Signal, int]],
        covered: Mapping[str, tuple[int, int]],
        names: Collection[str],
    ) -> list[Signal]:
        """What changes by what was found: signals that are new or differ, and retractions.

        Args:
            found: what holds now, each with its cooldown in ns, in order of time within a symbol
                and name; signals held off by the one before them are left out here.
            covered: symbol -> least and greatest time (end of the bar, UTC ns) worked out again.
            names: of the signals that could have been found.

        Returns:
            Ordered by symbol, time and name.
        """
        holds: dict[tuple[str, str], list[tuple[Signal, int]]] = {}
        for signal, cooldown_ns in found:
            holds.setdefault((signal.symbol, signal.name), []).append((signal, cooldown_ns))
        changes: list[Signal] = []
        self.ends = {}
        for symbol in covered.keys() & self._active.keys():
            for name in self._active[symbol].keys() & names:
                holds.setdefault((symbol, name), [])
        for (symbol, name), some in holds.items():
            changes += self._revise(symbol, name, some, covered[symbol])
        return sorted(changes, key=lambda signal: (signal.symbol, signal.ts, signal.name))

    def _revise(
        self,
        symbol: str,
        name: str,
        found: Sequence[tuple[Signal, int]],
        covered: tuple[int, int],
    ) -> list[Signal]:
        active = self._active.setdefault(symbol, {}).get(name, [])
        first = bisect_left(active, covered[0], key=_time)
        end = bisect_left(active, covered[1] + 1, key=_time)
        before, later = active[:first], active[end:]
        was = {signal.ts: signal for signal in active[first:end]}
        last = before[-1].ts if before else None
        now: list[Signal] = []
        for signal, cooldown_ns in found:
            if last is None or signal.ts - last >= cooldown_ns:
                now.append(signal)
                last = signal.ts
        stays = {signal.ts for signal in now}
        gone = [
            msgspec.structs.replace(signal, state="retracted")
            for ts, signal in was.items()
            if ts not in stays
        ]
        self.ends[symbol, name] = now[-1].ts if now else None, max(was, default=None)
        # what is later was told by whoever has read further; it will be revised in its turn
        past = [*before, *now]
        self._active[symbol][name] = past[-self._kept :] + later
        return gone + [signal for signal in now if was.get(signal.ts) != signal]


def _time(signal: Signal) -> int:
    return signal.ts
