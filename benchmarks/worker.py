"""One contender in a process of its own: prepares, then runs once for every line it is sent.

Started by ``python -m benchmarks``. Answers are one JSON object a line; whatever a library prints
goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import os
import sys
from dataclasses import asdict
from typing import Any

import msgspec

from benchmarks.contender import CACHE, INSTALL, Contender
from benchmarks.workload import Answer, Cache

_TURN_S = 1.0
_TURN_RUNS_MAX = 7
MODULES = (
    "ours",
    "duckdb_batch",
    "polars_batch",
    "python_loop",
    "nautilus_aggregator",
    "bytewax_flow",
    "quixstreams_flow",
    "pathway_flow",
    "brokers",
    "scale",
    "inference",
    "store",
    "cli_start",
)
"""One module per competitor; each imports its library only when it is prepared or run."""


def contenders_of(module: str) -> tuple[Contender, ...]:
    """The sides that `module` defines."""
    sides: tuple[Contender, ...] = importlib.import_module(f"benchmarks.{module}").CONTENDERS
    return sides


def pin(cores: int) -> None:
    """Bind this process to `cores` processors, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


def _versions(contender: Contender) -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in contender.requires}
    except importlib.metadata.PackageNotFoundError as error:
        message = f"{error.name} is not installed; get it by: {INSTALL}"
        raise SystemExit(message) from error


def _serve(name: str, module: str, events: int, say: Any) -> None:
    contender = next(c for c in contenders_of(module) if c.name == name)
    pin(contender.cores)
    cache = Cache(CACHE, events)
    expected = cache.answer()
    say({"versions": _versions(contender)})
    prepared = contender.prepare(cache)
    say({})
    for _ in sys.stdin:
        say(_turn(contender, prepared, expected))


def _turn(contender: Contender, prepared: Any, expected: Answer) -> dict[str, Any]:
    """One round: the best of the runs that fit into a second, of at least one.

    Between its turns a process loses its warmth (caches, the allocator's pages), which costs the
    fastest libraries more than half of their rate; so a short run is repeated.
    """
    times: list[float] = []
    while sum(times) < _TURN_S and len(times) < _TURN_RUNS_MAX:
        gc.collect()
        outcome = contender.run(prepared)
        if isinstance(outcome, list):
            return {"figures": [asdict(figure) | {"holds": figure.holds} for figure in outcome]}
        if mismatch := outcome.answer.mismatch(expected):
            return {"mismatch": mismatch}
        times.append(outcome.seconds)
    return {"seconds": min(times)}


def main() -> None:
    """Serve the contender named on the command line: name, module, events."""
    name, module, events = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(msgspec.json.encode(message).decode() + "\n")
        answers.flush()

    try:
        _serve(name, module, int(events), say)
    except SystemExit as stop:
        say({"skip": str(stop)})


if __name__ == "__main__":
    main()
