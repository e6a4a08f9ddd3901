"""``mdp dlq``: what could not become part of a bar, and what could not be written.

Without ``--file``: the dead letters of the bus. With it: a file of a write coordinator.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.cli._dlq_topic import LetterSelection
    from market_data_store.coordinator import Selection

dlq_app = typer.Typer(
    help="Dead letters: what could not become a bar, or could not be written.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_TABLE_ROWS = 50

FileOption = Annotated[
    Path | None,
    typer.Option("--file", help="Dead-letter file of a write coordinator, instead of the bus."),
]
ReasonOption = Annotated[str | None, typer.Option(help="Only this reason.")]
TypeOption = Annotated[
    str | None, typer.Option("--type", help="Only items of this type, such as Bar; with --file.")
]
IdOption = Annotated[
    list[str] | None, typer.Option("--id", help="Only this record; may be given several times.")
]
SinceOption = Annotated[
    str | None, typer.Option(help="Only those set aside then or later: ISO time or date, UTC.")
]
UntilOption = Annotated[
    str | None, typer.Option(help="Only those set aside earlier: ISO time or date, UTC.")
]
ProviderOption = Annotated[str | None, typer.Option(help="Only of this feed; not with --file.")]
SymbolOption = Annotated[
    str | None, typer.Option(help="Only these symbols, separated by commas; not with --file.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
]


@dlq_app.command("list")
def list_letters(
    file: FileOption = None,
    reason: ReasonOption = None,
    kind: TypeOption = None,
    provider: ProviderOption = None,
    symbol: SymbolOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    open_only: Annotated[
        bool, typer.Option("--open", help="Without those that were replayed; not with --file.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Only the last N; 50 for the table, else all.")
    ] = None,
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="Output format.")
    ] = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Counts by reason, then the letters, oldest first."""
    _output.check_limit(limit)
    keep = limit if limit or form != "table" else _TABLE_ROWS
    if file is not None:
        from market_data_pipeline.cli import _dlq_file

        _only_on_the_bus({"--provider": provider, "--symbol": symbol, "--open": open_only})
        wanted = _selection(reason, kind, since, until)
        _output.load_settings(config)
        _output.run_async(_dlq_file.list_records(file, wanted, keep, form))
        return
    from market_data_pipeline.cli import _dlq_topic

    letters = _letters(reason, kind, since, until, None, provider, symbol)
    settings = _output.load_settings(config)
    _output.run_async(_dlq_topic.list_letters(settings, letters, open_only, keep, form))


@dlq_app.command("show")
def show_letter(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="From mdp dlq list.")],
    file: FileOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Only the original bytes, or the items as JSON.")
    ] = False,
    config: _output.ConfigOption = None,
) -> None:
    """Everything about one letter, its original bytes or its items included."""
    settings = _output.load_settings(config)
    if file is not None:
        from market_data_pipeline.cli import _dlq_file

        _output.run_async(_dlq_file.show_record(file, letter_id, raw))
        return
    from market_data_pipeline.cli import _dlq_topic

    _output.run_async(_dlq_topic.show_letter(settings, letter_id, raw))


@dlq_app.command("replay")
def replay_letters(
    file: FileOption = None,
    reason: ReasonOption = None,
    letter_ids: IdOption = None,
    kind: TypeOption = None,
    provider: ProviderOption = None,
    symbol: SymbolOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int | None, typer.Option(help="At most N of them, oldest first.")] = None,
    dry_run: DryRunOption = False,
    config: _output.ConfigOption = None,
) -> None:
    """Carry dead letters through the windows again, or write those of a file into the store.

    All that are open unless selected. Letters of the bus are not removed but known to be
    replayed; a record of a file is removed once it is stored. What fails again stays.
    """
    _output.check_limit(limit)
    if file is None:
        from market_data_pipeline.cli import _dlq_again

        letters = _letters(reason, kind, since, until, letter_ids, provider, symbol)
        settings = _output.load_settings(config)
        done = _dlq_again.replay(settings, letters, limit, dry_run)
    else:
        from market_data_pipeline.cli import _dlq_replay

        _only_on_the_bus({"--provider": provider, "--symbol": symbol})
        wanted = _selection(reason, kind, since, until, letter_ids)
        settings = _output.load_settings(config)
        done = _output.run_async(_dlq_replay.replay(settings, file, wanted, limit, dry_run))
    if not done:
        raise typer.Exit(1)


@dlq_app.command("purge")
def purge_letters(
    file: FileOption = None,
    reason: ReasonOption = None,
    letter_ids: IdOption = None,
    kind: TypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them; with --file.")] = False,
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: _output.ConfigOption = None,
) -> None:
    """Remove dead letters for good: records of a file, or the oldest ones of the bus.

    Letters of the bus are a log: those before --until go, up to the first whose event is still
    in the log. What a running process has in hand of a file stays.
    """
    from market_data_core.errors import UsageError
    from market_data_store.coordinator import Selection

    wanted = _selection(reason, kind, since, until, letter_ids)
    if file is None:
        from market_data_pipeline.cli import _dlq_topic

        _, before = _output.parse_range(None, until, ("--since", "--until"))
        if before is None or everything or wanted != _selection(None, None, None, until):
            msg = (
                "purge: letters of the bus are a log, of which only the oldest can go: give "
                "--until alone; or a file with --file"
            )
            raise UsageError(msg)
        settings = _output.load_settings(config)
        _output.run_async(_dlq_topic.purge_letters(settings, before, dry_run, yes))
        return
    from market_data_pipeline.cli import _dlq_file

    if everything == (wanted != Selection()):
        msg = "purge: say which: --reason, --id, --type, --since or --until, else --all alone"
        raise UsageError(msg)
    _output.load_settings(config)
    _output.run_async(_dlq_file.purge_records(file, wanted, dry_run, yes))


def _only_on_the_bus(given: dict[str, str | bool | None]) -> None:
    from market_data_core.errors import UsageError

    for option in (name for name, value in given.items() if value):
        msg = f"{option} selects letters of the bus; leave it or --file out"
        raise UsageError(msg)


def _letters(
    reason: str | None,
    kind: str | None,
    since: str | None,
    until: str | None,
    ids: list[str] | None,
    provider: str | None,
    symbol: str | None,
) -> LetterSelection:
    from market_data_core.errors import UsageError
    from market_data_pipeline.cli._dlq_topic import LetterSelection, place_of

    if kind is not None:
        msg = f"--type {kind!r}: letters of the bus have no type; name a file with --file"
        raise UsageError(msg)
    start, end = _output.parse_range(since, until, ("--since", "--until"))
    places = frozenset(map(place_of, ids)) if ids else None
    return LetterSelection(reason, start, end, places, provider, _output.symbols_of(symbol))


def _selection(
    reason: str | None,
    kind: str | None,
    since: str | None,
    until: str | None,
    ids: list[str] | None = None,
) -> Selection:
    from market_data_store.coordinator import Selection

    start, end = _output.parse_range(since, until, ("--since", "--until"))
    chosen = frozenset(ids) if ids else None
    return Selection(chosen, reason, kind, _moment(start), _moment(end))


def _moment(ts: int | None) -> datetime | None:
    """Nanoseconds as a time; files hold microseconds."""
    from datetime import UTC, datetime, timedelta

    if ts is None:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ts // 1000)
