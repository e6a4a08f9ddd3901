"""Our side: the window engine alone, the whole path, and the figures of the live edge.

Each function is one run and times itself, so that starting and cleaning up stay outside the clock.
What it returns is checked against the expected answer like everybody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from benchmarks.contender import Contender, Figure, Result
from benchmarks.workload import Cache
from market_data_core.events import EventBatch


def _not_wired(*_arguments: object) -> NoReturn:
    message = "not wired yet"
    raise SystemExit(message)


def engine_only(batches: Sequence[EventBatch]) -> Result:
    """The window engine over ready batches, to the last bar; nothing is stored."""
    _not_wired(batches)


def whole_path_columns(batches: Sequence[EventBatch], synchronous: str) -> Result:
    """Batches → durable embedded bus → engine → store, from the first event to the last commit.

    Args:
        batches: in arrival order.
        synchronous: SQLite's setting of that name for bus and store, ``NORMAL`` or ``FULL``.
    """
    _not_wired(batches, synchronous)


def whole_path_ndjson(path: Path) -> Result:
    """A file of single version-1 events → bus → engine → store, to the last commit."""
    _not_wired(path)


def live_edge() -> list[Figure]:
    """One producer fed single events: its greatest rate, and the delay to durable at 10 k/s."""
    _not_wired()


def bar_latency() -> list[Figure]:
    """Delay from a window's end plus the lateness to its committed bar, live at 10 k events/s."""
    _not_wired()


def memory() -> list[Figure]:
    """Resident size of the whole path at 50 k events/s, and its growth."""
    _not_wired()


CONTENDERS = (
    Contender(
        "ours-engine", "engine", engine_only, lambda c: c.load().batches(), cores=1, ours=True
    ),
    *(
        Contender(
            f"ours-columns-{synchronous.lower()}",
            "columns",
            partial(whole_path_columns, synchronous=synchronous),
            lambda cache: cache.load().batches(),
            ours=True,
            remark=f"durable, SQLite synchronous={synchronous}",
        )
        for synchronous in ("NORMAL", "FULL")
    ),
    Contender(
        "ours-ndjson",
        "ndjson",
        whole_path_ndjson,
        Cache.write_ndjson,
        ours=True,
        remark="durable, SQLite synchronous=NORMAL",
    ),
    Contender("live-edge", "live", lambda _: live_edge(), rounds_max=1, ours=True),
    Contender("bar-latency", "live", lambda _: bar_latency(), rounds_max=1, ours=True),
    Contender("memory", "live", lambda _: memory(), rounds_max=1, ours=True),
)
