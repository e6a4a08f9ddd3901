"""AMDS and MDS: where they look for a store, that they do so late, and what their page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from market_data_core.contracts.store import WriteCounts
from market_data_store.opening import default_uri, embedded_file
from mds_client import AMDS, MDS, Bar

BAR = Bar(symbol="SPY", open=1, high=2, low=1, close=2, volume=10)


@pytest.mark.parametrize(
    ("variables", "uri"),
    [
        ({"MDS_DSN": "a:1", "MDP_STORE_URI": "b:1", "MDP_HOME": "/h"}, "a:1"),
        ({"MDS_DSN": "", "MDP_STORE_URI": "sqlite:///b", "MDP_HOME": "/h"}, "sqlite:///b"),
        ({"MDP_HOME": "/h"}, "sqlite:////h/store.db"),
        ({}, "sqlite:///.mdp/store.db"),
    ],
)
def test_the_store_of_the_environment(
    variables: dict[str, str], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_uri() == uri


def test_files_of_embedded_stores() -> None:
    assert embedded_file("sqlite:///a/b.db") == Path("a/b.db")
    assert embedded_file("sqlite:////a/b.db?synchronous=full") == Path("/a/b.db")
    assert embedded_file("postgresql://x/y") is None


async def test_amds_opens_at_the_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    client = AMDS.from_env()
    assert not (tmp_path / "home").exists()
    async with client as db:
        assert await db.upsert_bars([BAR]) == WriteCounts(1)
        assert (await db.bars("spy"))["volume"].to_list() == [10.0]
    assert (tmp_path / "home" / "store.db").exists()


def test_mds_opens_at_the_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDS_DSN", f"sqlite:///{tmp_path / 'x' / 'store.db'}")
    client = MDS.from_env()
    assert not (tmp_path / "x").exists()
    with client as db:
        assert db.upsert_bars([BAR]) == WriteCounts(1)
        assert db.bars("spy")["volume"].to_list() == [10.0]


def test_the_programs_of_the_page_run(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "client-library.md"
    programs = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(programs)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1 0 0\n1200.0\n1000\n['up']\n", "")
