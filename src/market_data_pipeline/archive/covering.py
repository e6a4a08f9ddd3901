"""What the archive holds of logs that have forgotten it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from market_data_core.contracts.store import PartitionStatus
from market_data_core.deadletters import DeadLetter
from market_data_core.events import EventBatch, Kind
from market_data_pipeline.archive.checkpoint import ArchiveCheckpoint, decode_archive_checkpoint
from market_data_pipeline.archive.files import Archive, Selection, batches_of
from market_data_pipeline.archive.layout import LETTER_COLUMNS


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Records of a partition that its log no longer holds.

    Attributes:
        topic: name of the topic.
        log_id: of its log.
        partition: number of the partition.
        before: position up to which they are gone.
    """

    topic: str
    log_id: str
    partition: int
    before: int


class Covering:
    """An archive beside the store's word on how far it reaches.

    Args:
        archive: the files.
        rows: positions of the archive's group.
    """

    def __init__(self, archive: Archive, rows: Iterable[PartitionStatus]) -> None:
        self._archive = archive
        self._known: Mapping[tuple[str, int], ArchiveCheckpoint] = {
            (row.key.topic, row.key.partition): decode_archive_checkpoint(row.checkpoint)
            for row in rows
            if row.checkpoint
        }

    def covers(self, gone: Forgotten) -> bool:
        """Whether everything that was forgotten was archived, from the log's first event on."""
        found = self._known.get((gone.topic, gone.partition))
        return (
            found is not None
            and found.archive == self._archive.identity.id
            and found.log_id == gone.log_id
            and found.missed == 0
            and found.position >= gone.before
        )

    def oldest(self, provider: str) -> int | None:
        """Begin of the oldest day that files are there of, UTC ns; None if there are none."""
        return self._archive.first_day(Selection(provider=provider))

    def events(
        self, wanted: Selection, kind: Kind, gone: Mapping[int, Forgotten]
    ) -> Iterator[tuple[int, EventBatch]]:
        """Forgotten events, each batch with the key of what it belongs to.

        Args:
            wanted: which events.
            kind: ticks or bars.
            gone: whose events, by any key.
        """
        of_kind = pl.col("kind") == kind
        for frame in self._archive.frames(wanted) if gone else ():
            for key, place in gone.items():
                part = frame.filter(
                    of_kind,
                    pl.col("log") == place.log_id,
                    pl.col("partition") == place.partition,
                    pl.col("offset") < place.before,
                )
                for batch in batches_of(part):
                    yield key, batch

    def letters(self, wanted: Selection, known: Collection[tuple[str, int]]) -> list[DeadLetter]:
        """Dead letters about events that are wanted.

        Args:
            wanted: which events.
            known: log and offset of messages that are known already, whose letters are left out.
        """
        frame = self._archive.letters(wanted).with_columns(pl.col("src_ts").cast(pl.Int64))
        return [
            letter_of(row)
            for row in frame.iter_rows(named=True)
            if (row["log"], row["offset"]) not in known
        ]


def letter_of(row: Mapping[str, object]) -> DeadLetter:
    """A dead letter from its row in the archive."""
    own = {"reason", "detail", "where", "provider", "symbol", "src_ts", "events", "original"}
    values = {name: row[name] for name in LETTER_COLUMNS if name in own | {"message"}}
    place = {name: row[f"of_{name}"] for name in ("topic", "partition", "offset")}
    return DeadLetter(**values, **place, log_id=row["of_log"])  # type: ignore[arg-type]
