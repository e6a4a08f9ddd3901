"""A recording whose log is gone: its bars cannot be added up again, so they stay."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.integration.conftest import Deployment

HEAD = "symbol,time,price,size,trade_id\n"


def test_bars_of_a_lost_lane_never_give_way_to_remains(
    deployment: Deployment, tmp_path: Path
) -> None:
    start = 1_761_314_400_000
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text(HEAD + "".join(f"A,{start + i},10,1,{i}\n" for i in range(2)))
    two.write_text(
        HEAD
        + "".join(f"A,{start + 10 + i},20,1,{10 + i}\n" for i in range(3))
        + f"A,{start + 60_000},30,1,99\n"
    )
    deployment.ok("run", one, "--as", "x")
    before = deployment.bars()
    shutil.rmtree(deployment.folder / ".mdp" / "bus")
    said = deployment.ok("run", two, "--as", "x")
    assert "1 stored bars" in said
    assert deployment.bars()[: len(before)] == before
    assert len(deployment.bars()) == 2
    # read again, the first recording is known once more, and the window becomes whole
    deployment.ok("run", one, "--as", "x")
    assert deployment.query("SELECT trade_count FROM bars_ohlcv ORDER BY ts") == [(5,), (1,)]
