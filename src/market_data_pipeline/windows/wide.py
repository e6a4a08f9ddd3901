"""Wider bars, merged from base bars: the same result as from the events, without keeping them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from market_data_pipeline.windows.aggregate import Bars, concat_bars, merge_bars
from market_data_pipeline.windows.assigner import FOREVER, floor_to, window_keys, window_starts


class WideWindows:
    """Every interval longer than the base window, for one stream.

    Base bars above the final watermark are kept one by one, because they can still be restated;
    those below it are merged into one settled row for each wide window that is still open. The
    settled rows are part of the checkpoint, so that no restart reads more than the horizon.
    """

    def __init__(
        self, base_ns: int, wide_ns: Iterable[int], settled: Mapping[int, Bars] | None = None
    ) -> None:
        self._base_ns = base_ns
        self._wide_ns = tuple(wide_ns)
        self.settled: dict[int, Bars] = dict(settled or {})
        self._recent: list[Bars] = []

    def keep(self, base: Bars) -> None:
        """Take base bars; a later version of a bar replaces the earlier one."""
        if self._wide_ns and len(base):
            self._recent.append(base)

    def closed(self, before: int, now: int) -> list[tuple[int, Bars]]:
        """Bars of all wide windows that end within (before, now], by interval."""
        out = []
        for length in self._wide_ns:
            low, high = floor_to(before, length), floor_to(now, length)
            if high > low:
                rows = self._rows(length, low, high)
                if rows is not None:
                    out.append((length, merge_bars(rows, length)))
        return out

    def next_end(self, closed: int) -> int:
        """End of the wide window that is next to close, FOREVER if none is open."""
        ends = [FOREVER]
        for length in self._wide_ns:
            for bars in (self.settled.get(length), *self._recent):
                if bars is not None and len(bars):
                    end = window_starts(bars.start, length) + length
                    ends += [int(end[end > closed].min())] if (end > closed).any() else []
        return min(ends)

    def restated(self, base: Bars, closed: int) -> list[tuple[int, Bars]]:
        """New versions of the closed wide windows that the restated `base` bars lie in."""
        out = []
        for length in self._wide_ns:
            start = window_starts(base.start, length)
            wanted = base.take(start + length <= closed)
            if len(wanted):
                low = int(start.min())
                rows = self._rows(length, low, int(start.max()) + length)
                if rows is not None:
                    keys = window_keys(wanted.codes, wanted.start, length)
                    rows = rows.take(np.isin(window_keys(rows.codes, rows.start, length), keys))
                    out.append((length, merge_bars(rows, length)))
        return out

    def _rows(self, length: int, low: int, high: int) -> Bars | None:
        """Base and settled rows that lie in [low, high)."""
        self._compact()
        parts = [b for b in (self.settled.get(length), *self._recent) if b is not None]
        if not parts:
            return None
        rows = concat_bars(parts)
        rows = rows.take((rows.start >= low) & (rows.start < high))
        return rows if len(rows) else None

    def _compact(self) -> None:
        """Keep the latest version of each recent base bar."""
        if len(self._recent) > 1:
            rows = concat_bars(self._recent)
            keys = window_keys(rows.codes, rows.start, self._base_ns)
            _, from_end = np.unique(keys[::-1], return_index=True)
            self._recent = [rows.take(np.sort(len(rows) - 1 - from_end))]

    def resettle(self, base: Bars, final: int) -> None:
        """Replace the settled rows by what the `base` bars below the final watermark give."""
        for length in self._wide_ns:
            rows = base.take(window_starts(base.start, length) + length > final)
            self.settled[length] = merge_bars(rows, length) if len(rows) else rows

    def settle(self, final: int) -> None:
        """Merge what lies below the final watermark; forget wide windows that are final too."""
        if not self._wide_ns:
            return
        self._compact()
        done = self._recent[0].start + self._base_ns <= final if self._recent else np.zeros(0, bool)
        old = self._recent[0].take(done) if done.any() else None
        for length in self._wide_ns:
            parts = [b for b in (self.settled.get(length), old) if b is not None]
            if parts:
                rows = concat_bars(parts)
                rows = rows.take(window_starts(rows.start, length) + length > final)
                self.settled[length] = merge_bars(rows, length) if len(rows) else rows
        if old is not None:
            rest = self._recent[0].take(~done)
            self._recent = [rest] if len(rest) else []
