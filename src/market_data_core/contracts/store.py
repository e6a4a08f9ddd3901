"""Where results and positions live, in one transaction."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from market_data_core.bars import BarBatch
from market_data_core.signals import Signal
from market_data_core.tables import Policy, Select, StoreStatus, Table

if TYPE_CHECKING:
    import polars as pl

GapState = Literal["open", "filled", "verified", "unfillable"]


@dataclass(frozen=True, slots=True)
class PartitionKey:
    """One partition as a consumer group sees it."""

    group: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Ownership of a partition, proven by its token.

    Attributes:
        token: raised at every change of owner; a commit under an older one is refused.
        sequence: number of commits so far; each commit raises it by one.
        checkpoint: what the last commit left, None if there was none.
    """

    key: PartitionKey
    token: int
    sequence: int
    checkpoint: bytes | None


@dataclass(frozen=True, slots=True)
class Message:
    """Something to publish once the transaction that decided it has committed.

    Attributes:
        destination: topic.
        key: unique; publishing twice under one key has the effect of once.
        payload: bytes for the bus.
        count: events inside.
        partition: of the destination; -1 for the same number as where it was decided.
        provider: the events' provider, "" for several; with `min_ts` and `max_ts` (UTC ns) it
            lets the bus find the message by time.
    """

    destination: str
    key: str
    payload: bytes
    count: int = 0
    partition: int = -1
    provider: str = ""
    min_ts: int = 0
    max_ts: int = 0


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """A message in the outbox, with its row's id and the partition that decided it."""

    id: int
    partition: int
    message: Message


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole in what is known: [from_ts, to_ts), UTC ns; symbol ``*`` for all symbols.

    Attributes:
        state: ``open`` until somebody has looked after it.
    """

    provider: str
    symbol: str
    from_ts: int
    to_ts: int
    cause: str
    detail: str
    state: GapState = "open"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A bar that the database refused for good.

    Attributes:
        batch: index into ``Group.bars``.
        row: index into that batch.
        error: the database's words.
    """

    batch: int
    row: int
    error: str


class Group(Protocol):
    """The unit of work: one partition's bars, signals, checkpoint and messages as one write."""

    @property
    def claim(self) -> Claim:
        """Who writes; ``claim.sequence`` is the number of commits before this one."""
        ...

    @property
    def bars(self) -> Sequence[BarBatch]:
        """Bars in the order in which they were decided."""
        ...

    @property
    def bars_topic(self) -> str:
        """Topic on which stored bars are published, "" for none."""
        ...

    @property
    def tells_all(self) -> bool:
        """Whether bars that were stored as they are before are published too, not changes alone."""
        ...

    @property
    def signals(self) -> Sequence[Signal]:
        """Signals to insert, or to put in the place of what is stored under their keys."""
        ...

    @property
    def gaps(self) -> Sequence[Gap]:
        """Holes found."""
        ...

    def finish(self, bad: Sequence[BadRow]) -> tuple[bytes, Sequence[Message]]:
        """The checkpoint and messages, those of signals among them.

        Called inside the transaction, given the refused bars; must not block or have effects.
        """
        ...

    def refused(self, checkpoint: bytes) -> Sequence[BadRow]:
        """Which of its bars were refused, told from the checkpoint that its commit left."""
        ...


@dataclass(slots=True)
class WriteCounts:
    """What a write did to the rows it was given; the terms add up to their number.

    Attributes:
        kept: bars refused because the stored bar was made of more events.
        bad: bars refused by the database for good.
    """

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    kept: int = 0
    bad: int = 0

    def add(self, other: WriteCounts) -> None:
        """Add `other`, term by term."""
        for name in ("inserted", "updated", "unchanged", "kept", "bad"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class CommitResult:
    """What a commit did.

    Attributes:
        counts: over the bars of all groups; `signals` likewise.
        outbox: what is to be published now, in order.
        bad: partition -> its bad rows.
    """

    counts: WriteCounts = field(default_factory=WriteCounts)
    signals: WriteCounts = field(default_factory=WriteCounts)
    outbox: list[OutboxItem] = field(default_factory=list)
    bad: dict[int, list[BadRow]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """A partition's row as anybody may read it."""

    key: PartitionKey
    token: int
    owner: str
    heartbeat: int
    sequence: int
    checkpoint: bytes | None


class Commits(Protocol):
    """Where a micro-batcher gives its groups; an async context, entered while it works."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        """As :meth:`Store.commit`; errors that pass are waited out, and no outcome is unknown.

        Raises:
            FencedError: a claim no longer holds; nothing was written.
            RejectedError: a signal can never be stored; nothing was written.
        """
        ...

    def hold(self, rows: int) -> None:
        """So many rows wait for earlier ones to be committed before they are given here."""
        ...


class Positions(Protocol):
    """Who owns which partition, and results and positions in one transaction.

    Every method raises TransientError while the database cannot be used; nothing was done then,
    except that the outcome of `commit` is unknown if the connection broke inside it: read the
    partition's `status` and compare sequence and token.
    """

    async def heartbeat(
        self, group: str, topic: str, member: str, lease_ns: int, owned: Mapping[int, int]
    ) -> list[str]:
        """Tell that `member` lives and still owns partition -> token; returns live members."""
        ...

    async def leave(self, group: str, topic: str, member: str) -> None:
        """The member goes; its partitions are free at once."""
        ...

    async def claim(self, key: PartitionKey, member: str, lease_ns: int) -> Claim | None:
        """Take a partition that is free or whose owner's lease has run out; None if neither."""
        ...

    async def release(self, claim: Claim) -> None:
        """Give a partition up; no effect if it was lost already."""
        ...

    async def commit(
        self, groups: Sequence[Group], published: Sequence[int], guard: Claim | None = None
    ) -> CommitResult:
        """Write all groups in one transaction, and forget outbox rows already `published`.

        Args:
            groups: at most one a partition; of several signals with one key the last counts.
            published: ids of outbox rows.
            guard: a claim that must still hold for the commit to be allowed.

        Raises:
            FencedError: a claim no longer holds; nothing was written.
            RejectedError: a signal can never be stored; nothing was written.
        """
        ...

    async def outbox(self, group: str, topic: str, partition: int) -> list[OutboxItem]:
        """What a partition's earlier owner left unpublished, in order."""
        ...

    async def status(
        self, group: str | None = None, topic: str | None = None
    ) -> list[PartitionStatus]:
        """Partition rows, optionally of one group or topic."""
        ...

    async def forget(self, group: str, topic: str) -> None:
        """Remove a topic's partition rows (an abandoned lane)."""
        ...

    async def ping(self) -> None:
        """Return if the database can be written; raises TransientError if it cannot."""
        ...


class Tables(Protocol):
    """Rows for those who write and read them as such.

    Every method raises TransientError while the database cannot be used; nothing was done then.
    """

    async def write_bars(self, batches: Sequence[BarBatch]) -> WriteCounts:
        """Upsert bars in one transaction, by the same rules as `commit`; no one is told of them.

        Raises:
            RejectedError: a row can never be stored; nothing was written.
        """
        ...

    async def upsert(self, table: Table, rows: Sequence[Any]) -> WriteCounts:
        """Insert rows, or update those that differ from what is stored, in one transaction.

        Args:
            table: any but that of the bars.
            rows: objects with an attribute for each column of ``table.written``: datetimes with a
                zone or UTC ns, dates, dictionaries or lists for JSON. Of one key the last counts.

        Raises:
            RejectedError: a row can never be stored; nothing was written.
        """
        ...

    async def replace(self, table: Table, old: Any, new: Any) -> bool:
        """Put `new` in the place of `old`, which has the same key, if it is still stored so."""
        ...

    async def select(self, what: Select) -> pl.DataFrame:
        """The rows as a frame: texts and JSON as String, times as Datetime("ns", "UTC")."""
        ...

    def scan(self, what: Select, rows_max: int = 100_000) -> AsyncGenerator[pl.DataFrame]:
        """The same rows in frames of at most `rows_max`, all as of one moment.

        Whoever stops before its end has to call ``aclose``: a connection is held till then.
        """
        ...

    async def retain(self, table: Table, before: int, interval: str | None = None) -> int:
        """Delete rows whose time is before `before` (UTC ns), a bounded number at a time.

        Args:
            table: bars (with their history), signals, options, fundamentals, news or job runs.
            before: as above.
            interval: bars only: of this interval alone.

        Returns:
            How many were deleted.
        """
        ...


class Store(Positions, Tables, Protocol):
    """A database of bars and what belongs to them, which also holds its writers' positions."""

    async def migrate(self) -> None:
        """Bring the schema to this release's version; safe to call at any time."""
        ...

    async def migrate_down(self, to: int) -> None:
        """Take the schema back to step `to`; what only newer steps have is lost.

        Raises:
            UsageError: there is no such step below the present one.
        """
        ...

    async def schema_behind(self) -> int:
        """How many steps `migrate` would take; writes nothing.

        Raises:
            UsageError: the schema is newer than this release.
        """
        ...

    async def bars(
        self,
        symbol: str | None = None,
        interval: str | None = None,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> pl.DataFrame:
        """Bars with start <= ts < end (UTC ns), ordered by key; None means any."""
        ...

    async def inspect(self) -> StoreStatus:
        """How the store stands."""
        ...

    async def policies(self) -> list[Policy]:
        """What is done to the tables as time goes on."""
        ...

    async def gaps(self) -> list[Gap]:
        """The gap ledger, in the order of its entries."""
        ...

    async def close(self) -> None:
        """Release everything."""
        ...
