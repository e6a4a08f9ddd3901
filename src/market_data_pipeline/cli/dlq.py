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
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
]


@dlq_app.command("list")
def list_letters(
    file: FileOption = None,
    reason: ReasonOption = None,
    kind: TypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the last N; 50 for the table, else all.")
    ] = None,
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="Output format.")
    ] = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Counts by reason, then the letters, oldest first."""
    from market_data_core.errors import UsageError

    _output.check_limit(limit)
    keep = limit if limit or form != "table" else _TABLE_ROWS
    if file is not None:
        from market_data_pipeline.cli import _dlq_file

        wanted = _selection(reason, kind, since, until)
        _output.load_settings(config)
        _output.run_async(_dlq_file.list_records(file, wanted, keep, form))
        return
    from market_data_pipeline.cli import _dlq_topic

    if kind is not None:
        msg = f"--type {kind!r}: letters of the bus have no type; name a file with --file"
        raise UsageError(msg)
    start, end = _output.parse_range(since, until, ("--since", "--until"))
    letters = _dlq_topic.LetterSelection(reason, start, end)
    settings = _output.load_settings(config)
    _output.run_async(_dlq_topic.list_letters(settings, letters, keep, form))


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
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int | None, typer.Option(help="At most N records, oldest first.")] = None,
    dry_run: DryRunOption = False,
    config: _output.ConfigOption = None,
) -> None:
    """Write what stands in a dead-letter file into the store; all of it unless selected.

    A record is removed once it is stored. What fails again stays, with its new error.
    """
    from market_data_core.errors import UsageError

    if file is None:
        msg = (
            "mdp dlq replay needs --file: the file of a write coordinator, such as "
            ".dlq/default.ndjson. Letters of the bus are input that is no event, or came too "
            "late: correct it where it comes from, and run it with mdp run FILE"
        )
        raise UsageError(msg)
    from market_data_pipeline.cli import _dlq_replay

    _output.check_limit(limit)
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
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: _output.ConfigOption = None,
) -> None:
    """Remove records of a dead-letter file for good; what a running process has in hand stays."""
    from market_data_core.errors import UsageError
    from market_data_store.coordinator import Selection

    if file is None:
        msg = (
            "mdp dlq purge needs --file: letters of the bus are part of the log, which mdp verify "
            "and recordings read them from; bus.retention trims them with it"
        )
        raise UsageError(msg)
    from market_data_pipeline.cli import _dlq_file

    wanted = _selection(reason, kind, since, until, letter_ids)
    if everything == (wanted != Selection()):
        msg = "purge: say which: --reason, --id, --type, --since or --until, else --all alone"
        raise UsageError(msg)
    _output.load_settings(config)
    _output.run_async(_dlq_file.purge_records(file, wanted, dry_run, yes))


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
