"""What the reading commands share: options, times, tables for people and lines for machines."""

from __future__ import annotations

import io
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    import polars as pl

    from market_data_core.config import Settings

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration; default ./configs/streaming.yaml."),
]
_PLAIN_WIDTH = 240


def load_settings(config: Path | None) -> Settings:
    """The settings, with warnings and errors alone in the log so that output stays clean.

    Raises:
        ConfigError: the file is wrong.
    """
    from market_data_core.config import load_config
    from market_data_pipeline.telemetry import configure_logging

    configure_logging("WARNING")
    return load_config(config)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; Ctrl-C ends the command with code 0."""
    import asyncio  # a tenth of what starting the command takes

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def parse_when(text: str | None, option: str) -> int | None:
    """UTC nanoseconds of an ISO 8601 time or date, None for none.

    Raises:
        UsageError: `text` is neither.
    """
    from market_data_core.errors import RejectedError, UsageError
    from market_data_core.events import parse_ts

    if text is None:
        return None
    try:
        return parse_ts(text)
    except RejectedError as error:
        msg = f"{option} {text!r}: {error}; write 2025-10-24 or 2025-10-24T14:02:00Z (UTC)"
        raise UsageError(msg) from error


def parse_range(
    from_: str | None, to: str | None, options: tuple[str, str] = ("--from", "--to")
) -> tuple[int | None, int | None]:
    """Two options, the second one exclusive, in UTC nanoseconds.

    Raises:
        UsageError: one is not a time, or there is nothing between them.
    """
    from market_data_core.errors import UsageError

    first, last = options
    start, end = parse_when(from_, first), parse_when(to, last)
    if start is not None and end is not None and start >= end:
        msg = f"{first} {from_!r} is not before {last} {to!r}, which is exclusive"
        raise UsageError(msg)
    return start, end


def confirm(question: str, yes: bool) -> None:
    """Ask on the terminal, unless `yes` says the answer; ends the command with 1 if it is no.

    Raises:
        UsageError: nobody is there to answer.
    """
    from market_data_core.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        msg = f"{question} Nobody can be asked here; say --yes"
        raise UsageError(msg)
    if not typer.confirm(question):
        raise typer.Exit(1)


def check_limit(limit: int | None) -> None:
    """Refuse a limit that is not positive.

    Raises:
        UsageError: it is not.
    """
    from market_data_core.errors import UsageError

    if limit is not None and limit < 1:
        msg = f"--limit {limit} must be 1 or more"
        raise UsageError(msg)


def canonical(interval: str | None) -> str | None:
    """The one spelling of an interval, None for none.

    Raises:
        UsageError: it is not an interval.
    """
    from market_data_core.intervals import canonical_interval

    return None if interval is None else canonical_interval(interval)


def symbols_of(text: str | None) -> frozenset[str] | None:
    """Symbols separated by commas, in any case, as upper case; None for any."""
    names = [part.strip().upper() for part in (text or "").split(",")]
    return frozenset(filter(None, names)) or None


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    right: Sequence[str] = (),
    output: Path | None = None,
) -> None:
    """A table for people: as wide as the terminal, elsewhere plain and wide.

    Args:
        columns: headings.
        rows: cells; None stands for no value.
        title: a line above.
        right: columns of numbers.
        output: a file instead of standard output.

    Raises:
        UsageError: the file cannot be written.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))

    if output is None and sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    console = Console(highlight=False, width=_PLAIN_WIDTH, color_system=None)
    with console.capture() as shown:
        console.print(table)
    # boxes pad every line to their full width
    text = "".join(line.rstrip() + "\n" for line in shown.get().rstrip().splitlines())
    write_bytes(text.encode(), output)


def cell_text(value: object) -> str:
    """A value as people read it: prices without the noise of their last binary digits."""
    if value is None:
        return ""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def write_frame(
    frame: pl.DataFrame, form: str, output: Path | None, nested: Sequence[str] = ()
) -> None:
    """`frame` as csv, json (an array of objects) or parquet, to a file or standard output.

    Args:
        frame: what to write; times become texts but for parquet.
        form: one of the three.
        output: a file instead of standard output.
        nested: columns of JSON texts, which are values in json.

    Raises:
        UsageError: the file cannot be written, or parquet would go to a terminal.
    """
    from market_data_core.errors import UsageError
    from market_data_store.frames import json_lines, with_iso_times

    if form == "parquet" and output is None and sys.stdout.isatty():
        msg = "parquet is binary; name a file with --output, or send standard output to one"
        raise UsageError(msg)

    # into memory first: polars hides what went wrong with a file that it writes to
    rendered = io.BytesIO()
    if form == "parquet":
        frame.write_parquet(rendered)
    elif form == "csv":
        with_iso_times(frame).write_csv(rendered)
    elif nested:
        rendered.write(b"[" + b",".join(json_lines(frame, nested)) + b"]\n")
    else:
        rendered.write((with_iso_times(frame).write_json() + "\n").encode())
    write_bytes(rendered.getvalue(), output)


def write_bytes(data: bytes, output: Path | None = None) -> None:
    """`data` to the file at `output`, or to standard output.

    Raises:
        UsageError: the file cannot be written.
    """
    from market_data_core.errors import UsageError

    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        msg = f"--output {output} cannot be written: {error.strerror or error}"
        raise UsageError(msg) from error


def write_lines(lines: Iterable[bytes]) -> None:
    """Lines to standard output, flushed."""
    write_bytes(b"".join(line + b"\n" for line in lines))


def write_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str], form: str) -> None:
    """Rows as json (an array of objects) or csv with a header, to standard output."""
    if form == "json":
        import msgspec

        body = b",\n ".join(msgspec.json.encode(row) for row in rows)
        write_lines([b"[" + body + b"]"])
        return
    import csv

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in rows)
    write_lines([buffer.getvalue().removesuffix("\n").encode()])
