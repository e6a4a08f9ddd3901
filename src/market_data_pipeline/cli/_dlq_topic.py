"""Dead letters of the bus: input that could not become part of a bar."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import typer

from market_data_core._suggest import did_you_mean
from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.deadletters import DeadLetter, decode_letters
from market_data_core.errors import MdpError, UsageError
from market_data_core.events import REASONS, format_ts
from market_data_core.records import Record
from market_data_pipeline.assembly import LETTERS_TOPIC
from market_data_pipeline.backends import open_bus
from market_data_pipeline.cli import _output

Found = tuple[str, Record, DeadLetter]

_POLL_BYTES = 8 << 20
_PREVIEW_BYTES = 2048
_COLUMNS = (
    "id", "append_ts", "reason", "topic", "partition", "offset", "where", "provider", "symbol",
    "src_ts", "detail", "events", "size",
)  # fmt: skip
_NUMBERS = ("partition", "offset", "events", "size")


@dataclass(frozen=True, slots=True)
class LetterSelection:
    """Which letters are meant: of `reason`, appended from `since` on and before `before`, UTC ns.

    Raises:
        UsageError: there is no such reason.
    """

    reason: str | None = None
    since: int | None = None
    before: int | None = None

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in REASONS:
            msg = f"--reason {self.reason!r} is not a reason; {did_you_mean(self.reason, REASONS)}"
            raise UsageError(msg)

    def fits(self, found: Found) -> bool:
        """Whether a letter is meant."""
        _, record, letter = found
        return (
            self.reason in (None, letter.reason)
            and (self.since is None or record.append_ts >= self.since)
            and (self.before is None or record.append_ts < self.before)
        )


async def list_letters(
    settings: Settings, wanted: LetterSelection, keep: int | None, form: str
) -> None:
    """Counts by reason and the last `keep` letters, or those alone for a program."""
    counts: Counter[str] = Counter()
    rows: deque[dict[str, object]] = deque(maxlen=keep)
    async for found in _letters(settings):
        if wanted.fits(found):
            counts[found[2].reason] += 1
            rows.append(_row(found))
    if form != "table":
        _output.write_rows(list(rows), _COLUMNS, form)
        return
    if not counts:
        chosen = wanted != LetterSelection()
        typer.echo("no dead letters" + (" that fit the selection" if chosen else ""))
        return
    reasons = [(word, n, REASONS.get(word, "")) for word, n in counts.most_common()]
    _output.show_table(("reason", "letters", "meaning"), reasons, right=("letters",))
    title = f"The last {len(rows):,} of {sum(counts.values()):,} letters"
    _output.show_table(_COLUMNS, [list(row.values()) for row in rows], title, _NUMBERS)


async def show_letter(settings: Settings, letter_id: str, raw: bool) -> None:
    """Everything about one letter; with `raw` its bytes alone.

    Raises:
        UsageError: that is no letter's id.
        MdpError: there is no such letter.
    """
    offset, dot, index = letter_id.partition(".")
    if not (dot and _is_number(offset) and _is_number(index)):
        msg = f"{letter_id!r} is not the id of a dead letter, such as 12.0; see mdp dlq list"
        raise UsageError(msg)
    found = await _find(settings, int(offset), int(index))
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
    return (await bus.poll(LETTERS_TOPIC, {0: position}, max_bytes, 0))[0]


def _of_record(record: Record) -> list[Found]:
    letters = decode_letters(record.payload)
    return [(f"{record.offset}.{i}", record, letter) for i, letter in enumerate(letters)]
