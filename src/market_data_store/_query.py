"""What readers ask for, checked and put as a :class:`~market_data_core.tables.Select`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime

from market_data_core.errors import RejectedError, UsageError
from market_data_core.events import parse_ts
from market_data_core.intervals import canonical_interval
from market_data_core.tables import Select, Table

When = datetime | date | str | int
"""A moment: a datetime with its zone, a day (midnight UTC), an ISO 8601 text, or UTC ns."""

Texts = str | Sequence[str]
"""One value or several."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GIVE = "give a datetime with its zone, an ISO 8601 text such as 2025-10-24, or UTC nanoseconds"


def moment(name: str, value: When) -> int:
    """`value` in UTC nanoseconds; `name` is the argument's, for messages.

    Raises:
        UsageError: it is no time, or has no zone.
    """
    if isinstance(value, str):
        try:
            return parse_ts(value)
        except RejectedError as error:
            msg = f"{name}: {error}; {_GIVE}"
            raise UsageError(msg) from error
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime) or value.utcoffset() is None:
        msg = f"{name} is {value!r}; {_GIVE}"
        raise UsageError(msg)
    since = value - _EPOCH
    below_us: int = getattr(since, "nanoseconds", 0)  # pandas' datetimes have them
    return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1_000 + below_us


def optional_moment(name: str, value: When | None) -> int | None:
    """As :func:`moment`; None stays."""
    return None if value is None else moment(name, value)


def count(name: str, value: int) -> int:
    """`value` if it is a whole number above 0.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"{name} is {value!r}; give a whole number of at least 1"
        raise UsageError(msg)
    return value


def selection(
    table: Table,
    where: Mapping[str, Texts | None],
    start: When | None = None,
    end: When | None = None,
    *,
    as_of: When | None = None,
    last: int | None = None,
) -> Select:
    """Rows of `table` within a range, with one of the texts that `where` gives for a column.

    None means any. Symbols are put in upper case, intervals in their one spelling.

    Raises:
        UsageError: an argument makes no sense; the message names it.
    """
    first, after = optional_moment("start", start), optional_moment("end", end)
    if first is not None and after is not None and first > after:
        msg = f"start {start!r} is after end {end!r}"
        raise UsageError(msg)
    wanted = {name: _texts(name, value) for name, value in where.items() if value is not None}
    known = optional_moment("as_of", as_of)
    newest = None if last is None else count("n", last)
    return Select(table, wanted, first, after, known, newest)


def _texts(name: str, value: Texts) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value)
    argument = {"symbol": "symbols"}.get(name, name)
    for text in texts:
        if not isinstance(text, str) or not text or "\0" in text:
            msg = f"{argument}: {text!r} is not a name; give a text or several"
            raise UsageError(msg)
    if not texts:
        msg = f"{argument} is empty; name at least one, or give None for all"
        raise UsageError(msg)
    if name == "interval":
        texts = [canonical_interval(text) for text in texts]
    if name == "symbol":
        texts = [text.upper() for text in texts]
    return list(dict.fromkeys(texts))
