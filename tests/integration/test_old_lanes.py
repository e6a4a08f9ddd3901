"""Logs of recordings: dropped when they are older than what the bus keeps."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tests.integration.conftest import Deployment

HEAD = "symbol,time,price,size,trade_id\n"
YEAR_NS = 365 * 86_400 * 10**9


def test_the_log_of_an_old_recording_is_dropped(deployment: Deployment) -> None:
    start = 1_761_314_400_000
    for name, seq in (("old", 1), ("new", 2)):
        path = deployment.folder / f"{name}.csv"
        path.write_text(f"{HEAD}A,{start + seq},{seq},1,{seq}\n")
    deployment.ok("run", "old.csv", "--as", "x")
    bus = deployment.folder / ".mdp" / "bus"
    (old,) = bus.glob("mdp.events.*.db")
    with closing(sqlite3.connect(old)) as db:
        db.execute("UPDATE log SET append_ts = append_ts - ?", (YEAR_NS,))
        db.commit()
    before = deployment.bars()

    said = deployment.ok("run", "old.csv", "--as", "x")  # its own log is not in its way
    assert "already" in said or "unchanged" in said
    assert old.exists()
    said = deployment.ok("run", "new.csv", "--as", "x")
    assert not old.exists()
    assert "1 stored bars" in said  # made of as many events, and its own log is gone
    assert deployment.bars() == before
    assert len(list(bus.glob("mdp.events.*.db"))) == len(list(bus.glob("mdp.bars.*.db"))) == 1
