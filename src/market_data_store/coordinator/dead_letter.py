"""Rows that could not be written, kept in a file until somebody writes or discards them."""

from __future__ import annotations

import asyncio
import typing
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from market_data_core.errors import UsageError
from market_data_store.coordinator._dlq_files import DlqFiles
from market_data_store.coordinator._dlq_lines import (
    UNREADABLE,
    DeadLine,
    Selection,
    encode_lines,
    failed_again,
    id_of,
    parse_line,
)
from market_data_store.coordinator.item_codec import UnreadableItems, decode_items

T = TypeVar("T")
log = structlog.get_logger("dead_letter_queue")


class LeasedItems(list[T]):
    """Items of a record that was handed out; ``submit_many`` confirms the record by them.

    Attributes:
        confirm: async; to be called when all of them are written.
        release: async; to be called when they will not be.
    """

    def __init__(
        self,
        items: Sequence[T],
        confirm: Callable[[], Awaitable[None]],
        release: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(items)
        self.confirm = confirm
        self.release = release


@dataclass(frozen=True, slots=True)
class DeadRecord(Generic[T]):
    """Items that failed together.

    Attributes:
        id: unique.
        items: what failed, of the type they had where that type is known.
        error: the error's words.
        error_type: its type's name.
        reason: ``metadata["reason"]`` if given, else `error_type`.
        metadata: as given to :meth:`DeadLetterQueue.save`.
        ts: when it was saved, UTC.
        type: qualified name of the items' type.
    """

    id: str
    items: list[T]
    error: str
    error_type: str
    reason: str
    metadata: dict[str, Any]
    ts: datetime
    type: str
    line: bytes = field(repr=False)


class DeadLetterQueue(Generic[T]):
    """Appends are durable when :meth:`save` returns; records come back in the order of saving.

    :meth:`replay` hands records out; they are removed when they are confirmed. If their `items`
    (the lists, whole) go through :meth:`WriteCoordinator.submit_many`, that happens by itself
    once they are stored, or set aside again as new records. Otherwise call :meth:`confirm`. What
    is not confirmed is handed out again when this process has ended, however it ended, or when
    :meth:`close` or :meth:`release` was called. So a record is written at least once, and a
    store that takes the same row twice without effect makes that once.

    Several objects, threads and processes may share one path. A file that has reached
    `bytes_max` is set aside as ``<path>.000001`` and so on; no record is ever removed to make
    room.

    ``DeadLetterQueue[Bar](path)`` gives back bars. Without a type the file's own note of the
    type is followed, if that type is registered in this process
    (:func:`market_data_store.coordinator.register_model`), else items are dictionaries.

    Args:
        path: file of JSON lines; folders are made.
        bytes_max: size of a file from which the next one is begun.
    """

    def __init__(self, path: str | Path, *, bytes_max: int = 8_000_000) -> None:
        if bytes_max < 1:
            msg = f"DeadLetterQueue: bytes_max is {bytes_max}; give at least 1"
            raise UsageError(msg)
        self.path = Path(path)
        self._files = DlqFiles(self.path, bytes_max, id_of)

    async def save(
        self,
        items: Sequence[T],
        error: BaseException | str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the items as one record (one for each type, if they differ).

        Args:
            items: what failed; an empty sequence has no effect.
            error: why.
            metadata: anything JSON can hold; ``reason`` is what records are counted by.

        Raises:
            OSError: the disk is full or the file cannot be written; nothing of it was kept.
        """
        await self.save_all([(items, error)], metadata)

    async def save_all(
        self,
        failed: Sequence[tuple[Sequence[T], BaseException | str]],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """As :meth:`save`, for several records at the price of one flush to disk.

        Raises:
            OSError: as for :meth:`save`.
        """
        lines = [
            line for items, error in failed for line in encode_lines(items, error, metadata or {})
        ]
        if not lines:
            return
        try:
            await asyncio.to_thread(self._files.append, lines)
        except OSError as error:
            log.error("cannot_save", path=str(self.path), records=len(lines), error=str(error))  # noqa: TRY400
            raise

    async def replay(
        self,
        count: int = 100,
        *,
        wanted: Callable[[DeadRecord[T]], bool] | None = None,
        ids: Collection[str] | None = None,
    ) -> list[DeadRecord[T]]:
        """Hand out the oldest records that nobody else has; see the class for what follows.

        Args:
            count: at most so many.
            wanted: which of them; None for any.
            ids: only these; None for any.

        Records that cannot be read, or whose items were kept for a person only, stay in the
        file and are logged.
        """
        records: dict[bytes, DeadRecord[T]] = {}
        unreadable = 0

        def choose(line: bytes) -> bool:
            nonlocal unreadable
            if ids is not None and id_of(line) not in ids:
                return False
            record = self._decode(line)
            if record is None:
                unreadable += 1
            elif wanted is None or wanted(record):
                records[line] = record
                return True
            return False

        lines = await asyncio.to_thread(self._files.take, count, choose)
        if unreadable:
            log.warning("unreadable_records", path=str(self.path), records=unreadable)
        return [self._lease(records[line]) for line in lines]

    async def confirm(self, records: Sequence[DeadRecord[T]]) -> None:
        """Remove records that were handed out and are written; others have no effect."""
        await asyncio.to_thread(self._files.confirm, [record.id for record in records])

    async def release(self, records: Sequence[DeadRecord[T]]) -> None:
        """Put records that were handed out back, at the end; others have no effect."""
        await asyncio.to_thread(self._files.give_back, [record.line for record in records])

    async def set_aside_again(
        self,
        record: DeadRecord[T],
        items: Sequence[T],
        error: BaseException,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Put a record that was handed out back, at the end, with what of it failed again and why.

        Its id and time stay; whenever the process dies, one record of that id is left. No effect
        if the record is not handed out.

        Args:
            record: which.
            items: those of its items that were not written; at least one.
            error: why.
            metadata: added to the record's; ``reason`` replaces its reason.

        Raises:
            OSError: the disk is full or the file cannot be written; it is still handed out.
        """
        line = failed_again(record.line, items, error, metadata or {})
        await asyncio.to_thread(self._files.give_back, [line])

    async def lines(self, wanted: Selection | None = None) -> list[DeadLine]:
        """Records as they stand in the file, oldest first, their items not yet read.

        Those that are handed out are not seen; damaged lines are left out.
        """
        found = map(parse_line, await asyncio.to_thread(self._files.lines))
        wanted = wanted or Selection()
        return [line for line in found if line is not None and wanted.fits(line)]

    def exists(self) -> bool:
        """Whether anything was ever kept here, also if it has gone since."""
        return self._files.exist()

    async def handed_out(self) -> int:
        """Records that living processes, this one included, have in hand."""
        return await asyncio.to_thread(self._files.handed_out)

    async def records(self, limit: int | None = None) -> list[DeadRecord[T]]:
        """The oldest records without handing them out; those that are handed out are not seen."""
        lines = await asyncio.to_thread(self._files.lines)
        readable = (record for line in lines if (record := self._decode(line)) is not None)
        return [record for _, record in zip(range(limit or len(lines)), readable, strict=False)]

    async def counts(self) -> dict[str, int]:
        """Records by reason; ``unreadable`` for lines that are damaged."""
        lines = await asyncio.to_thread(self._files.lines)
        found = Counter(line.reason if (line := parse_line(raw)) else UNREADABLE for raw in lines)
        return dict(found.most_common())

    async def purge(
        self,
        *,
        ids: Sequence[str] | None = None,
        reason: str | None = None,
        type: str | None = None,
        since: datetime | None = None,
        before: datetime | None = None,
        everything: bool = False,
        dry_run: bool = False,
    ) -> int:
        """Remove records for good; those that are handed out stay.

        Args:
            ids: only these.
            reason: only of this reason; ``unreadable`` for lines that are damaged.
            type: only of items of this type: its name, qualified or not.
            since: only those saved then or later; has a time zone.
            before: only those saved earlier; has a time zone.
            everything: has to be said where nothing else is given.
            dry_run: only count.

        Returns:
            How many were, or would be, removed.

        Raises:
            UsageError: nothing was selected.
        """
        chosen = Selection(None if ids is None else frozenset(ids), reason, type, since, before)
        if chosen == Selection() and not everything:
            msg = "purge: give ids, reason, type, since or before, or everything=True"
            raise UsageError(msg)
        for name, when in (("since", since), ("before", before)):
            if when is not None and when.tzinfo is None:
                msg = f"purge: {name}={when} has no time zone; give datetime(…, tzinfo=UTC)"
                raise UsageError(msg)

        def unwanted(raw: bytes) -> bool:
            return chosen.fits(parse_line(raw))

        if dry_run:
            lines = await asyncio.to_thread(self._files.lines)
            return sum(map(unwanted, lines))
        return await asyncio.to_thread(self._files.remove, unwanted)

    async def close(self) -> None:
        """Put back what was handed out and is not confirmed; the object stays usable."""
        await asyncio.to_thread(self._files.close)

    def _lease(self, record: DeadRecord[T]) -> DeadRecord[T]:
        items = LeasedItems(
            record.items, lambda: self.confirm([record]), lambda: self.release([record])
        )
        return replace(record, items=items)

    def _decode(self, raw: bytes) -> DeadRecord[T] | None:
        line = parse_line(raw)
        if line is None:
            return None
        try:
            items = decode_items(line.type, line.encoding, bytes(line.items), self._hint())
        except UnreadableItems as error:
            log.warning("unreadable_items", path=str(self.path), id=line.id, error=str(error))
            return None
        return DeadRecord(
            id=line.id,
            items=items,
            error=line.error,
            error_type=line.error_type,
            reason=line.reason,
            metadata=line.metadata,
            ts=line.ts,
            type=line.type,
            line=raw,
        )

    def _hint(self) -> type | None:
        arguments = typing.get_args(getattr(self, "__orig_class__", None))
        return arguments[0] if arguments and isinstance(arguments[0], type) else None
