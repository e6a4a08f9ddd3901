"""Databento Binary Encoding, versions 1 to 3, plain or zstd; needs the ``databento`` extra.

Prices are int64 in units of 1e-9 and times uint64 UTC nanoseconds, as in Databento's "DBN"
reference and https://github.com/databento/dbn.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from market_data_core.errors import UsageError
from market_data_core.events import SRC_TS_MAX, Kind
from market_data_core.scaled import Scaled
from market_data_pipeline.providers._formats.inputs import ZSTD_MAGIC, Input, file_object
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.rows import Problems, Rows, Session

_BYTES_PER_RECORD = 50
_HEAD_BYTES = 1 << 16
_PRICE_SCALE = 9
_UNDEFINED_PRICE = 2**63 - 1
_NS_PER_DAY = 86_400 * 10**9
_BAR_INTERVALS = {"ohlcv-1s": "1s", "ohlcv-1m": "1m", "ohlcv-1h": "1h", "ohlcv-1d": "1d"}
_TICK_INTERVAL = "1s"


def _library() -> Any:
    try:
        import databento_dbn
    except ImportError as error:
        msg = (
            "DBN files need the package databento-dbn; install it with "
            "pip install 'market-data-platform[databento]'"
        )
        raise UsageError(msg) from error
    return databento_dbn


class DbnFormat:
    """A DBN file of trades or of bars (ohlcv-1s, -1m, -1h, -1d)."""

    def __init__(self, source: Input, options: RecordingOptions) -> None:
        """Read the metadata.

        Raises:
            UsageError: the package is missing, the file is damaged, or holds another schema.
        """
        self._source = source
        self._chunk_bytes = options.chunk_events * _BYTES_PER_RECORD
        self._dbn = _library()
        with file_object(source) as file:
            decoder = self._decoder()
            records: list[Any] = []
            while not records and (piece := file.read(_HEAD_BYTES)):
                records = self._decode(decoder, piece)
        if not records:
            msg = f"{source.label} is cut off: it ends before its first record"
            raise UsageError(msg)
        schema = str(records[0].schema)
        if schema != "trades" and schema not in _BAR_INTERVALS:
            msg = (
                f"{source.label} holds schema {schema}; only trades and "
                f"{', '.join(_BAR_INTERVALS)} can be read"
            )
            raise UsageError(msg)
        self._metadata = records[0]
        self._interval = _BAR_INTERVALS.get(schema, _TICK_INTERVAL)
        self._kind: Kind = "bar" if schema in _BAR_INTERVALS else "tick"
        self.numbered = self._kind == "tick"

    def read(self, session: Session) -> Iterator[Rows]:
        """Yield the file's rows in file order (see ``Format.read``)."""
        decoder = self._decoder()
        symbols = _Symbols(self._metadata)
        number = 0
        with file_object(self._source) as file:
            while piece := file.read(self._chunk_bytes):
                records = self._data(self._decode(decoder, piece), symbols)
                if records:
                    yield self._rows(session, records, symbols, number)
                number += len(records)
        if decoder.buffer():
            msg = f"{self._source.label} is cut off in a record; what came before it was read"
            raise UsageError(msg)

    def _decoder(self) -> Any:
        kinds = self._dbn.Compression
        zipped = self._source.magic == ZSTD_MAGIC
        return self._dbn.DBNDecoder(compression=kinds.ZSTD if zipped else kinds.NONE)

    def _decode(self, decoder: Any, piece: bytes) -> list[Any]:
        try:
            return list(decoder.write_and_decode(piece))
        except (self._dbn.DBNError, ValueError, OSError) as error:
            msg = f"{self._source.label} is damaged or is no DBN file: {str(error)[:200]}"
            raise UsageError(msg) from error

    def _data(self, records: list[Any], symbols: _Symbols) -> list[Any]:
        """The records that are data; the feed's own notes only change what is known."""
        dbn = self._dbn
        wanted = dbn.OHLCVMsg if self._kind == "bar" else dbn.TradeMsg
        data = []
        for record in records:
            if isinstance(record, wanted):
                data.append(record)
            elif isinstance(record, dbn.SymbolMappingMsg):
                symbols.learn(record)
            elif not isinstance(record, (dbn.Metadata, dbn.SystemMsg)):
                msg = f"{self._source.label} holds a {type(record).__name__} among its data"
                raise UsageError(msg)
        return data

    def _rows(self, session: Session, records: list[Any], symbols: _Symbols, number: int) -> Rows:
        problems: Problems = {}
        bars = self._kind == "bar"
        names = ("close", "open", "high", "low") if bars else ("price",)
        prices = []
        for name in names:
            raw = np.array([getattr(r, name) for r in records], np.int64)
            for i in np.flatnonzero(raw == _UNDEFINED_PRICE).tolist():
                problems.setdefault(i, ("not_finite", f"{name} is undefined"))
            prices.append(Scaled(raw, _PRICE_SCALE).to_floats())
        src_ts = self._times([r.ts_event for r in records], problems)
        ingest_ts = src_ts if bars else self._times([r.ts_recv for r in records], problems)
        names_of_rows = [
            symbols.name(r.instrument_id, ts)
            for r, ts in zip(records, src_ts.tolist(), strict=True)
        ]
        rows = Rows(
            np.full(len(records), session.stream_id(None, self._kind, self._interval), np.uint32),
            session.symbol_ids(names_of_rows),
            src_ts,
            np.array([0 if bars else r.sequence for r in records], np.int64),
            ingest_ts,
            prices[0],
            np.array([r.volume if bars else r.size for r in records], np.float64),
            (prices[1], prices[2], prices[3]) if bars else None,
        )
        label = self._source.label
        return session.checked(
            rows, problems, lambda i: (bytes(records[i]), f"{label}:record {number + i + 1}")
        )

    @staticmethod
    def _times(values: list[int], problems: Problems) -> Any:
        for i, ts in enumerate(values):
            if ts >= SRC_TS_MAX:
                problems.setdefault(i, ("bad_timestamp", f"time {ts} ns is undefined or absurd"))
        return np.array([ts if ts < SRC_TS_MAX else 0 for ts in values], np.int64)


class _Symbols:
    """Names of instruments, which may change from day to day."""

    def __init__(self, metadata: Any) -> None:
        self._by_day: dict[int, list[tuple[int, int, str]]] = {}
        for raw_symbol, intervals in metadata.mappings.items():
            for entry in intervals:
                if str(entry["symbol"]).isdigit():
                    span = _day_ns(entry["start_date"]), _day_ns(entry["end_date"]), raw_symbol
                    self._by_day.setdefault(int(entry["symbol"]), []).append(span)
        self._live: dict[int, str] = {}

    def learn(self, message: Any) -> None:
        """Take a mapping that a live capture holds between its records."""
        self._live[message.instrument_id] = str(message.stype_out_symbol)

    def name(self, instrument_id: int, ts_ns: int) -> str:
        """The instrument's symbol at a time; its number where nobody told."""
        for start, end, symbol in self._by_day.get(instrument_id, ()):
            if start <= ts_ns < end:
                return symbol
        return self._live.get(instrument_id) or str(instrument_id)


def _day_ns(day: date) -> int:
    since = datetime(day.year, day.month, day.day, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(days=1) * _NS_PER_DAY
