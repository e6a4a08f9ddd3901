"""How long ``mdp --help`` takes, from the start of the process to its end."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.contender import Contender, Figure

RUNS = 20


def _median_ms(command: list[str]) -> float:
    times = []
    for _ in range(RUNS + 1):
        started = perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        times.append(perf_counter() - started)
    return statistics.median(times[1:]) * 1e3  # the first run fills the file cache


def measure() -> list[Figure]:
    """``mdp --help``, and an empty Python program for scale.

    Raises:
        SystemExit: the command is not installed beside this interpreter, or fails.
    """
    command = Path(sys.executable).with_name("mdp")
    try:
        ours = _median_ms([str(command), "--help"])
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"{command} --help does not run: {error}"
        raise SystemExit(message) from error
    empty = _median_ms([sys.executable, "-c", "pass"])
    return [
        Figure("mdp --help", ours, "ms", "<= 150"),
        Figure("python -c pass", empty, "ms"),
    ]


CONTENDERS = (Contender("cli-start", "start", lambda _: measure(), rounds_max=1, ours=True),)

if __name__ == "__main__":
    for figure in measure():
        print(f"{figure.name}: {figure.value:.0f} {figure.unit} {figure.bound}")
