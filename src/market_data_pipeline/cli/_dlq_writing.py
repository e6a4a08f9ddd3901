"""Items of dead letters on their way through a write coordinator, and which of them fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHUTDOWN = "shutdown"
DRAIN_S = 1.0
"""Little is gained by waiting: what was not written is a dead letter still."""


@dataclass(frozen=True, slots=True)
class Handed:
    """An item on its way, and the letter or record that it came from."""

    item: Any
    record: str

    def __len__(self) -> int:
        return len(self.item) if hasattr(self.item, "take") else 1

    def take(self, index: Any) -> Handed:
        """Some of the rows of an item of several."""
        return Handed(self.item.take(index), self.record)


class Failures:
    """What the coordinator could not write, by record, until it is settled.

    Args:
        path: of the dead letters, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failed: dict[str, list[tuple[Any, BaseException, str]]] = {}

    async def save_all(
        self,
        failed: Sequence[tuple[Sequence[Handed], BaseException | str]],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep items with their errors; those that a closing coordinator leaves did not fail."""
        reason = str((metadata or {}).get("reason", ""))
        if reason == _SHUTDOWN:
            return
        for items, error in failed:
            told = error if isinstance(error, BaseException) else RuntimeError(error)
            for handed in items:
                self._failed.setdefault(handed.record, []).append((handed.item, told, reason))

    def pop(self, record: str) -> list[tuple[Any, BaseException, str]]:
        """What of a record failed."""
        return self._failed.pop(record, [])
