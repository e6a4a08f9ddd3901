"""Recordings to write and read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from market_data_core.errors import MdpError
from market_data_core.events import EventBatch, Rejected
from market_data_pipeline.providers.recording import FileRecording, open_recording

Item = tuple[Any, ...]
"""An event's values, or ("rejected", reason, original bytes, place)."""


class Recordings:
    """Writes inputs to a folder of its own, and reads them back as plain values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def write(self, data: bytes | str | Iterable[str], name: str = "") -> str:
        if not isinstance(data, (bytes, str)):
            data = "".join(f"{line}\n" for line in data)
        path = self.folder / f"{next(self._numbers)}-{name or 'input'}"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return str(path)

    def open(self, paths: str | Sequence[str], **arguments: Any) -> FileRecording:
        inputs = [paths] if isinstance(paths, str) else paths
        return open_recording(inputs, spool_dir=self.folder / "spool", **arguments)

    def read(self, paths: str | Sequence[str], **arguments: Any) -> list[Item]:
        return self.flat(self.open(paths, **arguments).read())

    def read_until_error(self, path: str, **arguments: Any) -> tuple[list[Item], str]:
        """What is read before the error that must come, and its message."""
        items = []
        try:
            for item in self.open(path, **arguments).read():
                items.append(item)  # noqa: PERF402  (a comprehension would lose what came before)
        except MdpError as error:
            return self.flat(items), str(error)
        pytest.fail(f"{path} was read without an error")

    def flat(self, items: Iterable[EventBatch | Rejected]) -> list[Item]:
        found: list[Item] = []
        for item in items:
            if isinstance(item, Rejected):
                place = item.where.rpartition("/")[2].partition("-")[2]
                found.append(("rejected", item.reason, item.original, place))
                continue
            assert len(set(item.symbols)) == len(item.symbols)
            columns = [column.to_floats().tolist() for column in (*item.prices(), item.close)]
            columns.append(item.volume.to_floats().tolist())
            found += zip(
                itertools.repeat(item.provider),
                itertools.repeat(item.kind),
                itertools.repeat(item.interval),
                [item.symbols[code] for code in item.codes.tolist()],
                item.src_ts.tolist(),
                item.seq.tolist(),
                item.ingest_ts.tolist(),
                *columns,
                strict=False,
            )
        return found


def event_line(**values: Any) -> str:
    """A version-1 event as compact JSON."""
    event = {
        "ver": 1,
        "provider": "feed",
        "symbol": "SPY",
        "kind": "tick",
        "interval": "1s",
        "src_ts": "2025-10-24T14:02:01.234567Z",
        "ingest_ts": "2025-10-24T14:02:01.300000Z",
        "o": 425.15,
        "h": 425.15,
        "l": 425.15,
        "c": 425.15,
        "v": 1200,
        "seq": 183,
    }
    event |= values
    return json.dumps({k: v for k, v in event.items() if v is not ...}, separators=(",", ":"))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    return Recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="session")
def line() -> Any:
    return event_line
