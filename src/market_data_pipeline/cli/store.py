"""``mdp store``: the schema, what is in the store, how long it stays, and rows in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from market_data_core.config import Settings
    from market_data_core.contracts.store import Store
    from market_data_core.tables import Policy, StoreStatus, Table

store_app = typer.Typer(
    help="The database: schema, state, retention, rows in and out.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Form = Literal["table", "json"]
FileForm = Literal["ndjson", "parquet"]

_DAY_NS = 86_400 * 10**9
_STATUS_COLUMNS = ("table", "rows", "size_bytes", "first", "last")
_POLICY_COLUMNS = ("kind", "table", "interval", "after_days", "by")
_APPLIED_COLUMNS = ("table", "interval", "after_days", "deleted")
_SUFFIXES: dict[str, FileForm] = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
}

FormOption = Annotated[Form, typer.Option("--format", help="Output format.")]
FileFormOption = Annotated[
    FileForm | None, typer.Option("--format", help="Of the file; else told by its name's end.")
]


@store_app.command()
def migrate(
    to: Annotated[
        int | None, typer.Option(help="Step to go back to; without it: up to the newest.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: _output.ConfigOption = None,
) -> None:
    """Bring the schema to this release's step, or back to an earlier one.

    A step back loses what only the newer steps have.
    """
    _output.run_async(_migrate(_output.load_settings(config), to, dry_run, yes))


async def _migrate(settings: Settings, to: int | None, dry_run: bool, yes: bool) -> None:
    from market_data_core.errors import UsageError
    from market_data_pipeline.backends import missing_store

    absent = missing_store(settings)
    if absent and (to is not None or dry_run):
        typer.echo(f"there is no store yet ({absent.partition(';')[0]}); nothing to do")
        return
    async with _opened(settings, create=True) as store:
        now = await store.inspect()
        step, newest = now.schema, now.schema_known
        if to is not None and not 0 <= to <= newest:
            msg = f"--to {to}: there is no such step; this release knows 0 to {newest}"
            raise UsageError(msg)
        if to is not None and step < to < newest:
            msg = f"--to {to}: the way up from {step} leads to {newest} only; leave --to out"
            raise UsageError(msg)
        target = newest if to is None else to
        if target == step and not await store.schema_behind():
            typer.echo(f"the schema is at step {step}; nothing to do")
            return
        told = f"step {step} to step {target}"
        if target < step:
            lost = "everything in the store" if target == 0 else "what only the newer steps have"
            typer.echo(f"from {told}: {lost} is lost", err=True)
        if dry_run:
            typer.echo(f"the schema would go from {told}")
            return
        if target < step:
            _output.confirm(f"Take the schema back from {told}?", yes)
            await store.migrate_down(target)
        else:
            await store.migrate()
        typer.echo(f"the schema went from step {step} to step {(await store.inspect()).schema}")


@store_app.command()
def status(form: FormOption = "table", config: _output.ConfigOption = None) -> None:
    """What the store is, its schema, and the size and span of every table."""

    async def read(settings: Settings) -> StoreStatus:
        async with _opened(settings) as store:
            return await store.inspect()

    found = _output.run_async(read(_output.load_settings(config)))
    rows = [
        {
            "table": table.table,
            "rows": table.rows,
            "size_bytes": table.size_bytes,
            "first": _iso(table.first),
            "last": _iso(table.last),
        }
        for table in found.tables
    ]
    about = {
        "name": found.name,
        "version": found.version,
        "schema": found.schema,
        "schema_known": found.schema_known,
        "extensions": dict(found.extensions),
    }
    if form == "json":
        import msgspec

        _output.write_lines([msgspec.json.encode(about | {"tables": rows})])
        return
    about["extensions"] = ", ".join(f"{n} {v}" for n, v in found.extensions.items()) or "none"
    for name, value in about.items():
        typer.echo(f"{name:<12} {value}")
    if found.schema < found.schema_known:
        typer.echo("the schema is behind this release; mdp store migrate brings it up to date")
    cells = [list(row.values()) for row in rows]
    _output.show_table(_STATUS_COLUMNS, cells, right=("rows", "size_bytes"))


@store_app.command()
def policies(
    apply: Annotated[
        bool, typer.Option("--apply", help="Delete what is older than store.retention says.")
    ] = False,
    form: FormOption = "table",
    config: _output.ConfigOption = None,
) -> None:
    """What is done to the tables as time goes on, by the database and by store.retention."""
    settings = _output.load_settings(config)
    if apply:
        deleted = _output.run_async(_apply(settings))
        if form == "json":
            _output.write_rows(deleted, _APPLIED_COLUMNS, form)
            return
        for row in deleted:
            what = " ".join(str(row[name]) for name in ("table", "interval") if row[name])
            typer.echo(
                f"{what}: {row['deleted']:,} rows older than {row['after_days']} days deleted"
            )
        if not deleted:
            typer.echo("store.retention keeps everything for ever; nothing to do")
        return

    async def read() -> Sequence[Policy]:
        async with _opened(settings) as store:
            return await store.policies()

    found: list[tuple[object, ...]] = [
        (policy.kind, policy.table, None, policy.after_days, policy.by)
        for policy in _output.run_async(read())
    ]
    rules = settings.store.retention.rules()
    found += [("retention", table, interval, days, "mdp") for table, interval, days in rules]
    if form == "json":
        rows = [dict(zip(_POLICY_COLUMNS, values, strict=True)) for values in found]
        _output.write_rows(rows, _POLICY_COLUMNS, form)
    elif found:
        _output.show_table(_POLICY_COLUMNS, found, right=("after_days",))
    else:
        typer.echo("everything is kept as it is, for ever; see store.retention")


async def _apply(settings: Settings) -> list[dict[str, object]]:
    """Delete what is too old; one row for each rule."""
    from market_data_core.clock import SystemClock
    from market_data_core.tables import TABLES

    done: list[dict[str, object]] = []
    now_ns = SystemClock().now_ns()
    async with _opened(settings, current=True) as store:
        for table, interval, days in settings.store.retention.rules():
            deleted = await store.retain(TABLES[table], now_ns - days * _DAY_NS, interval)
            done.append(dict(zip(_APPLIED_COLUMNS, (table, interval, days, deleted), strict=True)))
    return done


@store_app.command("export")
def export_table(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Such as bars_ohlcv.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="File; - for standard output.")],
    symbols: Annotated[
        list[str] | None, typer.Option("--symbol", help="Only this symbol; several times allowed.")
    ] = None,
    interval: Annotated[str | None, typer.Option(help="Only this interval, such as 1m.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="ISO time or date, UTC.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="ISO time or date, UTC, exclusive.")
    ] = None,
    form: FileFormOption = None,
    config: _output.ConfigOption = None,
) -> None:
    """Write the rows of a table to a file, in the order of its key."""
    from market_data_core.tables import TABLES, Select
    from market_data_pipeline.cli import _transfer

    chosen = _named(table, list(TABLES))
    found = TABLES[chosen]
    where = {
        "symbol": [symbol.strip().upper() for symbol in symbols or ()],
        "interval": [interval] if (interval := _output.canonical(interval)) else [],
        "provider": [provider] if provider is not None else [],
    }
    _check_columns(found, where)
    start, end = _output.parse_range(from_, to)
    select = Select(found, {name: values for name, values in where.items() if values}, start, end)
    file_form = _form(path, form)
    settings = _output.load_settings(config)
    rows = _output.run_async(_transfer.export_table(settings, select, path, file_form))
    typer.echo(f"{rows:,} rows of {chosen} written to {path}", err=path == "-")


@store_app.command("import")
def import_table(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Such as bars_ohlcv.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="File; - for standard input.")],
    form: FileFormOption = None,
    config: _output.ConfigOption = None,
) -> None:
    """Write the rows of a file into a table; rows that are there already are brought up to date.

    A row that is not valid is told with its line and kept in a dead-letter file; the others are
    stored all the same.
    """
    from market_data_pipeline.cli import _transfer, _writing

    chosen = _named(table, list(_writing.KINDS))
    file_form = _form(path, form)
    settings = _output.load_settings(config)
    if not _output.run_async(_transfer.import_table(settings, chosen, path, file_form)):
        raise typer.Exit(1)


def _named(table: str, valid: Sequence[str]) -> str:
    from market_data_core._suggest import did_you_mean
    from market_data_core.errors import UsageError

    if table not in valid:
        msg = f"TABLE {table!r} is not one of those; {did_you_mean(table, valid)}"
        raise UsageError(msg)
    return table


def _check_columns(table: Table, where: dict[str, list[str]]) -> None:
    from market_data_core.errors import UsageError

    columns = {column.name for column in table.columns}
    for name, values in where.items():
        if values and name not in columns:
            msg = f"--{name}: {table.name} has no column of that name; leave it out"
            raise UsageError(msg)


def _form(path: str, form: FileForm | None) -> FileForm:
    """The format of a file, by its name if it is not given."""
    from market_data_core.errors import UsageError

    if path == "-":
        if form == "parquet":
            msg = "--format parquet: parquet goes to and comes from files only; name one"
            raise UsageError(msg)
        return "ndjson"
    found = form or _SUFFIXES.get(Path(path).suffix.lower())
    if found is None:
        msg = f"{path}: its name does not tell the format; say --format ndjson or parquet"
        raise UsageError(msg)
    return found


def _opened(
    settings: Settings, *, create: bool = False, current: bool = False
) -> AbstractAsyncContextManager[Store]:
    """The store as it is, closed at the end; not migrated.

    Args:
        settings: which.
        create: make the embedded store's file if there is none.
        current: the schema has to be this release's.

    Raises:
        MdpError: there is no store yet, or its schema is behind.
    """
    from contextlib import asynccontextmanager

    from market_data_core.errors import MdpError
    from market_data_pipeline.backends import missing_store, open_store

    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        absent = "" if create else missing_store(settings)
        if absent:
            raise MdpError(absent)
        store = open_store(settings)
        try:
            behind = await store.schema_behind() if current else 0
            if behind:
                msg = f"the schema is {behind} steps behind this release; run mdp store migrate"
                raise MdpError(msg)
            yield store
        finally:
            await store.close()

    return opened()


def _iso(ts: int | None) -> str | None:
    from market_data_core.events import format_ts

    return None if ts is None else format_ts(ts)
