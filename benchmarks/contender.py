"""What one side of a benchmark is: prepared outside the clock, run inside it, checked after it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workload import Answer, Cache

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
EXTRA_PYTHON = ROOT / ".cache" / "bench-venv" / "bin" / "python"
"""Interpreter of the optional competitors, apart so that the project's environment stays clean."""
INSTALL = (
    "python -m venv .cache/bench-venv && "
    ".cache/bench-venv/bin/pip install -r benchmarks/requirements.txt"
)


@dataclass(frozen=True, slots=True)
class Result:
    """One timed run.

    Attributes:
        seconds: from the first event's start to the last bar, by ``time.perf_counter``.
        answer: what was found, for the check.
    """

    seconds: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number that is held against a bound instead of a competitor.

    Attributes:
        name: what was measured.
        value: the number.
        unit: its unit.
        bound: e.g. ``<= 10``; "" for a figure that only gives scale.
    """

    name: str
    value: float
    unit: str
    bound: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; None without a bound."""
        if not self.bound:
            return None
        sense, limit = self.bound.split()
        return self.value >= float(limit) if sense == ">=" else self.value <= float(limit)


Outcome = Result | list[Figure]


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def nothing(_cache: Cache) -> None:
    """The preparation of a contender that needs none."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One side.

    Attributes:
        name: unique, as typed on the command line.
        group: the table it stands in.
        run: one run over what `prepare` made; called once per round.
        prepare: makes the input ready, outside the clock.
        cores: processor cores and library threads it may use; 0 for all.
        requires: packages (distribution names) it needs besides the project's own.
        optional: runs in the interpreter of the optional competitors.
        ours: the side that the others are compared with.
        rounds_max: fewer rounds for the very slow; 0 for as many as asked for.
        fresh: a new process for every round, for libraries that run once per process.
        remark: what the contender leaves out, or is given for free.
    """

    name: str
    group: str
    run: Callable[[Any], Outcome]
    prepare: Callable[[Cache], Any] = nothing
    cores: int = 0
    requires: tuple[str, ...] = ()
    optional: bool = False
    ours: bool = False
    rounds_max: int = 0
    fresh: bool = False
    remark: str = ""


BarRow = tuple[float, float, float, float, float, float, int]
"""open, high, low, close, volume, vwap, count."""


def answer_of(bars: Iterable[BarRow], duplicates: int | None) -> Answer:
    """The answer of a contender that yields its bars as rows."""
    columns = list(zip(*bars, strict=True)) or [()] * 7
    sums = [math.fsum(column) for column in columns[:6]]
    return Answer(len(columns[0]), sum(columns[6]), duplicates, *sums)
