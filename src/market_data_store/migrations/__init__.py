"""The schema's only source: numbered SQL files for each database, up and down."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    Attributes:
        number: applied in ascending order.
        name: for people.
        up: SQL statements that take the step.
        down: SQL statements that take it back.
    """

    number: int
    name: str
    up: str
    down: str


def migrations(dialect: str) -> list[Migration]:
    """All steps for `dialect` (a folder beside this file), ascending."""
    folder = files(__name__).joinpath(dialect)
    found = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".up.sql"):
            stem = entry.name.removesuffix(".up.sql")
            number, _, name = stem.partition("_")
            down = folder.joinpath(f"{stem}.down.sql").read_text("utf-8")
            found.append(Migration(int(number), name, entry.read_text("utf-8"), down))
    return found
