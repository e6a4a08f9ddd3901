"""``mdp bars``: what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    import polars as pl

    from market_data_core.config import Settings
    from market_data_core.contracts.store import Store

_TABLE_ROWS = 50
_SHOWN = (
    "provider", "symbol", "interval", "ts", "open", "high", "low", "close", "volume", "vwap",
    "trade_count", "state",
)  # fmt: skip
_COLUMNS = (*_SHOWN, "created_at", "updated_at")
_NUMBERS = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
_NAMED_MAX = 20


def bars(
    symbol: Annotated[str, typer.Argument(help="Symbol, in any case.")],
    interval: Annotated[str | None, typer.Option(help="Only this interval, such as 2s.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="ISO time or date, UTC; first window start.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="ISO time or date, UTC, exclusive.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the last N; 50 for the table, else all.")
    ] = None,
    form: Annotated[
        Literal["table", "csv", "json", "parquet"], typer.Option("--format", help="Output format.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(help="File instead of standard output.")] = None,
    config: _output.ConfigOption = None,
) -> None:
    """Bars of SYMBOL: all intervals and providers unless told otherwise."""
    _output.check_limit(limit)
    start, end = _output.parse_range(from_, to)
    settings = _output.load_settings(config)
    key = (symbol.strip().upper(), _output.canonical(interval), provider)
    frame, problem = _output.run_async(_read(settings, key, (start, end)))
    if form != "table" and not (problem and form == "parquet"):
        _output.write_frame(frame if limit is None else frame.tail(limit), form, output)
    if problem:
        raise MdpError(problem)
    if form == "table":
        _show(frame, limit or _TABLE_ROWS, output)


async def _read(
    settings: Settings,
    key: tuple[str, str | None, str | None],
    span: tuple[int | None, int | None],
) -> tuple[pl.DataFrame, str]:
    """The bars of (symbol, interval, provider), and if there are none, a sentence that says why."""
    import polars as pl

    from market_data_pipeline.backends import missing_store, open_backends

    absent = missing_store(settings)
    if absent:
        return pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.String)), absent
    async with open_backends(settings, wait=False) as backends:
        frame = await backends.store.bars(*key, *span)
        return frame, "" if len(frame) else await _why_empty(backends.store, key)


async def _why_empty(store: Store, key: tuple[str, str | None, str | None]) -> str:
    """What there is instead of what was asked for."""
    from market_data_store.frames import with_iso_times

    symbol, interval, provider = key
    mine = await store.bars(symbol)
    if not len(mine):
        symbols = (await store.bars())["symbol"].unique().sort().to_list()
        if not symbols:
            return "no bars yet: the store is empty; run mdp run FILE"
        more = ", …" if len(symbols) > _NAMED_MAX else ""
        return f"no bars of {symbol!r}; there are {', '.join(symbols[:_NAMED_MAX])}{more}"
    for name, wanted in (("interval", interval), ("provider", provider)):
        found = mine[name].unique().sort().to_list()
        if wanted is not None and wanted not in found:
            return f"no bars of {symbol} with {name} {wanted!r}; there are {', '.join(found)}"
    times = with_iso_times(mine.select("ts"))["ts"].sort().to_list()
    words = " ".join(word for word in (symbol, interval, provider) if word)
    return f"no bars of {words} in that time; there are some from {times[0]} to {times[-1]}"


def _show(frame: pl.DataFrame, rows: int, output: Path | None) -> None:
    from market_data_store.frames import with_iso_times

    shown = with_iso_times(frame.select(_SHOWN).tail(rows))
    title = f"{len(frame):,} bar{'s' if len(frame) != 1 else ''}"
    if len(shown) < len(frame):
        title = f"The last {len(shown):,} of {title}"
    _output.show_table(_SHOWN, shown.iter_rows(), title, _NUMBERS, output)
