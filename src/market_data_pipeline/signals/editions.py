"""Rules and models as they follow one another: each bar is evaluated by those of its time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec
import numpy as np
import structlog

from market_data_core.errors import ConfigError
from market_data_pipeline.features.selection import Selection
from market_data_pipeline.signals.checkpoint import NEVER, Edition, Key, Series, SignalsCheckpoint
from market_data_pipeline.signals.evaluator import Evaluator

log = structlog.get_logger("inference")

_KEPT = 8
_FOREVER = 2**62


class Editions:
    """The evaluators of a worker: the present one, and earlier ones that restated bars still need.

    Args:
        current: the present one.
        rebuild: makes the evaluator of another text of rules; None if there are no rules.

    Attributes:
        current: the present one.
    """

    def __init__(
        self, current: Evaluator, rebuild: Callable[[str], Evaluator] | None = None
    ) -> None:
        self.current, self._rebuild = current, rebuild
        self._made: dict[str, Evaluator | None] = {current.version: current}

    def switch(self, evaluator: Evaluator) -> None:
        """Another one is the present one from now on; if there is one like it, that."""
        known = self._made.get(evaluator.version)
        if known and known is not evaluator:
            evaluator.close()
        self.current = self._made[evaluator.version] = known or evaluator

    def keep(self, versions: Collection[str]) -> None:
        """Let go of evaluators that no bar needs any more."""
        for version in self._made.keys() - {*versions, self.current.version}:
            made = self._made.pop(version)
            if made:
                made.close()

    def close(self) -> None:
        """Release everything."""
        for made in filter(None, self._made.values()):
            made.close()

    def of(self, edition: Edition) -> Evaluator | None:
        """The evaluator of an edition; None if it cannot be made any more.

        That is so where features or a model have changed beside the rules.
        """
        if edition.version not in self._made:
            self._made[edition.version] = self._remade(edition)
        return self._made[edition.version]

    def _remade(self, edition: Edition) -> Evaluator | None:
        try:
            made = self._rebuild(edition.text) if self._rebuild else None
        except ConfigError:  # it named a window that is not configured any more, say
            made = None
        if made and made.version == edition.version:
            return made
        if made:
            made.close()
        log.warning(
            "earlier rules or models cannot be had any more; what they gave stays as it is",
            version=edition.version[:12],
        )
        return None

    def joined(
        self, checkpoint: SignalsCheckpoint, reached: Mapping[Key, int]
    ) -> SignalsCheckpoint:
        """A partition's checkpoint with the present one as its latest edition.

        Args:
            checkpoint: as it was.
            reached: provider and interval -> start of the newest bar evaluated, UTC ns.
        """
        editions = self.continued(checkpoint.editions, reached)
        for edition in editions:
            self.of(edition)  # now, so that it is known how far any of them looks
        return msgspec.structs.replace(checkpoint, editions=editions)

    def continued(self, editions: Sequence[Edition], reached: Mapping[Key, int]) -> list[Edition]:
        """A partition's editions, the present one among them.

        Args:
            editions: those so far, the latest last.
            reached: provider and interval -> start of the newest bar evaluated, UTC ns.
        """
        # one that was never used for a bar is as if it had not been
        used = [e for e in editions if any(e.after(key) < last for key, last in reached.items())]
        if not used:
            return [Edition(self.current.version, self.current.text)]
        if used[-1].version == self.current.version:
            return used
        behind = tuple(Series(*key, last) for key, last in sorted(reached.items()))
        return [*used, Edition(self.current.version, self.current.text, behind)][-_KEPT:]

    def reach(self, interval_ns: int) -> int:
        """How many bars, at most, look at a bar, by any evaluator so far; 0 if nothing does."""
        needs = [made.needs(interval_ns) for made in self._made.values() if made]
        return max((one.reach for one in needs if one), default=0)

    def indices(self, interval_ns: int) -> tuple[str, ...]:
        """The symbols that others are compared with, by any evaluator so far."""
        made = filter(None, self._made.values())
        return tuple(sorted({symbol for one in made for symbol in one.indices(interval_ns)}))

    @property
    def compared_with(self) -> frozenset[str]:
        """The symbols that any others are compared with, at bars of any interval so far."""
        made = filter(None, self._made.values())
        return frozenset(symbol for one in made for symbol in one.compared_with)

    @property
    def cooldown_ns(self) -> int:
        """The longest cooldown of any of them."""
        return max(made.cooldown_ns for made in self._made.values() if made)


class EditionsOf:
    """Implements :class:`market_data_pipeline.signals.ranges.Evaluators`: each bar by its edition.

    Args:
        editions: the evaluators.
        key: provider and interval of the bars.
        of: symbol -> the editions of its partition, the latest last.
        until: symbol -> start of its newest bar that is due, UTC ns: what is stored behind it comes
            later, when it may be another edition's.

    Attributes:
        passed: bars that nobody evaluates, since those of their time cannot be had any more.
    """

    def __init__(
        self,
        editions: Editions,
        key: Key,
        of: Callable[[str], Sequence[Edition]],
        until: Callable[[str], int],
    ) -> None:
        self._editions, self._key, self._of, self._until = editions, key, of, until
        self.passed = 0
        self.session_gap_ns = editions.current.session_gap_ns

    @property
    def cooldown_ns(self) -> int:
        """The longest cooldown of any of them."""
        return self._editions.cooldown_ns

    def reach(self, interval_ns: int) -> int:
        """How many bars, at most, look at a bar; 0 if nothing does."""
        return self._editions.reach(interval_ns)

    def indices(self, interval_ns: int) -> tuple[str, ...]:
        """The symbols that others are compared with."""
        return self._editions.indices(interval_ns)

    def parts(self, selection: Selection) -> Iterator[tuple[Evaluator, Selection]]:
        """The bars by who evaluates them, the earliest first; some may have no evaluator."""
        here = np.unique(selection.codes).tolist()
        of = {code: self._of(selection.symbols[code]) for code in here}
        most, symbols = max(map(len, of.values()), default=0), len(selection.symbols)
        until = np.full(symbols, NEVER)
        after = np.full((most, symbols), _FOREVER)  # of the latest edition, the one before, ...
        for code in here:
            until[code] = self._until(selection.symbols[code])
            borders = [edition.after(self._key) for edition in reversed(of[code])]
            after[: len(borders), code] = borders
        starts, codes = selection.starts, selection.codes
        behind = (starts > after[:, codes]) & (starts <= until[codes])
        for back in reversed(range(most)):
            rows = np.flatnonzero(behind[back] & ~behind[:back].any(axis=0))
            whose = {code: of[code][-1 - back] for code in np.unique(codes[rows]).tolist()}
            for edition in {one.version: one for one in whose.values()}.values():
                its = [code for code, one in whose.items() if one.version == edition.version]
                evaluator, part = self._editions.of(edition), rows[np.isin(codes[rows], its)]
                if evaluator:
                    yield evaluator, selection.take(part)
                else:
                    self.passed += len(part)
