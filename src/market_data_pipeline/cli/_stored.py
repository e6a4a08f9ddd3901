"""What the commands that show rows of the store share: options, reading, why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from market_data_core.config import Settings
    from market_data_core.contracts.store import Store
    from market_data_core.tables import Select, Table

Form = Literal["table", "csv", "json", "parquet"]

SymbolArgument = Annotated[str, typer.Argument(help="Symbol, in any case.")]
ProviderOption = Annotated[str | None, typer.Option(help="Only this provider.")]
ToOption = Annotated[str | None, typer.Option("--to", help="ISO time or date, UTC, exclusive.")]
LimitOption = Annotated[
    int | None, typer.Option(help="Only the last N; 50 for the table, else all.")
]
FormOption = Annotated[Form, typer.Option("--format", help="Output format.")]
OutputOption = Annotated[Path | None, typer.Option(help="File instead of standard output.")]

_TABLE_ROWS = 50
_NAMED_MAX = 20


@dataclass(frozen=True, slots=True)
class View:
    """How rows of a table are spoken of.

    Attributes:
        rows: what they are called, such as ``bars``.
        hidden: columns that only machines are shown.
        source: the command that makes the first ones.
    """

    rows: str
    hidden: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Shown:
    """How the answer is given.

    Attributes:
        limit: only the last so many rows; None for the default.
        form: of the output.
        output: a file instead of standard output.
    """

    limit: int | None
    form: Form
    output: Path | None


def selected(
    table: Table, symbol: str, others: Mapping[str, str | None], span: tuple[int | None, int | None]
) -> Select:
    """The rows of a symbol, narrowed down by those of the `others` that are given."""
    from market_data_core.tables import Select

    wanted = {"symbol": symbol.strip().upper(), **others}
    where = {name: [value] for name, value in wanted.items() if value is not None}
    return Select(table, where, *span)


def show(settings: Settings, view: View, what: Select, shown: Shown) -> None:
    """Write the selected rows of one symbol in the order of the table's key.

    Raises:
        MdpError: there are none; the message says what there is instead.
        UsageError: the file cannot be written, or parquet would go to a terminal.
    """
    frame, problem = _output.run_async(_read(settings, view, what))
    if shown.form != "table" and not (problem and shown.form == "parquet"):
        nested = [column.name for column in what.table.columns if column.kind == "json"]
        rows = frame if shown.limit is None else frame.tail(shown.limit)
        _output.write_frame(rows, shown.form, shown.output, nested)
    if problem:
        raise MdpError(problem)
    if shown.form == "table":
        _show(frame, view, what.table, shown)


async def _read(settings: Settings, view: View, what: Select) -> tuple[pl.DataFrame, str]:
    """The rows, and if there are none, a sentence that says why."""
    import polars as pl

    from market_data_pipeline.backends import missing_store, open_backends

    absent = missing_store(settings)
    if absent:
        names = [column.name for column in what.table.columns]
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String)), absent
    async with open_backends(settings, wait=False) as backends:
        frame = await backends.store.select(what)
        return frame, "" if len(frame) else await _why_empty(backends.store, view, what)


async def _why_empty(store: Store, view: View, what: Select) -> str:
    """What there is instead of what was asked for."""
    import polars as pl

    from market_data_core.tables import Select
    from market_data_store.frames import with_iso_times

    wanted = {name: value for name, (value,) in what.where.items()}
    symbol = wanted.pop("symbol")
    found = await store.select(Select(what.table, {"symbol": [symbol]}))
    if not len(found):
        newest = await store.select(Select(what.table, last=1))
        symbols = newest["symbol"].unique().sort().to_list()
        if not symbols:
            return f"no {view.rows} yet: the store has none; run {view.source}"
        more = ", …" if len(symbols) > _NAMED_MAX else ""
        return f"no {view.rows} of {symbol!r}; there are {', '.join(symbols[:_NAMED_MAX])}{more}"
    words = symbol
    for name, value in wanted.items():
        there = found[name].unique().sort().to_list()
        if value not in there:
            listed = ", ".join(there)
            return f"no {view.rows} of {words} with {name} {value!r}; there are {listed}"
        found, words = found.filter(pl.col(name) == value), f"{words} {value}"
    times = with_iso_times(found.select(what.table.time)).to_series().sort().to_list()
    return f"no {view.rows} of {words} in that time; there are some from {times[0]} to {times[-1]}"


def _show(frame: pl.DataFrame, view: View, table: Table, shown: Shown) -> None:
    from market_data_store.frames import with_iso_times

    columns = [column for column in table.columns if column.name not in view.hidden]
    names = [column.name for column in columns]
    last = with_iso_times(frame.select(names).tail(shown.limit or _TABLE_ROWS))
    title = f"{len(frame):,} {view.rows if len(frame) != 1 else view.rows.removesuffix('s')}"
    if len(last) < len(frame):
        title = f"The last {len(last):,} of {title}"
    numbers = [column.name for column in columns if column.kind in ("number", "count")]
    _output.show_table(names, last.iter_rows(), title, numbers, shown.output)
