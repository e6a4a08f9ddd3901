"""Rows to a file and back."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import polars as pl
import pytest

from market_data_core.errors import TransientError, UsageError
from market_data_core.tables import BARS, OPTIONS, SIGNALS, Select, Table
from market_data_store import AsyncStoreClient, transfer
from market_data_store.opening import open_ready_store
from market_data_store.transfer import Form, export_rows, import_rows
from mds_client.models import Bar, OptionSnap, SignalRow

T0 = datetime(2025, 10, 24, 14, tzinfo=UTC)


class Import:
    """Takes what is imported; keeps what is refused."""

    def __init__(self, table: Table, kind: type) -> None:
        self.stamps, self.kind = table.stamps, kind
        self.chunks: list[list[Any]] = []
        self.refused: list[tuple[int, str, bytes]] = []

    def make(self, row: Mapping[str, Any]) -> Any:
        values = {k: v for k, v in row.items() if k not in self.stamps}
        if isinstance(values.get("metadata"), str):
            values["metadata"] = json.loads(values["metadata"])
        try:
            return msgspec.convert(values, self.kind)
        except msgspec.ValidationError as error:
            raise UsageError(str(error)) from error

    async def submit(self, records: list[Any]) -> None:
        self.chunks.append(records)

    async def refuse(self, line: int, reason: str, original: bytes) -> None:
        self.refused.append((line, reason, original))

    async def run(self, path: Path | str, form: Form) -> int:
        return await import_rows(str(path), form, self.make, self.submit, self.refuse)

    @property
    def records(self) -> list[Any]:
        return [record for chunk in self.chunks for record in chunk]


BARS_GIVEN = [
    Bar(symbol="SPY", open=0.1, high=1e300, low=1 / 3, close=i, volume=5e-324, vwap=None,
        ts=T0 + timedelta(microseconds=i), trade_count=2**53 + i)
    for i in range(3)
]  # fmt: skip


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
async def test_what_goes_out_comes_back(any_uri: str, tmp_path: Path, form: Form) -> None:
    signals = [
        SignalRow(symbol="S", name='a"\n', value=0.1, ts=T0, metadata={"x": [1, None, "é"]}),
        SignalRow(symbol="S", name="b", value=-0.1, ts=T0, score=0.5, state="retracted"),
    ]
    day = date(2025, 12, 19)
    options = [OptionSnap(symbol="S", expiry=day, option_type="C", strike=1, ts=T0, oi=3)]
    store = await open_ready_store(any_uri)
    try:
        client = AsyncStoreClient(store)
        await client.upsert_bars(BARS_GIVEN)
        await client.upsert_signals(signals)
        await client.upsert_options(options)
        for table, kind, given in (
            (BARS, Bar, BARS_GIVEN),
            (SIGNALS, SignalRow, signals),
            (OPTIONS, OptionSnap, options),
        ):
            path = tmp_path / table.name
            assert await export_rows(store, Select(table), str(path), form) == len(given)
            back = Import(table, kind)
            assert await back.run(path, form) == len(given)
            assert (back.records, back.refused) == (given, [])
    finally:
        await store.close()
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith("store")} == {
        "bars_ohlcv",
        "signals",
        "options_snap",
    }


class Frames:
    """A store of these frames."""

    def __init__(self, *frames: pl.DataFrame, then: Exception | None = None) -> None:
        self._frames, self._then = frames, then
        self.closed = False

    async def scan(self, _: Select) -> AsyncIterator[pl.DataFrame]:
        try:
            for frame in self._frames:
                yield frame
            if self._then:
                raise self._then
        finally:
            self.closed = True

    async def select(self, _: Select) -> pl.DataFrame:
        return self._frames[0] if self._frames else frame_of([])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    schema: dict[str, Any] = {
        "name": pl.String,
        "ts": pl.Datetime("ns", "UTC"),
        "metadata": pl.String,
    }
    return pl.DataFrame(rows, schema=schema)


async def test_ndjson_is_one_object_a_line(tmp_path: Path) -> None:
    frame = frame_of([{"name": "a", "ts": T0, "metadata": '{"b": [1.10]}'}, {"name": None}])
    frame = frame.with_columns(
        pl.when(pl.col("name").is_null())
        .then(pl.lit(1).cast(pl.Datetime("ns", "UTC")))
        .otherwise("ts")
        .alias("ts"),
        metadata=pl.col("metadata").fill_null("null"),
    )
    store: Any = Frames(frame, frame[:1])
    path = tmp_path / "out.ndjson"
    assert await export_rows(store, Select(SIGNALS), str(path), "ndjson") == 3
    first = b'{"name":"a","ts":"2025-10-24T14:00:00.000000Z","metadata":{"b": [1.10]}}\n'
    second = b'{"name":null,"ts":"1970-01-01T00:00:00.000000001Z","metadata":null}\n'
    assert path.read_bytes() == first + second + first


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
async def test_a_file_is_whole_or_as_it_was(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "out"
    path.write_text("as it was")
    store: Any = Frames(frame_of([]), then=TransientError("gone"))
    with pytest.raises(TransientError):
        await export_rows(store, Select(SIGNALS), str(path), form)
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]
    assert store.closed
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        await export_rows(store, Select(SIGNALS), str(tmp_path / "no" / "out"), form)


async def test_a_full_disk_ends_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_write_frame", full)
    store: Any = Frames(frame_of([]), frame_of([]))
    with pytest.raises(UsageError, match="out cannot be written: No space left on device"):
        await export_rows(store, Select(SIGNALS), str(tmp_path / "out"), "ndjson")
    assert store.closed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
async def test_no_rows_are_a_file_too(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "out"
    store: Any = Frames()
    assert await export_rows(store, Select(SIGNALS), str(path), form) == 0
    back = Import(SIGNALS, SignalRow)
    assert await back.run(path, form) == 0
    assert (back.chunks, back.refused) == ([], [])
    if form == "parquet":
        assert pl.read_parquet(path).columns == ["name", "ts", "metadata"]


async def test_parquet_of_many_frames(tmp_path: Path) -> None:
    frames = [frame_of([{"name": f"{i}", "ts": T0, "metadata": "{}"}] * 3) for i in range(4)]
    store: Any = Frames(*frames)
    path = tmp_path / "out.parquet"
    assert await export_rows(store, Select(SIGNALS), str(path), "parquet") == 12
    assert pl.read_parquet(path).equals(pl.concat(frames))


GOOD = b'{"symbol":"S","name":"up","value":1,"ts":"2025-10-24T14:00:00Z"}'


async def test_bad_lines_are_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_LINE_BYTES_MAX", 100)
    monkeypatch.setattr(transfer, "_CHUNK_ROWS", 2)
    path = tmp_path / "in.ndjson"
    lines = [
        b"\xef\xbb\xbf" + GOOD,
        b"{",
        b"  \r",
        b"[1]",
        b'{"symbol":"S"}',
        b'{"a":"' + b"x" * 300 + b'"}',
        GOOD.replace(b"S", b"\xff"),
        b'{"symbol":"S","name":"up","value":"x"}',
        GOOD,
    ]
    path.write_bytes(b"\n".join(lines))
    back = Import(SIGNALS, SignalRow)
    assert await back.run(path, "ndjson") == 2
    assert [line for line, _, _ in back.refused] == [2, 4, 5, 6, 7, 8]
    reasons = [reason for _, reason, _ in back.refused]
    assert reasons[0].startswith("not a JSON object")
    assert reasons[1].startswith("not a JSON object")
    assert "missing required field `name`" in reasons[2]
    assert reasons[3] == "longer than 100 bytes"
    assert reasons[4].startswith("not a JSON object")
    assert "`$.value`" in reasons[5]
    assert back.refused[0][2] == b"{"
    assert [len(chunk) for chunk in back.chunks] == [1, 1]


async def test_bad_rows_of_parquet_are_told(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    naive = T0.replace(tzinfo=None)
    row = {"symbol": "S", "name": "up", "ts": naive}
    pl.DataFrame([row | {"value": 1.0}, row | {"value": None}]).write_parquet(path)
    back = Import(SIGNALS, SignalRow)
    assert await back.run(path, "parquet") == 1
    assert back.records[0].ts == T0
    ((line, reason, original),) = back.refused
    assert (line, "`$.value`" in reason) == (2, True)
    assert json.loads(original)["value"] is None


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
async def test_files_that_cannot_be_read(tmp_path: Path, form: Form) -> None:
    back = Import(SIGNALS, SignalRow)
    with pytest.raises(UsageError, match="cannot be read"):
        await back.run(tmp_path / "none", form)
    if form == "parquet":
        (tmp_path / "bad").write_bytes(b"PAR1 and no more")
        with pytest.raises(UsageError, match="cannot be read as a Parquet file"):
            await back.run(tmp_path / "bad", form)


async def test_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    given, taken = io.BytesIO(GOOD + b"\n"), io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=given))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=taken))
    back = Import(SIGNALS, SignalRow)
    assert await back.run("-", "ndjson") == 1
    store: Any = Frames(frame_of([{"name": "a", "metadata": "{}"}]))
    assert await export_rows(store, Select(SIGNALS), "-", "ndjson") == 1
    assert taken.getvalue() == b'{"name":"a","ts":null,"metadata":{}}\n'
    assert not given.closed
    for work in (
        export_rows(store, Select(SIGNALS), "-", "parquet"),
        back.run("-", "parquet"),
    ):
        with pytest.raises(UsageError, match="name a file"):
            await work
