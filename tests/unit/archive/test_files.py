"""Reading the archive back."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.archive.conftest import NS, START, Desk, batch, packed

from market_data_core.errors import DamagedFileError, UsageError
from market_data_core.events import EventBatch
from market_data_pipeline.archive import files as files_module
from market_data_pipeline.archive.files import Archive, Selection, file_info
from market_data_pipeline.archive.layout import encoded, event_folder
from market_data_pipeline.archive.recording import ArchiveRecording
from market_data_pipeline.providers.recording import open_recording


@settings(max_examples=15)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("ABC"), st.integers(0, 90), st.integers(0, 2)),
        min_size=1, max_size=60,
    ),
    slice_rows=st.integers(1, 30),
    block_rows=st.integers(1, 30),
)  # fmt: skip
def test_events_come_in_order_whatever_the_slices(
    rows: list[tuple[str, int, int]], slice_rows: int, block_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        trades = [(s, float(at), seq, 1.0 + i) for i, (s, at, seq) in enumerate(rows)]
        half = len(trades) // 2
        asyncio.run(_archive(desk, trades[:half], trades[half:]))
        wanted = Selection(from_ts=START + 10 * NS, to_ts=START + 80 * NS, symbols=("A", "B"))
        with patch.object(files_module, "SLICE_ROWS", slice_rows):
            found = [
                (int(e.src_ts[i]), e.symbols[e.codes[i]], float(e.close.to_floats()[i]))
                for e in desk.archive.scan(wanted, block_rows=block_rows)
                for i in range(len(e))
            ]
    times = [ts for ts, _, _ in found]
    assert times == sorted(times)
    kept = [(START + r[1] * NS, r[0], t[3]) for r, t in zip(rows, trades, strict=True)]
    inside = [k for k in kept if k[1] in "AB" and START + 10 * NS <= k[0] < START + 80 * NS]
    assert Counter(found) == Counter(inside)


async def _archive(desk: Desk, *parts: list[tuple[str, float, int, float]]) -> None:
    for part in parts:
        if part:
            await desk.append(packed(batch(*part)))
            await desk.once()


async def test_ties_come_in_the_order_of_the_log(desk: Desk) -> None:
    await desk.append(*(packed(batch(("A", 1, 0, float(price)))) for price in (5, 3, 4)))
    await desk.once()
    (found,) = desk.archive.scan(Selection())
    assert found.close.to_floats().tolist() == [5, 3, 4]


async def test_a_slice_holds_about_so_many_rows(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.append(packed(batch(*(("A", i / 100, i, 1.0) for i in range(2000)))))
    await desk.once()
    monkeypatch.setattr(files_module, "SLICE_ROWS", 100)
    sizes = [len(frame) for frame in desk.archive.frames(Selection())]
    assert sum(sizes) == 2000
    assert max(sizes) <= 120


ODD = ["0700", "007", "BRK/B", "A=B", "Ü", "%41", "A B", "..", "~", "X" * 64, "Ω" * 64, "NULL"]


async def test_any_name_is_read_back(desk: Desk) -> None:
    await desk.append(packed(batch(*((name, 1, i, 1.0) for i, name in enumerate(ODD)))))
    await desk.append(packed(batch(("A", 1, 1, 1.0), provider="Ω" * 64)))
    await desk.once()

    assert {d.symbol for d in desk.archive.datasets()} == {*ODD, "A"}
    assert {d.provider for d in desk.archive.datasets()} == {"f", "Ω" * 64}
    for name in ODD:
        (found,) = desk.archive.scan(Selection(symbols=(name,)))
        assert found.symbols == (name,)
    assert max(len(p.name) for p in desk.root.rglob("*")) < 200
    files = f"{desk.root}/date=*/*/*/*.parquet"
    sql = f"SELECT symbol FROM read_parquet('{files}', hive_partitioning=1)"
    frame = pl.scan_parquet(files, hive_partitioning=True).collect()
    long = "Ω" * 64  # they believe the folder's name, which is cut short
    for shown in (
        [symbol for (symbol,) in duckdb.connect().execute(sql).fetchall()],
        frame["symbol"].to_list(),
    ):
        assert Counter(s for s in shown if s[:10] != long[:10]) == Counter({*ODD, "A"} - {long})


async def test_a_symbol_of_digits_alone_stays_a_text(desk: Desk) -> None:
    await desk.append(packed(batch(("0700", 1, 1, 1.0))))
    await desk.once()
    files = f"{desk.root}/date=*/*/*/*.parquet"
    assert pl.scan_parquet(files, hive_partitioning=True).collect()["symbol"].to_list() == ["0700"]
    sql = f"SELECT symbol FROM read_parquet('{files}', hive_partitioning=1, hive_types_autocast=0)"
    assert duckdb.connect().execute(sql).fetchall() == [("0700",)]


def test_encoded_names_differ() -> None:
    names = [*ODD, "Ω" * 63, "a", "A"]
    assert len({encoded(name) for name in names}) == len(names)
    assert event_folder("2025-10-24", "a/b", "X") == "date=2025-10-24/provider=a%2Fb/symbol=X"


async def test_single_files_are_recordings(desk: Desk, tmp_path: Path) -> None:
    bar = batch(("A", 0, 0, 3.0), ohl=([2.0], [4.0], [1.0]), kind="bar", interval="1d")
    wide = batch(("A", 2, 7, 3.0), ohl=([2.0], [4.0], [1.0]))
    await desk.append(packed(batch(("A", 1, 5, 10.5))), packed(bar), packed(wide))
    await desk.once()
    (file,) = [str(path) for _, path in desk.archive.files(Selection())]

    read = [
        (b.kind, b.interval, e.seq, e.o, e.h, e.l, e.c, e.v)
        for b in open_recording([file], spool_dir=tmp_path).read()
        if isinstance(b, EventBatch)
        for e in b.events()
    ]

    assert sorted(read) == [
        ("bar", "1d", 0, 2.0, 4.0, 1.0, 3.0, 1.5),
        ("tick", "1s", 5, 10.5, 10.5, 10.5, 10.5, 1.5),
        ("tick", "1s", 7, 2.0, 4.0, 1.0, 3.0, 1.5),
    ]


async def test_a_recording_is_told_by_what_it_gives(desk: Desk) -> None:
    await desk.append(packed(batch(("A", 1, 5, 10.5))))
    await desk.once()
    archive = desk.archive
    lane = ArchiveRecording(archive, Selection()).lane
    assert ArchiveRecording(archive, Selection()).lane == lane
    others = [
        ArchiveRecording(archive, Selection(symbols=("A",))).lane,
        ArchiveRecording(archive, Selection(), name="x").lane,
        ArchiveRecording(archive, Selection(), paced=True).lane,
    ]
    await desk.append(packed(batch(("A", 2, 6, 10.5))))
    await desk.once()
    others.append(ArchiveRecording(archive, Selection()).lane)
    assert len({lane, *others}) == 5


async def test_what_is_no_archive_or_damaged_is_said(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no archive in"):
        Archive(tmp_path / "none")
    await desk.append(packed(batch(("A", 1, 5, 10.5))))
    await desk.once()
    ((_, path),) = desk.archive.files(Selection())
    pl.DataFrame({"x": [1]}).write_parquet(path)
    with pytest.raises(UsageError, match="no file of an archive"):
        file_info(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="no file of an archive"):
        list(desk.archive.scan(Selection()))
    (desk.root / "archive.json").write_text("{}")
    with pytest.raises(DamagedFileError, match=r"archive\.json cannot be read"):
        Archive(desk.root)
