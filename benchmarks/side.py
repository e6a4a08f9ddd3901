"""A contender as the runner sees it: a process that is prepared once and run again and again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Any

import msgspec

from benchmarks.contender import EXTRA_PYTHON, INSTALL, ROOT, Contender

_THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_ERROR_TAIL = 300


@dataclass(slots=True)
class Side:
    """One contender's process and what it has answered so far.

    Attributes:
        contender: what is run.
        module: the module of `benchmarks` that defines it.
        events: number of events of the workload.
        seconds: one time per round that gave the right answer.
        figures: from contenders that measure figures instead.
        problem: why there is nothing to show, "" if all is well.
        versions: of the packages it requires.
    """

    contender: Contender
    module: str
    events: int
    seconds: list[float] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _errors: Any = None

    def wants(self, round_: int) -> bool:
        """Whether it takes part in this round (0-based)."""
        most = self.contender.rounds_max
        return not self.problem and (not most or round_ < most)

    def start(self) -> None:
        """Start the process and wait until its input is ready."""
        python = str(EXTRA_PYTHON) if self.contender.optional else sys.executable
        if self.contender.optional and not EXTRA_PYTHON.exists():
            self.problem = f"not installed; get it by: {INSTALL}"
            return
        command = [python, "-m", "benchmarks.worker", self.contender.name, self.module]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        if self.contender.cores:
            environment |= dict.fromkeys(_THREADS, str(self.contender.cores))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        self._process = subprocess.Popen(
            [*command, str(self.events)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._hear()  # its versions
        self._hear()  # ready

    def run(self) -> None:
        """One round."""
        if self._process is None:
            self.start()
        if self._process and self._process.stdin and not self.problem:
            self._process.stdin.write(b"run\n")
            self._process.stdin.flush()
            self._hear()
        if self.contender.fresh:
            self.stop()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.communicate()
            self._errors.close()
            self._process = None

    def _hear(self) -> None:
        if self.problem or not self._process or not self._process.stdout:
            return
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace").strip()[-_ERROR_TAIL:]
            self.problem = f"failed: {' '.join(tail.split())}"
            return
        answer = msgspec.json.decode(line)
        self.versions |= answer.get("versions", {})
        self.figures += answer.get("figures", [])
        self.problem = answer.get("skip", "")
        if answer.get("mismatch"):
            self.problem = f"WRONG ANSWER: {answer['mismatch']}"
            self.seconds.clear()
        elif "seconds" in answer:
            self.seconds.append(answer["seconds"])
