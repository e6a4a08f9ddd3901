"""Recordings made of what is kept: events of the archive, bars of the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path

import polars as pl

from market_data_core.contracts.bus import Bus
from market_data_core.contracts.store import Tables
from market_data_core.errors import UsageError
from market_data_core.events import (
    OFFICIAL_SUFFIX,
    PROVIDER_RULE,
    EventBatch,
    Rejected,
    is_provider,
)
from market_data_core.tables import BARS, Select
from market_data_pipeline.archive.files import BLOCK_ROWS, Archive, Selection
from market_data_pipeline.archive.letters import letters_of, set_aside
from market_data_pipeline.assembly import LETTERS_TOPIC
from market_data_pipeline.providers.recording import (
    FileRecording,
    RecordingOptions,
    open_recording,
)

_LANE_VERSION = "archive-1"
_LANE_CHARS = 16
_PACED_ROWS = 256


class ArchiveRecording:
    """Implements :class:`market_data_core.contracts.provider.Recording` over an archive.

    What is in the archive when it is made is what it gives, however the archive grows.

    Args:
        archive: holds the events.
        wanted: which of them.
        name: the provider name of all of them; their own by default.
        aside: events to leave out; None to leave out none.
        paced: in small batches, for one that is handed out at the events' own pace.

    Attributes:
        lane: hash of the files' names and sizes, and of all that changes the events.
    """

    def __init__(
        self,
        archive: Archive,
        wanted: Selection,
        *,
        name: str | None = None,
        aside: pl.DataFrame | None = None,
        paced: bool = False,
    ) -> None:
        if name is not None and not is_provider(name):
            msg = f"--as {name!r}: {PROVIDER_RULE}"
            raise UsageError(msg)
        self._archive, self._wanted, self._name, self._aside = archive, wanted, name, aside
        self._block_rows = _PACED_ROWS if paced else BLOCK_ROWS
        self._files = archive.files(wanted)
        lane = sha256(repr((_LANE_VERSION, wanted, name, self._block_rows)).encode())
        for _, path in self._files:
            lane.update(f"{path.relative_to(archive.root)}:{path.stat().st_size}\n".encode())
        if aside is not None:
            lane.update(repr(aside.rows()).encode())
        self.lane = lane.hexdigest()[:_LANE_CHARS]

    def read(self) -> Iterator[EventBatch | Rejected]:
        """Yield the events in the order of src_ts, ties in the order of their append.

        Raises:
            UsageError: a file is damaged, or is gone.
        """
        return self._archive.scan(
            self._wanted,
            name=self._name,
            aside=self._aside,
            files=self._files,
            block_rows=self._block_rows,
        )

    def presorted(self) -> ArchiveRecording:
        """Itself: it is in order."""
        return self


async def archive_recording(
    bus: Bus, root: Path, wanted: Selection, name: str | None = None, paced: bool = False
) -> ArchiveRecording:
    """A recording of an archive's events, less what the live run set aside.

    Args:
        bus: holds dead letters that are not archived yet.
        root: the archive's folder.
        wanted: which events.
        name: the provider name of all of them; their own by default.
        paced: for one that is handed out at the events' own pace.

    Raises:
        UsageError: there is no archive, or nothing in it of what is wanted.
    """
    archive = Archive(root)
    files = archive.files(wanted)
    if not files:
        msg = f"the archive in {root} has no events of what is asked"
        raise UsageError(msg)
    providers = (
        {wanted.provider} if wanted.provider else {d.provider for d in archive.datasets(wanted)}
    )
    letters = await letters_of(
        bus, LETTERS_TOPIC, archive.letters(wanted), providers, wanted.from_ts, wanted.to_ts
    )
    return ArchiveRecording(archive, wanted, name=name, aside=set_aside(letters), paced=paced)


async def bars_recording(
    store: Tables, wanted: Selection, interval: str, name: str | None, folder: Path
) -> FileRecording:
    """The store's bars of one interval as a recording of a vendor's bars.

    Those that the vendor has sent itself are taken if there are any, else those computed from its
    events.

    Args:
        store: holds the bars.
        wanted: which of them; its provider must be given.
        interval: theirs.
        name: the provider name that the bars get; the feed's by default.
        folder: an empty one, which has to last as long as the recording.

    Raises:
        UsageError: there are no bars.
    """
    assert wanted.provider is not None  # noqa: S101
    columns = ("symbol", "ts", "open", "high", "low", "close", "volume")
    paths: list[str] = []
    for stored in (f"{wanted.provider}{OFFICIAL_SUFFIX}", wanted.provider):
        where = {"provider": [stored], "interval": [interval]}
        if wanted.symbols:
            where["symbol"] = list(wanted.symbols)
        frames = store.scan(Select(BARS, where, wanted.from_ts, wanted.to_ts))
        async with aclosing(frames):
            async for frame in frames:
                if len(frame):
                    paths.append(str(folder / f"{len(paths):06d}.parquet"))
                    frame.select(columns).write_parquet(paths[-1])
        if paths:
            break
    else:
        msg = f"the store has no bars of {interval} for what is asked; mdp bars shows what it has"
        raise UsageError(msg)
    options = RecordingOptions(interval=interval, format="parquet")
    return open_recording(
        paths, name=name or wanted.provider, options=options, spool_dir=folder, presort=True
    )
