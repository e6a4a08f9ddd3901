"""``mdp dlq replay --file``: dead letters through a write coordinator into the store."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from market_data_core.config import Settings
from market_data_core.contracts.store import WriteCounts
from market_data_pipeline.cli import _dlq_file, _writing
from market_data_pipeline.cli._dlq_writing import DRAIN_S, Failures, Handed
from market_data_store.coordinator import (
    DeadLetterQueue,
    DeadLine,
    DeadRecord,
    Selection,
    WriteCoordinator,
)

_RECORDS_AT_ONCE = 500


class _Outcome:
    """What became of the records."""

    def __init__(self) -> None:
        self.stored = 0
        self.absent = 0
        self.failed: Counter[str] = Counter()
        self.rows: dict[str, WriteCounts] = {}


async def replay(
    settings: Settings, file: Path, wanted: Selection, limit: int | None, dry_run: bool
) -> bool:
    """Write the records that are selected; True if all of them are stored."""
    with _dlq_file.opened(file) as queue:
        found = (await queue.lines(wanted))[:limit]
        if not found:
            typer.echo(_dlq_file.nothing_fits(await queue.counts()))
            return True
        plan = _plan(found)
        odd = plan.pop(None, [])
        for reason, number in Counter(map(_why_not, odd)).items():
            sys.stderr.write(f"{number:,} records stay: {reason}\n")
        if dry_run:
            for table, lines in plan.items():
                items = sum(line.count for line in lines)
                typer.echo(f"{len(lines):,} records ({items:,} items) would be written: {table}")
            return not odd
        outcome = _Outcome()
        try:
            if plan:
                await _write(settings, queue, plan, outcome)
        finally:
            await queue.close()
            _tell(file, outcome)
        return not (odd or outcome.failed or outcome.absent)


def _plan(lines: Sequence[DeadLine]) -> dict[str | None, list[DeadLine]]:
    """The records by the table that they go to, None for those that go nowhere."""
    plan: dict[str | None, list[DeadLine]] = {}
    for line in lines:
        table = _writing.TABLE_OF.get(line.type) if line.replayable else None
        plan.setdefault(table, []).append(line)
    return plan


def _why_not(line: DeadLine) -> str:
    if not line.replayable:
        return f"items of type {line.type} were kept for reading only"
    return f"there is no table for items of type {line.type}"


async def _write(
    settings: Settings,
    queue: DeadLetterQueue[Any],
    plan: Mapping[str | None, Sequence[DeadLine]],
    outcome: _Outcome,
) -> None:
    async with _writing.open_ready(settings) as store:
        for table, lines in plan.items():
            assert table is not None  # noqa: S101
            failures = Failures(queue.path)
            sink = _writing.Tally(_writing.sink_of(store, table), lambda handed: handed.item)
            outcome.rows[table] = sink.counts
            # One worker: rows of one key are written in the order in which they were set aside.
            async with WriteCoordinator[Handed](
                sink=sink,
                dlq=failures,
                coord_id=f"replay-{table}",
                workers=1,
                drain_timeout=DRAIN_S,
            ) as coordinator:
                for ids in _chunks([line.id for line in lines]):
                    records = await queue.replay(len(ids), ids=ids)
                    outcome.absent += len(ids) - len(records)
                    await coordinator.submit_many(
                        Handed(item, record.id) for record in records for item in record.items
                    )
                    await coordinator.flush()
                    await _settle(queue, records, failures, outcome)


def _chunks(ids: Sequence[str]) -> Iterator[frozenset[str]]:
    for start in range(0, len(ids), _RECORDS_AT_ONCE):
        yield frozenset(ids[start : start + _RECORDS_AT_ONCE])


async def _settle(
    queue: DeadLetterQueue[Any],
    records: Sequence[DeadRecord[Any]],
    failures: Failures,
    outcome: _Outcome,
) -> None:
    """Remove what is stored, and put back what failed again."""
    stored = []
    for record in records:
        failed = failures.pop(record.id)
        if not failed:
            stored.append(record)
            continue
        _, error, reason = failed[0]
        about = {"reason": reason, "replays": int(record.metadata.get("replays", 0)) + 1}
        await queue.set_aside_again(record, [item for item, _, _ in failed], error, about)
        outcome.failed[f"{reason}: {type(error).__name__}: {error}"] += 1
    await queue.confirm(stored)
    outcome.stored += len(stored)


def _tell(file: Path, outcome: _Outcome) -> None:
    for table, counts in outcome.rows.items():
        typer.echo(f"{table}: {_writing.shown_counts(counts)}")
    typer.echo(f"{outcome.stored:,} records stored and removed from {file}")
    for error, number in outcome.failed.most_common():
        sys.stderr.write(f"{number:,} records failed again and stay: {error}\n")
    if outcome.absent:
        sys.stderr.write(
            f"{outcome.absent:,} records cannot be read, or another process took them\n"
        )
