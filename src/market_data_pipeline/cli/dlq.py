"""``mdp dlq``: what could not become a bar, with the reason and the bytes as they came."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from market_data_core.config import Settings
    from market_data_core.contracts.bus import Bus
    from market_data_core.deadletters import DeadLetter
    from market_data_core.records import Record

    Found = tuple[str, Record, DeadLetter]

dlq_app = typer.Typer(
    help="Dead letters: what could not become a bar.", no_args_is_help=True, rich_markup_mode=None
)

_TABLE_ROWS = 50
_POLL_BYTES = 8 << 20
_PREVIEW_BYTES = 2048
_COLUMNS = (
    "id", "append_ts", "reason", "topic", "partition", "offset", "where", "provider", "symbol",
    "src_ts", "detail", "events", "size",
)  # fmt: skip
_NUMBERS = ("partition", "offset", "events", "size")


@dlq_app.command("list")
def list_letters(
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the last N; 50 for the table, else all.")
    ] = None,
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="Output format.")
    ] = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Counts by reason, then the letters, oldest first."""
    from collections import Counter, deque

    from market_data_core._suggest import did_you_mean
    from market_data_core.errors import UsageError
    from market_data_core.events import REASONS

    _output.check_limit(limit)
    if reason is not None and reason not in REASONS:
        msg = f"--reason {reason!r} is not a reason; {did_you_mean(reason, REASONS)}"
        raise UsageError(msg)
    settings = _output.load_settings(config)
    keep = limit if limit or form != "table" else _TABLE_ROWS
    counts: Counter[str] = Counter()
    rows: deque[dict[str, object]] = deque(maxlen=keep)

    async def read() -> None:
        async for found in _letters(settings):
            letter = found[2]
            if reason in (None, letter.reason):
                counts[letter.reason] += 1
                rows.append(_row(found))

    _output.run_async(read())
    if form != "table":
        _output.write_rows(list(rows), _COLUMNS, form)
        return
    if not counts:
        typer.echo("no dead letters" + (f" with reason {reason!r}" if reason else ""))
        return
    reasons = [(word, n, REASONS.get(word, "")) for word, n in counts.most_common()]
    _output.show_table(("reason", "letters", "meaning"), reasons, right=("letters",))
    title = f"The last {len(rows):,} of {sum(counts.values()):,} letters"
    _output.show_table(_COLUMNS, [list(row.values()) for row in rows], title, _NUMBERS)


@dlq_app.command("show")
def show_letter(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="From mdp dlq list.")],
    raw: Annotated[bool, typer.Option("--raw", help="Only the original bytes, verbatim.")] = False,
    config: _output.ConfigOption = None,
) -> None:
    """Everything about one letter, its original bytes included."""
    from market_data_core.errors import UsageError

    offset, dot, index = letter_id.partition(".")
    if not (dot and _is_number(offset) and _is_number(index)):
        msg = f"{letter_id!r} is not the id of a dead letter, such as 12.0; see mdp dlq list"
        raise UsageError(msg)
    found = _output.run_async(_find(_output.load_settings(config), int(offset), int(index)))
    if found is None:
        msg = f"there is no dead letter {letter_id}; see mdp dlq list"
        raise MdpError(msg)
    original = found[2].as_sent
    if raw:
        _output.write_bytes(original)
        return
    for name, value in (_row(found) | {"log_id": found[2].log_id}).items():
        typer.echo(f"{name:<10} {_output.cell_text(value)}")
    shown = repr(original[:_PREVIEW_BYTES])[2:-1]
    more = len(original) - _PREVIEW_BYTES
    typer.echo(f"{'original':<10} {shown}")
    if more > 0:
        sys.stderr.write(f"{more:,} more bytes; --raw gives all\n")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _row(found: Found) -> dict[str, object]:
    """One letter by column."""
    from market_data_core.events import format_ts

    letter_id, record, letter = found
    values = (
        letter_id,
        format_ts(record.append_ts),
        letter.reason,
        letter.topic,
        letter.partition,
        letter.offset,
        letter.where,
        letter.provider,
        letter.symbol,
        format_ts(letter.src_ts) if letter.src_ts else None,
        letter.detail,
        letter.events,
        len(letter.as_sent),
    )
    return dict(zip(_COLUMNS, values, strict=True))


async def _letters(settings: Settings) -> AsyncIterator[Found]:
    """All letters with their ids, oldest first; none if there is no topic of them yet."""
    from market_data_pipeline.assembly import LETTERS_TOPIC
    from market_data_pipeline.backends import open_bus

    bus = open_bus(settings)
    try:
        if await bus.find_topic(LETTERS_TOPIC) is None:
            return
        bounds = await bus.bounds(LETTERS_TOPIC, 0)
        position = bounds.first
        while position < bounds.next:
            records = await _poll(bus, position)
            for record in records:
                for found in _of_record(record):
                    yield found
            position = records[-1].offset + 1
    finally:
        await bus.close()


async def _find(settings: Settings, offset: int, index: int) -> Found | None:
    from market_data_pipeline.assembly import LETTERS_TOPIC
    from market_data_pipeline.backends import open_bus

    bus = open_bus(settings)
    try:
        if await bus.find_topic(LETTERS_TOPIC) is None:
            return None
        bounds = await bus.bounds(LETTERS_TOPIC, 0)
        if not bounds.first <= offset < bounds.next:
            return None
        letters = _of_record((await _poll(bus, offset, 1))[0])
        return letters[index] if index < len(letters) else None
    finally:
        await bus.close()


async def _poll(bus: Bus, position: int, max_bytes: int = _POLL_BYTES) -> list[Record]:
    from market_data_pipeline.assembly import LETTERS_TOPIC

    return (await bus.poll(LETTERS_TOPIC, {0: position}, max_bytes, 0))[0]


def _of_record(record: Record) -> list[Found]:
    from market_data_core.deadletters import decode_letters

    letters = decode_letters(record.payload)
    return [(f"{record.offset}.{i}", record, letter) for i, letter in enumerate(letters)]
