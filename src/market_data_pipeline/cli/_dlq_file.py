"""Dead-letter files of write coordinators: listed, shown, purged."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import typer

from market_data_core._suggest import did_you_mean
from market_data_core.errors import MdpError, UsageError
from market_data_pipeline.cli import _output
from market_data_store.coordinator import UNREADABLE, DeadLetterQueue, DeadLine, Selection

_COLUMNS = ("id", "ts", "reason", "type", "items", "error_type", "error")
_PREVIEW_BYTES = 2048
_CELL = 120


@contextmanager
def opened(file: Path) -> Iterator[DeadLetterQueue[Any]]:
    """The dead letters of a file.

    Raises:
        UsageError: there is no such file.
        MdpError: it cannot be read or written.
    """
    queue: DeadLetterQueue[Any] = DeadLetterQueue(file)
    try:
        if not queue.exists():
            msg = f"--file {file}: there is no dead-letter file of that name"
            raise UsageError(msg)
        if file.is_dir():
            msg = f"--file {file} is a folder; name a dead-letter file in it"
            raise UsageError(msg)
        yield queue
    except BrokenPipeError:  # of the output
        raise
    except OSError as error:
        msg = f"--file {file}: {error.strerror or error}"
        raise MdpError(msg) from error


async def list_records(file: Path, wanted: Selection, keep: int | None, form: str) -> None:
    """Counts by reason and the last `keep` records, or those alone for a program."""
    with opened(file) as queue:
        found = await queue.lines(wanted)
        shown = found[-keep:] if keep else found
        if form != "table":
            _output.write_rows([_row(line) for line in shown], _COLUMNS, form)
            return
        damaged = await queue.purge(reason="unreadable", dry_run=True)
        counts = count(found)
        if found:
            rows = [(reason, records, items) for reason, (records, items) in counts.items()]
            _output.show_table(("reason", "records", "items"), rows, right=("records", "items"))
            title = f"The last {len(shown):,} of {len(found):,} records"
            cells = [[_short(value) for value in _row(line).values()] for line in shown]
            _output.show_table(_COLUMNS, cells, title, ("items",))
        else:
            typer.echo(nothing_fits(await queue.counts()))
        if damaged:
            typer.echo(f"{damaged:,} damaged lines; mdp dlq purge --reason unreadable removes them")
        if away := await queue.handed_out():
            typer.echo(f"{away:,} records are in the hands of a running process")


async def show_record(file: Path, record_id: str, raw: bool) -> None:
    """Everything about one record; with `raw` its items as JSON alone.

    Raises:
        MdpError: there is no such record.
    """
    with opened(file) as queue:
        found = await queue.lines(Selection(ids=frozenset([record_id])))
        if not found:
            ids = [line.id for line in await queue.lines()]
            msg = f"there is no record {record_id!r} in {file}; {did_you_mean(record_id, ids)}"
            raise MdpError(msg)
    line, items = found[0], bytes(found[0].items)
    if raw:
        _output.write_bytes(items + b"\n")
        return
    about = {name: value for name, value in _row(line).items() if name != "items"}
    about["metadata"] = msgspec.json.encode(line.metadata).decode()
    about["encoding"] = line.encoding
    for name, value in about.items():
        typer.echo(f"{name:<10} {_output.cell_text(value)}")
    text = items[:_PREVIEW_BYTES].decode(errors="replace")
    typer.echo(f"{'items':<10} {text}")
    if len(items) > _PREVIEW_BYTES:
        sys.stderr.write(f"{len(items) - _PREVIEW_BYTES:,} more bytes; --raw gives all\n")


async def purge_records(file: Path, wanted: Selection, dry_run: bool, yes: bool) -> None:
    """Remove what is selected, after asking, and say how many of each reason.

    Raises:
        UsageError: it would have to ask, and nobody can answer.
    """
    with opened(file) as queue:
        asked = datetime.now(UTC)  # what is saved after that nobody was asked about
        found = await _purge(queue, wanted, asked, dry_run=True)
        if not found:
            typer.echo(nothing_fits(await queue.counts()))
            return
        if not dry_run:
            _output.confirm(f"Remove {found.total():,} records of {file} for good?", yes)
            found = await _purge(queue, wanted, asked, dry_run=False)
    verb = "would be removed" if dry_run else "removed"
    for reason, number in found.most_common():
        typer.echo(f"{reason}: {number:,} {verb}")
    typer.echo(f"{found.total():,} records {verb}")


async def _purge(
    queue: DeadLetterQueue[Any], wanted: Selection, asked: datetime, *, dry_run: bool
) -> Counter[str]:
    """How many of each reason were, or would be, removed, of what was there when it was `asked`."""
    removed: Counter[str] = Counter()
    for reason in await queue.counts():
        if wanted.reason in (None, reason):
            removed[reason] = await queue.purge(
                ids=None if wanted.ids is None else sorted(wanted.ids),
                reason=reason,
                type=wanted.type,
                since=wanted.since,
                before=wanted.before
                if reason == UNREADABLE
                else min(wanted.before or asked, asked),
                dry_run=dry_run,
            )
    return +removed


def count(lines: Sequence[DeadLine]) -> dict[str, tuple[int, int]]:
    """Records and items by reason, most records first."""
    records, items = Counter[str](), Counter[str]()
    for line in lines:
        records[line.reason] += 1
        items[line.reason] += line.count
    return {reason: (number, items[reason]) for reason, number in records.most_common()}


def nothing_fits(counts: dict[str, int]) -> str:
    """A sentence for a selection that fits nothing."""
    if not counts:
        return "no dead letters"
    there = ", ".join(f"{reason} ({number:,})" for reason, number in counts.items())
    return f"no dead letters that fit the selection; by reason there are: {there}"


def _row(line: DeadLine) -> dict[str, object]:
    values = (
        line.id,
        f"{line.ts:%Y-%m-%dT%H:%M:%S.%fZ}",
        line.reason,
        line.type,
        line.count,
        line.error_type,
        line.error,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _short(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
