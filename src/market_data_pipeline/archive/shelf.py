"""The archive's folder as its writers see it: files are staged, and published once they count.

How every event gets there exactly once. A writer holds a claim on a partition, proven by a token in
the store. For a span of the log it

1. *stages* the files: writes them to a folder of the segment's own under ``.staging``, and flushes
   files and folder to disk;
2. *commits* the checkpoint: the position behind the span, and the segment's name, in one
   transaction that is refused if the token is not the newest;
3. *publishes*: renames the files into the folders where readers look, and flushes those.

So a file that readers can see is always covered by a checkpoint, and needs no store to be judged.
Whoever takes a partition over publishes what the last checkpoint names, whether or not its
predecessor has got there, and removes what else was staged under older tokens: it will be read
again. Renaming twice has the effect of once, because the second one finds nothing to rename. A
writer that was paused and taken over is refused at 2, or repeats at 3 what its successor has done;
what it stages afterwards is removed by itself, or at the next change of owner.

All writers of one archive have to see the same folder. The folder bears an identity, which the
checkpoints repeat: positions of one archive are never applied to another.
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl

from market_data_core.errors import TransientError, UsageError
from market_data_pipeline.archive.layout import (
    IDENTITY,
    METADATA_KEY,
    STAGING,
    FileInfo,
    Identity,
    Segment,
    read_identity,
)

SPAN_ROWS = 1 << 14
"""Rows of a row group: what a reader of a short time has to decode at least."""
_MANIFEST = "files.json"


@dataclass(frozen=True, slots=True)
class Table:
    """What becomes one file.

    Attributes:
        folder: relative to the archive.
        frame: the rows; events ordered by src_ts.
        info: of events; None for what was rejected or set aside.
    """

    folder: str
    frame: pl.DataFrame
    info: FileInfo | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged: number of files, and their bytes."""

    files: int = 0
    size: int = 0


class Shelf:
    """An archive's folder, made if it does not exist.

    Args:
        root: the folder.

    Raises:
        UsageError: the folder cannot be made or written to.
        DamagedFileError: what is there is not an archive of this release.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.identity = read_identity(root) or self._identify()
        except OSError as error:
            msg = (
                f"the archive's folder {root} cannot be used: {error.strerror or error}; "
                "choose another with --path or archive.path"
            )
            raise UsageError(msg) from error

    def _identify(self) -> Identity:
        """Give the folder an identity, unless another process is quicker."""
        mine = Identity(uuid.uuid4().hex)
        draft = self.root / f".{mine.id}.tmp"
        _write(draft, msgspec.json.encode(mine))
        try:
            os.link(draft, self.root / IDENTITY)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        _flush_folder(self.root)
        return read_identity(self.root) or mine

    def stage(self, segment: Segment, tables: Iterable[Table]) -> Staged:
        """Write the segment's files where no reader looks; durable on return. Blocks on I/O.

        Raises:
            TransientError: the disk is full, or otherwise refuses.
        """
        folder = self._folder(segment)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            paths: list[str] = []
            size = 0
            for table in tables:
                if not paths:
                    folder.mkdir(parents=True)
                file = folder / f"{len(paths)}.tmp"
                size += write_parquet(file, table.frame, table.info)
                paths.append(f"{table.folder}/{segment.name}-{len(paths)}.parquet")
            if not paths:
                return Staged()
            _write(folder / _MANIFEST, msgspec.json.encode(paths))
            for at in (folder, folder.parent, folder.parent.parent, self.root):
                _flush_folder(at)
            return Staged(len(paths), size)
        except OSError as error:
            raise TransientError(_told(self.root, error)) from error

    def publish(self, segment: Segment) -> None:
        """Move a segment's staged files to where readers look; no effect if that was done.

        Raises:
            TransientError: the disk refuses.
        """
        folder = self._folder(segment)
        try:
            try:
                manifest = (folder / _MANIFEST).read_bytes()
            except FileNotFoundError:
                return
            paths = msgspec.json.decode(manifest, type=list[str])
            touched: set[Path] = set()
            for number, path in enumerate(paths):
                target = self.root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # it was moved before
                    (folder / f"{number}.tmp").replace(target)
                parents = list(target.relative_to(self.root).parents)
                touched.update(self.root / parent for parent in parents)
            for at in sorted(touched, key=lambda p: -len(p.parts)):
                _flush_folder(at)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise TransientError(_told(self.root, error)) from error

    def discard(self, segment: Segment) -> None:
        """Remove what was staged for a segment."""
        shutil.rmtree(self._folder(segment), ignore_errors=True)

    def sweep(self, topic: str, partition: int, token: int) -> None:
        """Remove what was staged for a partition under tokens older than `token`."""
        place = self._place(topic, partition)
        for folder in place.iterdir() if place.is_dir() else ():
            found = folder.name.removeprefix(f"{topic}-{partition}-").split("-", 2)
            if len(found) != 3 or not found[1].isdecimal() or int(found[1]) < token:
                shutil.rmtree(folder, ignore_errors=True)

    def _place(self, topic: str, partition: int) -> Path:
        return self.root / STAGING / f"{topic}-{partition}"

    def _folder(self, segment: Segment) -> Path:
        return self._place(segment.topic, segment.partition) / segment.name


def _told(root: Path, error: Exception) -> str:
    return f"the archive in {root} cannot be written: {error}"


def spans_of(times: pl.Series) -> list[tuple[int, int, int]]:
    """Bounds and size of each row group of a file whose rows are ordered by `times` (UTC ns)."""
    found = []
    for start in range(0, len(times), SPAN_ROWS):
        part = times.slice(start, SPAN_ROWS)
        found.append((int(part[0]), int(part[-1]), len(part)))
    return found


def write_parquet(path: Path, frame: pl.DataFrame, info: FileInfo | None) -> int:
    """Write a file of the archive, durable on return; its size in bytes.

    Raises:
        OSError: the disk refuses.
    """
    about = msgspec.json.encode(info) if info else b"{}"
    data = io.BytesIO()  # polars hides what goes wrong with a file that it writes to
    frame.write_parquet(
        data,
        compression="zstd",
        row_group_size=SPAN_ROWS,
        metadata={METADATA_KEY: about.decode()},
    )
    _write(path, data.getbuffer())
    return data.getbuffer().nbytes


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
