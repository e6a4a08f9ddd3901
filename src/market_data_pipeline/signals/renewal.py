"""Watches the files of rules and models, so that a change takes effect while a worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from market_data_core.errors import MdpError
from market_data_pipeline import metrics
from market_data_pipeline.signals.evaluator import Evaluator

log = structlog.get_logger("inference")

_State = tuple[tuple[int, int] | None, ...]
"""Time of the last change (ns) and size of each file; None for one that is not there."""


class Renewal:
    """What is computed from now on, if a file has changed.

    A file that is just being written is left until two looks find it the same. Rules or a model
    that are wrong change nothing: that is told once, and those so far go on.

    Args:
        files: what is watched.
        build: reads them all again; may block.
        version: of what they give now.
    """

    def __init__(self, files: Sequence[Path], build: Callable[[], Evaluator], version: str) -> None:
        self._files, self._build, self._version = files, build, version
        self._seen = self._found = self._look()

    async def __call__(self) -> Evaluator | None:
        """A new evaluator; None if there is nothing new, or nothing that could be used."""
        before, self._found = self._found, self._look()
        state = self._found
        if state == self._seen or state != before:
            return None
        gone = [file for file, now in zip(self._files, state, strict=True) if now is None]
        if gone and any(was for was, now in zip(self._seen, state, strict=True) if now is None):
            log.warning("a file of rules or models is gone; those so far go on", file=str(gone[0]))
            metrics.ERRORS.labels("inference", "renewal").inc()
            self._seen = state
            return None
        self._seen = state
        try:
            made = await asyncio.to_thread(self._build)
        except MdpError as error:
            log.warning("rules or models have changed and are not used", error=str(error))
            metrics.ERRORS.labels("inference", "renewal").inc()
            return None
        if made.version == self._version:
            made.close()
            return None
        self._version = made.version
        log.info("rules or models have changed", version=made.version[:12])
        return made

    def _look(self) -> _State:
        found: list[tuple[int, int] | None] = []
        for file in self._files:
            try:
                stat = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_mtime_ns, stat.st_size))
        return tuple(found)
