"""The tables that clients read and write, as stores present them: names, kinds, keys.

How a table is laid out in a database is told by the migrations alone; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "number", "count", "time", "day", "json"]
"""``number``: float64; ``count``: int64; ``time``: UTC nanoseconds; ``day``: a date; ``json``: the
text of a JSON value."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        nullable: whether a row may have no value there.
    """

    name: str
    kind: Kind
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        key: names of the columns that identify a row, in the order of the primary key.
        time: name of the column that ranges are about.
        columns: in the order of reading; the key's columns are among them.
        stamps: columns that the store fills: ``created_at``, ``updated_at``.
        row_id: name of a column of the key that tells rows of one series and time apart.
    """

    name: str
    key: tuple[str, ...]
    time: str
    columns: tuple[Column, ...]
    stamps: tuple[str, ...] = ()
    row_id: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the columns that are written and are not in the key."""
        return tuple(c.name for c in self.columns if c.name not in self.key + self.stamps)

    @property
    def written(self) -> tuple[Column, ...]:
        """The columns that a writer gives, in order."""
        return tuple(c for c in self.columns if c.name not in self.stamps)

    @property
    def series(self) -> tuple[str, ...]:
        """What the rows of a series, which follow each other in time, agree in."""
        return tuple(name for name in self.key if name not in (self.time, self.row_id))

    @property
    def order(self) -> tuple[str, ...]:
        """What puts the rows of a series in order."""
        return (self.time, self.row_id) if self.row_id else (self.time,)


@dataclass(frozen=True, slots=True)
class Select:
    """Which rows of a table to read; they come in the order of the table's key.

    Attributes:
        table: what to read.
        where: column of texts -> the values that are wanted; a column that is not named is free.
        start: rows whose time is at or after this, UTC ns; None for no bound.
        end: rows whose time is before this, UTC ns; None for no bound.
        as_of: bars only: the versions that were known at this moment, UTC ns.
        last: only the newest so many rows of each series.
    """

    table: Table
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    start: int | None = None
    end: int | None = None
    as_of: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class TableStatus:
    """How a table stands.

    Attributes:
        rows: exact where counting is cheap, else the database's estimate.
        size_bytes: with its indexes; None where the database cannot tell.
        first: the earliest time in it, UTC ns; None if it is empty. `last` likewise.
    """

    table: str
    rows: int
    size_bytes: int | None
    first: int | None
    last: int | None


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How a store stands.

    Attributes:
        name: what it is and where, without secrets.
        version: of the database, in its own words.
        schema: step of the schema, and `schema_known` the newest that this release knows.
        extensions: extension -> version, of those that matter here.
        tables: one entry for each table.
    """

    name: str
    version: str
    schema: int
    schema_known: int
    extensions: Mapping[str, str]
    tables: Sequence[TableStatus]


@dataclass(frozen=True, slots=True)
class Policy:
    """Something that is done to a table as time goes on.

    Attributes:
        kind: ``retention`` (rows that are older are deleted), ``compression`` (older ones are
            packed) or ``rollup`` (a view of wider bars).
        table: to which it is done; for a rollup the view's name.
        after_days: age at which it is done; None for a rollup.
        by: who does it: ``timescaledb`` (a background job), ``view`` (on reading), or ``mdp``
            (``mdp store policies --apply``).
    """

    kind: Literal["retention", "compression", "rollup"]
    table: str
    after_days: int | None
    by: Literal["timescaledb", "view", "mdp"]


def _columns(kind: Kind, names: str, nullable: bool = False) -> tuple[Column, ...]:
    return tuple(Column(name, kind, nullable) for name in names.split())


BARS = Table(
    "bars_ohlcv",
    ("provider", "symbol", "interval", "ts"),
    "ts",
    (
        *_columns("text", "provider symbol interval"),
        *_columns("time", "ts"),
        *_columns("number", "open high low close volume"),
        *_columns("number", "vwap", nullable=True),
        *_columns("count", "trade_count", nullable=True),
        *_columns("text", "state"),
        *_columns("time", "created_at updated_at"),
    ),
    ("created_at", "updated_at"),
)
SIGNALS = Table(
    "signals",
    ("provider", "symbol", "ts", "name"),
    "ts",
    (
        *_columns("text", "provider symbol"),
        *_columns("time", "ts"),
        *_columns("text", "name"),
        *_columns("number", "value"),
        *_columns("number", "score", nullable=True),
        *_columns("text", "state"),
        *_columns("json", "metadata"),
        *_columns("time", "created_at"),
    ),
    ("created_at",),
)
OPTIONS = Table(
    "options_snap",
    ("provider", "symbol", "expiry", "option_type", "strike", "ts"),
    "ts",
    (
        *_columns("text", "provider symbol"),
        *_columns("day", "expiry"),
        *_columns("text", "option_type"),
        *_columns("number", "strike"),
        *_columns("time", "ts"),
        *_columns("number", "bid ask last iv delta gamma theta vega", nullable=True),
        *_columns("count", "oi volume", nullable=True),
        *_columns("number", "spot", nullable=True),
    ),
)
FUNDAMENTALS = Table(
    "fundamentals",
    ("provider", "symbol", "metric", "period", "asof"),
    "asof",
    (
        *_columns("text", "provider symbol"),
        *_columns("time", "asof"),
        *_columns("text", "metric"),
        *_columns("number", "value"),
        *_columns("text", "currency period"),
    ),
)
NEWS = Table(
    "news",
    ("provider", "id", "symbol"),
    "published_at",
    (
        *_columns("text", "provider id"),
        *_columns("time", "published_at"),
        *_columns("text", "symbol title url summary"),
        *_columns("number", "sentiment_score", nullable=True),
    ),
    row_id="id",
)
JOB_RUNS = Table(
    "job_runs",
    ("id",),
    "started_at",
    (
        *_columns("text", "id job_name dataset_name provider mode status"),
        *_columns("text", "config_fingerprint pipeline_version"),
        *_columns("count", "rows_written rows_failed"),
        *_columns("json", "symbols"),
        *_columns("time", "min_ts max_ts", nullable=True),
        *_columns("text", "error_message"),
        *_columns("json", "metadata"),
        *_columns("time", "started_at"),
        *_columns("time", "completed_at", nullable=True),
        *_columns("count", "elapsed_ms", nullable=True),
    ),
)

TABLES = {table.name: table for table in (BARS, SIGNALS, OPTIONS, FUNDAMENTALS, NEWS, JOB_RUNS)}
"""All of them by name."""
