"""Dead letters of the bus: input that could not become part of a bar."""

from __future__ import annotations

import sys
from collections import Counter, deque
from dataclasses import dataclass

import typer

from market_data_core._suggest import did_you_mean
from market_data_core.config import Settings
from market_data_core.contracts.bus import Bus
from market_data_core.errors import MdpError, UsageError
from market_data_core.events import REASONS, format_ts
from market_data_pipeline.assembly import LETTERS_TOPIC
from market_data_pipeline.backends import open_bus
from market_data_pipeline.cli import _output
from market_data_pipeline.letters import (
    Found,
    Place,
    Replays,
    all_letters,
    letters_at,
    letters_in,
    records_of,
)

_PREVIEW_BYTES = 2048
_UNBOUNDED = (1 << 63) - 1
_NEEDED = ("late", "id_conflict", "future", "unwritable")
"""Reasons of letters that readers of the log set against its events."""
_COLUMNS = (
    "id", "append_ts", "reason", "replayed", "topic", "partition", "offset", "where", "provider",
    "symbol", "src_ts", "detail", "events", "size",
)  # fmt: skip
_NUMBERS = ("partition", "offset", "events", "size")


@dataclass(frozen=True, slots=True)
class LetterSelection:
    """Which letters are meant; None means any.

    Attributes:
        reason: a word of ``REASONS``.
        since: those appended then or later, UTC ns.
        before: those appended earlier, UTC ns.
        places: only these.
        provider: only of this feed.
        symbols: only of these, upper case.

    Raises:
        UsageError: there is no such reason.
    """

    reason: str | None = None
    since: int | None = None
    before: int | None = None
    places: frozenset[Place] | None = None
    provider: str | None = None
    symbols: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in REASONS:
            msg = f"--reason {self.reason!r} is not a reason; {did_you_mean(self.reason, REASONS)}"
            raise UsageError(msg)

    def fits(self, found: Found) -> bool:
        """Whether a letter is meant."""
        return (
            self.reason in (None, found.letter.reason)
            and (self.since is None or found.append_ts >= self.since)
            and (self.before is None or found.append_ts < self.before)
            and (self.places is None or found.place in self.places)
            and self.provider in (None, found.letter.provider)
            and (self.symbols is None or found.letter.symbol in self.symbols)
        )


def place_of(letter_id: str) -> Place:
    """Where the letter of that id stands.

    Raises:
        UsageError: that is no letter's id.
    """
    offset, dot, index = letter_id.partition(".")
    if not (dot and _is_number(offset) and _is_number(index)):
        msg = f"{letter_id!r} is not the id of a dead letter, such as 12.0; see mdp dlq list"
        raise UsageError(msg)
    return int(offset), int(index)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def no_letter(letter_id: str) -> MdpError:
    """The error for an id of which there is no letter."""
    msg = f"there is no dead letter {letter_id}; see mdp dlq list"
    return MdpError(msg)


async def list_letters(
    settings: Settings, wanted: LetterSelection, open_only: bool, keep: int | None, form: str
) -> None:
    """Counts by reason and the last `keep` letters, or those alone for a program."""
    letters: Counter[str] = Counter()
    replayed: Counter[str] = Counter()
    rows: deque[dict[str, object]] = deque(maxlen=keep)
    bus = open_bus(settings)
    try:
        replays = await Replays.load(bus)
        async for found in all_letters(bus):
            done_at = replays.done_at(found.place)
            if wanted.fits(found) and not (open_only and done_at):
                letters[found.letter.reason] += 1
                replayed[found.letter.reason] += done_at is not None
                rows.append(_row(found, done_at))
    finally:
        await bus.close()
    if form != "table":
        _output.write_rows(list(rows), _COLUMNS, form)
        return
    if not letters:
        chosen = wanted != LetterSelection() or open_only
        typer.echo("no dead letters" + (" that fit the selection" if chosen else ""))
        return
    counts = [(word, n, replayed[word], REASONS.get(word, "")) for word, n in letters.most_common()]
    headings = ("reason", "letters", "replayed", "meaning")
    _output.show_table(headings, counts, right=("letters", "replayed"))
    title = f"The last {len(rows):,} of {sum(letters.values()):,} letters"
    _output.show_table(_COLUMNS, [list(row.values()) for row in rows], title, _NUMBERS)


async def show_letter(settings: Settings, letter_id: str, raw: bool) -> None:
    """Everything about one letter; with `raw` its bytes alone.

    Raises:
        UsageError: that is no letter's id.
        MdpError: there is no such letter.
    """
    place = place_of(letter_id)
    bus = open_bus(settings)
    try:
        replays = await Replays.load(bus)
        letters = await letters_at(bus, [place]) if replays.letters else []
    finally:
        await bus.close()
    if not letters:
        raise no_letter(letter_id)
    (found,) = letters
    original = found.letter.as_sent
    if raw:
        _output.write_bytes(original)
        return
    row = _row(found, replays.done_at(place)) | {"log_id": found.letter.log_id}
    for name, value in row.items():
        typer.echo(f"{name:<10} {_output.cell_text(value)}")
    shown = repr(original[:_PREVIEW_BYTES])[2:-1]
    more = len(original) - _PREVIEW_BYTES
    typer.echo(f"{'original':<10} {shown}")
    if more > 0:
        sys.stderr.write(f"{more:,} more bytes; --raw gives all\n")


def _row(found: Found, done_at: int | None) -> dict[str, object]:
    """One letter by column."""
    letter = found.letter
    values = (
        found.id,
        format_ts(found.append_ts),
        letter.reason,
        format_ts(done_at) if done_at else None,
        letter.topic,
        letter.partition,
        letter.offset,
        letter.where,
        found.letter.provider,
        found.letter.symbol,
        format_ts(found.letter.src_ts) if found.letter.src_ts else None,
        letter.detail,
        letter.events,
        len(letter.as_sent),
    )
    return dict(zip(_COLUMNS, values, strict=True))


async def purge_letters(settings: Settings, before: int, dry_run: bool, yes: bool) -> None:
    """Trim the letters that were set aside before a time, as far as nothing needs them.

    Args:
        settings: the configuration.
        before: UTC ns.
        dry_run: only say what would be done.
        yes: do not ask.
    """
    bus = open_bus(settings)
    try:
        end, removed, kept = await _purgeable(bus, before)
        if kept:
            sys.stderr.write(
                f"letters from {kept.id} on stay: {kept.letter.topic} still holds the event of "
                f"that one, which mdp verify and recordings set it against; bus.retention will "
                "remove both\n"
            )
        many = f"{removed:,} letter{'' if removed == 1 else 's'}"
        if dry_run or not removed:
            typer.echo(f"{many} would be removed" if removed else "no dead letters to remove")
            return
        _output.confirm(f"Remove {many} for good?", yes)
        await bus.trim(LETTERS_TOPIC, 0, end, before, _UNBOUNDED)
        typer.echo(f"{many} removed")
    finally:
        await bus.close()


async def _purgeable(bus: Bus, before: int) -> tuple[int, int, Found | None]:
    """Up to which offset letters can go, how many those are, and the first that has to stay."""
    topics = {info.name: info for info in await bus.topics()}
    first_kept: dict[tuple[str, int], int] = {}
    end = removed = 0
    async for record in records_of(bus, LETTERS_TOPIC):
        letters = letters_in(record)
        if record.append_ts >= before:
            break
        for found in letters:
            letter = found.letter
            info = topics.get(letter.topic)
            if letter.reason not in _NEEDED or not info or info.log_id != letter.log_id:
                continue
            place = (letter.topic, letter.partition)
            if place not in first_kept:
                first_kept[place] = (await bus.bounds(*place)).first
            if letter.offset >= first_kept[place]:
                return end, removed, found
        end, removed = record.offset + 1, removed + len(letters)
    return end, removed, None
