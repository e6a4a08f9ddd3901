"""``mdp store export`` and ``mdp store import``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import typer

from market_data_core.config import Settings
from market_data_core.errors import MdpError
from market_data_core.tables import Select
from market_data_pipeline.backends import missing_store
from market_data_pipeline.cli import _writing
from market_data_store.coordinator import DeadLetterQueue, WriteCoordinator
from market_data_store.transfer import export_rows, import_rows

FileForm = Literal["ndjson", "parquet"]

_TOLD_MAX = 20
_KEPT_AT_ONCE = 500


async def export_table(settings: Settings, select: Select, path: str, form: FileForm) -> int:
    """Write what is selected to a file; returns how many rows.

    Raises:
        MdpError: there is no store yet.
        UsageError: the file cannot be written.
    """
    absent = missing_store(settings)
    if absent:
        raise MdpError(absent)
    async with _writing.open_ready(settings) as store:
        return await export_rows(store, select, path, form)


class _Refused:
    """Tells of rows that were not stored, and keeps them in a dead-letter file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._queue: DeadLetterQueue[Any] = DeadLetterQueue(path)
        self._lines: list[tuple[Sequence[Any], str]] = []

    def _tell(self, text: str) -> None:
        self.count += 1
        if self.count <= _TOLD_MAX:
            sys.stderr.write(f"{text}\n")

    async def line(self, number: int, reason: str, original: bytes) -> None:
        """A row of the file is not valid."""
        self._tell(f"line {number}: {reason}")
        text = original.decode(errors="backslashreplace")
        self._lines.append(([text], f"line {number}: {reason}"))
        if len(self._lines) >= _KEPT_AT_ONCE:
            await self.keep()

    async def keep(self) -> None:
        """Make what was told of durable.

        Raises:
            MdpError: the dead-letter file cannot be written.
        """
        lines, self._lines = self._lines, []
        try:
            await self._queue.save_all(lines, {"reason": "invalid"})
        except OSError as error:
            msg = f"{len(lines):,} rows could not be kept in {self.path}: {error.strerror or error}"
            raise MdpError(msg) from error

    async def save_all(
        self,
        failed: Sequence[tuple[Sequence[Any], BaseException | str]],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """The store refused items."""
        await self._queue.save_all(failed, metadata)
        for items, error in failed:
            for item in items:
                self._tell(f"{item}: {error}")


async def import_table(settings: Settings, table: str, path: str, form: FileForm) -> bool:
    """Write the rows of a file into a table; True if all of them were stored.

    Raises:
        UsageError: the file cannot be read.
    """
    name = f"import-{table}"
    refused = _Refused(Path(".dlq") / f"{name}.ndjson")
    async with _writing.open_ready(settings) as store:
        sink = _writing.Tally(_writing.sink_of(store, table))
        try:
            # One worker: of rows with one key the last one counts.
            async with WriteCoordinator[Any](
                sink=sink, dlq=refused, coord_id=name, workers=1
            ) as coordinator:
                await import_rows(
                    path,
                    form,
                    lambda row: _writing.record_of(table, row),
                    coordinator.submit_many,
                    refused.line,
                )
                await coordinator.flush()
        finally:
            await refused.keep()
    typer.echo(f"{table}: {_writing.shown_counts(sink.counts)}")
    if refused.count > _TOLD_MAX:
        sys.stderr.write(f"… and {refused.count - _TOLD_MAX:,} more\n")
    if refused.count:
        sys.stderr.write(f"{refused.count:,} rows were not stored; they are in {refused.path}\n")
    return not refused.count
