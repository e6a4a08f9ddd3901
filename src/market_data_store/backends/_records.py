"""What stores say of rows that are not bars."""

from __future__ import annotations

from datetime import date
from typing import Any

from market_data_core.errors import RejectedError, UsageError
from market_data_core.tables import BARS, Table


def require_records(table: Table) -> None:
    """Raise UsageError for the bars, whose replaced versions have to be kept."""
    if table is BARS:
        msg = f"rows of {table.name} are given in batches, by write_bars"
        raise UsageError(msg)


def other_key(table: Table, old: Any, new: Any) -> UsageError:
    """What to raise for a row that is to be replaced by one with another key."""
    msg = f"{_named(table, new)} cannot take the place of {_named(table, old)}: other key"
    return UsageError(msg)


def unwritable(table: Table, row: Any, why: object) -> RejectedError:
    """What to raise for a row that can never be stored."""
    message = f"{_named(table, row)} can never be stored: {why}"
    return RejectedError(reason="unwritable", message=message)


def _named(table: Table, row: Any) -> str:
    key = ", ".join(f"{name}={_shown(getattr(row, name))}" for name in table.key)
    return f"{table.name} ({key})"


def _shown(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else repr(value)
