"""The client of a store: bars, options, fundamentals, news and signals, in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from market_data_core.bars import BarBatch
from market_data_core.contracts.store import WriteCounts
from market_data_core.errors import UsageError
from market_data_core.tables import BARS, FUNDAMENTALS, NEWS, OPTIONS, Select
from market_data_store._access import checked_rows
from market_data_store._bar_rows import bar_batches
from market_data_store._query import Texts, When, moment, selection
from market_data_store._resample import edges, resample
from market_data_store.signals import SignalsStoreClient

if TYPE_CHECKING:
    import polars as pl


class AsyncStoreClient(SignalsStoreClient):
    """Writes and reads every table of a store.

    Rows go in as records, such as those of :mod:`mds_client.models`; several writes of the same
    rows have the effect of one. Reads give polars frames (``to_pandas()`` is one call away)
    with the columns of the table, texts as String, times as Datetime("ns", "UTC"), numbers as
    Float64, counts as Int64.

    Wherever a time is asked for, it is a datetime with its zone, an ISO 8601 text (a day is
    its midnight UTC), or UTC nanoseconds; an end is exclusive. Symbols are put in upper case.
    Every method raises UsageError for an argument that makes no sense, and TransientError while
    the store cannot be used; a write has done nothing then.

    Args:
        store: an open store, which stays its owner's to close, or the URI of one.
    """

    # bars

    async def upsert_bars(self, rows: Sequence[Any]) -> WriteCounts:
        """Insert bars, or update those that differ from what is stored, in one transaction.

        A stored bar that was made of more trades than the given one is kept as it is.

        Args:
            rows: such as :class:`mds_client.models.Bar`, or
                :class:`market_data_core.bars.BarBatch`, or both; of one key the last one counts.

        Raises:
            UsageError: something else is among the rows.
            RejectedError: the database refuses a row for good; nothing was written.
            TransientError: the store cannot be used now; nothing was written.
        """
        batches = bar_batches(checked_rows(BARS, rows, BarBatch))
        return await (await self._ready()).write_bars(batches) if batches else WriteCounts()

    async def bars(
        self,
        symbols: Texts | None = None,
        interval: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        provider: Texts | None = None,
        as_of: When | None = None,
    ) -> pl.DataFrame:
        """Bars with start <= ts < end, ordered by provider, symbol, interval, ts.

        Args:
            symbols: one or several; None for all, as for all of the following.
            interval: such as ``1m``, one or several.
            start: of the first window.
            end: exclusive.
            provider: the feed's name, one or several.
            as_of: the versions that were known then, instead of the latest ones.
        """
        where = {"symbol": symbols, "interval": interval, "provider": provider}
        return await self._select(selection(BARS, where, start, end, as_of=as_of))

    async def latest_bars(
        self,
        symbols: Texts | None,
        interval: Texts | None,
        n: int = 1,
        *,
        provider: Texts | None = None,
        as_of: When | None = None,
    ) -> pl.DataFrame:
        """The newest `n` bars of each provider, symbol and interval; as :meth:`bars`."""
        where = {"symbol": symbols, "interval": interval, "provider": provider}
        return await self._select(selection(BARS, where, as_of=as_of, last=n))

    async def resampled_bars(
        self,
        symbols: Texts | None,
        interval: str,
        every: str,
        start: When | None = None,
        end: When | None = None,
        *,
        provider: Texts | None = None,
        as_of: When | None = None,
    ) -> pl.DataFrame:
        """Wider bars made of stored ones, for a look at them.

        Windows begin at multiples of `every` since 1970 UTC; those with start <= ts < end are
        given, whole. Volumes are added, and vwaps weighted, as float64: the result may differ in
        the last digits from the bars that the micro-batcher computes exactly for a window of that
        length, which :meth:`bars` reads. A window's `vwap` and `trade_count` are null if those of
        a bar in it are not known; its state is ``gap`` or ``revised`` if that of one is.

        Args:
            symbols: one or several; None for all.
            interval: of the stored bars.
            every: a multiple of that.
            start: of the first window.
            end: exclusive.
            provider: the feed's name, one or several.
            as_of: from the versions that were known then.

        Returns:
            The columns of the bars, without ``created_at`` and ``updated_at``.
        """
        where = {"symbol": symbols, "interval": interval, "provider": provider}
        what = selection(BARS, where, start, end, as_of=as_of)
        first, after = edges(interval, every, what.start, what.end)
        frame = await self._select(Select(BARS, what.where, first, after, what.as_of))
        return resample(frame, every)

    def iter_bars(
        self,
        symbols: Texts | None = None,
        interval: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        provider: Texts | None = None,
        as_of: When | None = None,
        rows_max: int = 100_000,
    ) -> AsyncIterator[pl.DataFrame]:
        """As :meth:`bars`, in frames of at most `rows_max` rows, all as of one moment."""
        where = {"symbol": symbols, "interval": interval, "provider": provider}
        return self._scan(selection(BARS, where, start, end, as_of=as_of), rows_max)

    # options

    async def upsert_options(self, rows: Sequence[Any]) -> WriteCounts:
        """Insert or update option snapshots; as :meth:`upsert_signals`.

        Args:
            rows: such as :class:`mds_client.models.OptionSnap`.
        """
        return await self._upsert(OPTIONS, rows)

    async def options(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        option_type: Texts | None = None,
        provider: Texts | None = None,
    ) -> pl.DataFrame:
        """Option snapshots with start <= ts < end, ordered by the table's key.

        Args:
            symbols: of the underlyings; None for all, as for all of the following.
            start: of the snapshots.
            end: exclusive.
            option_type: ``C`` or ``P``.
            provider: the feed's name.
        """
        where = {"symbol": symbols, "option_type": option_type, "provider": provider}
        return await self._select(selection(OPTIONS, where, start, end))

    async def latest_options(
        self,
        symbols: Texts | None = None,
        n: int = 1,
        *,
        option_type: Texts | None = None,
        provider: Texts | None = None,
    ) -> pl.DataFrame:
        """The newest `n` snapshots of each contract; as :meth:`options`."""
        where = {"symbol": symbols, "option_type": option_type, "provider": provider}
        return await self._select(selection(OPTIONS, where, last=n))

    def iter_options(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        option_type: Texts | None = None,
        provider: Texts | None = None,
        rows_max: int = 100_000,
    ) -> AsyncIterator[pl.DataFrame]:
        """As :meth:`options`, in frames of at most `rows_max` rows, all as of one moment."""
        where = {"symbol": symbols, "option_type": option_type, "provider": provider}
        return self._scan(selection(OPTIONS, where, start, end), rows_max)

    # fundamentals

    async def upsert_fundamentals(self, rows: Sequence[Any]) -> WriteCounts:
        """Insert or update fundamentals; as :meth:`upsert_signals`.

        Args:
            rows: such as :class:`mds_client.models.FundamentalPoint`.
        """
        return await self._upsert(FUNDAMENTALS, rows)

    async def fundamentals(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        metric: Texts | None = None,
        provider: Texts | None = None,
        as_of: When | None = None,
    ) -> pl.DataFrame:
        """Fundamentals with start <= asof < end, ordered by the table's key.

        Args:
            symbols: one or several; None for all, as for all of the following.
            start: of `asof`.
            end: exclusive.
            metric: such as ``revenue``.
            provider: the feed's name.
            as_of: of each provider, symbol, metric and period only what was known then: the row
                with the greatest `asof` that is not after it. Not together with `end`.
        """
        where = {"symbol": symbols, "metric": metric, "provider": provider}
        if as_of is None:
            return await self._select(selection(FUNDAMENTALS, where, start, end))
        if end is not None:
            msg = "end and as_of both end the range; give one of them"
            raise UsageError(msg)
        known = moment("as_of", as_of) + 1
        return await self._select(selection(FUNDAMENTALS, where, start, known, last=1))

    def iter_fundamentals(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        metric: Texts | None = None,
        provider: Texts | None = None,
        rows_max: int = 100_000,
    ) -> AsyncIterator[pl.DataFrame]:
        """As :meth:`fundamentals`, in frames of at most `rows_max` rows, as of one moment."""
        where = {"symbol": symbols, "metric": metric, "provider": provider}
        return self._scan(selection(FUNDAMENTALS, where, start, end), rows_max)

    # news

    async def upsert_news(self, rows: Sequence[Any]) -> WriteCounts:
        """Insert or update news; as :meth:`upsert_signals`.

        Args:
            rows: such as :class:`mds_client.models.NewsItem`.
        """
        return await self._upsert(NEWS, rows)

    async def news(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        provider: Texts | None = None,
    ) -> pl.DataFrame:
        """News with start <= published_at < end, ordered by provider, id, symbol.

        Args:
            symbols: one or several; None for all, as for all of the following.
            start: of `published_at`.
            end: exclusive.
            provider: the feed's name.
        """
        where = {"symbol": symbols, "provider": provider}
        return await self._select(selection(NEWS, where, start, end))

    async def latest_news(
        self, symbols: Texts | None = None, n: int = 1, *, provider: Texts | None = None
    ) -> pl.DataFrame:
        """The newest `n` messages of each provider about each symbol; as :meth:`news`."""
        where = {"symbol": symbols, "provider": provider}
        return await self._select(selection(NEWS, where, last=n))

    def iter_news(
        self,
        symbols: Texts | None = None,
        start: When | None = None,
        end: When | None = None,
        *,
        provider: Texts | None = None,
        rows_max: int = 100_000,
    ) -> AsyncIterator[pl.DataFrame]:
        """As :meth:`news`, in frames of at most `rows_max` rows, all as of one moment."""
        where = {"symbol": symbols, "provider": provider}
        return self._scan(selection(NEWS, where, start, end), rows_max)
