"""Opening a store whose schema another process is making at the same moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from market_data_core.errors import UsageError
from market_data_store import opening

URI = "postgresql://localhost/db"


class Database:
    """A server's database without a schema, in which the other process has its turn at last."""

    def __init__(self, turns: int, *, old: bool = False) -> None:
        self._turns, self._old = turns, old
        self.made = False

    def _turn(self) -> None:
        self._turns -= 1
        self.made = self.made or self._turns < 0

    async def inspect(self) -> Any:
        self._turn()
        return SimpleNamespace(schema={"postgres": 1} if self.made or self._old else {})

    async def schema_behind(self) -> int:
        self._turn()
        return 0 if self.made else 2

    async def migrate(self) -> None:
        self.made = True

    async def close(self) -> None:
        return


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_schema_that_appears_meanwhile_is_not_an_old_one(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(turns)
    monkeypatch.setattr(opening, "open_store", lambda *_: database)
    found: Any = await opening.open_ready_store(URI)
    assert found is database
    assert database.made


async def test_an_old_schema_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_store", lambda *_: Database(9, old=True))
    with pytest.raises(UsageError, match="2 steps behind"):
        await opening.open_ready_store(URI)
