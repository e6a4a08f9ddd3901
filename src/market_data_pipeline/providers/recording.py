"""The ``recording`` provider: files of trades or bars, read as if they were a feed.

Formats, found by content: recorded Binance messages, NDJSON of version-1 events, CSV, Parquet,
and Databento DBN (extra ``databento``); text files may be gzip data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from market_data_core.errors import OutOfOrder, UsageError
from market_data_core.events import PROVIDER_RULE, EventBatch, Rejected, is_provider
from market_data_pipeline.providers._formats.inputs import STANDARD_INPUT, Input, open_input
from market_data_pipeline.providers._formats.merge import blocks, merged
from market_data_pipeline.providers._formats.options import RecordingOptions
from market_data_pipeline.providers._formats.order import (
    REORDER_NS,
    Piece,
    SeqCounter,
    reordered,
)
from market_data_pipeline.providers._formats.presort import presorted
from market_data_pipeline.providers._formats.rows import Format, Rows, Session
from market_data_pipeline.providers._formats.sniff import open_format

__all__ = ["FileRecording", "OutOfOrder", "RecordingOptions", "open_recording"]

DISORDER_NS = 10_500_000_000
SORT_BUFFER_EVENTS = 1_000_000
_SMALL_BYTES = 32 << 20
_LANE_CHARS = 16
_LANE_VERSION = "1"


class FileRecording:
    """Files joined in src_ts order; gives the same events in the same order at every reading.

    Inputs are taken in the order of their content's hash, so the order in which they are named
    does not matter. Small inputs are sorted in memory. Large ones are read in one pass, in which
    an event may stand up to one second out of place, is handed out late if it stands further
    back, and beyond that raises `OutOfOrder`; :meth:`presorted` gives the same files sorted first.

    Attributes:
        lane: hash of the inputs' bytes and of all that changes the events read from them.
    """

    def __init__(
        self,
        inputs: Sequence[tuple[Input, Format]],
        name: str | None,
        options: RecordingOptions,
        spool_dir: Path,
        *,
        disorder_ns: int = DISORDER_NS,
        sort_buffer_events: int = SORT_BUFFER_EVENTS,
        presort: bool = False,
    ) -> None:
        self._inputs = sorted(inputs, key=lambda pair: pair[0].digest)
        self._name = name
        self._options = options
        self._spool_dir = spool_dir
        self._disorder_ns = disorder_ns
        self._sort_buffer_events = sort_buffer_events
        self._presort = presort
        lane = xxhash.xxh3_128()
        for source, _ in self._inputs:
            lane.update(source.digest)
        lane.update(repr((_LANE_VERSION, name, presort, options.fingerprint())).encode())
        self.lane = lane.hexdigest()[:_LANE_CHARS]

    def presorted(self) -> FileRecording:
        """The same inputs, sorted on disk before the first event is handed out; another lane."""
        return FileRecording(
            self._inputs,
            self._name,
            self._options,
            self._spool_dir,
            disorder_ns=self._disorder_ns,
            sort_buffer_events=self._sort_buffer_events,
            presort=True,
        )

    def read(self) -> Iterator[EventBatch | Rejected]:
        """Yield all events merged in src_ts order, ties in input order, then in file order.

        Batches hold up to 32,768 events of one provider, kind and interval; where those alternate,
        the order holds within each of them and between blocks of that many events.

        Raises:
            OutOfOrder: an input has to be sorted first; some events were handed out already.
            UsageError: an input is cut off or damaged; all that could be read was handed out.
        """
        session = Session(self._name, self._options.symbols)
        sort = self._presort or self._is_small()
        pieces = [
            self._sorted(form, session) if sort else self._in_passing(source, form, session)
            for source, form in self._inputs
        ]
        for rows in blocks(merged(pieces), session):
            yield from session.emit(rows)

    def _is_small(self) -> bool:
        return sum(source.expected_bytes for source, _ in self._inputs) <= _SMALL_BYTES

    def _sorted(self, form: Format, session: Session) -> Iterator[Piece]:
        buffer_events = max(1, self._sort_buffer_events // len(self._inputs))
        pieces = presorted(form.read(session), buffer_events, self._spool_dir)
        if form.numbered:
            return pieces
        counter = SeqCounter(0)
        return (Piece(piece.keys, counter.number(piece.rows)) for piece in pieces)

    def _in_passing(self, source: Input, form: Format, session: Session) -> Iterator[Piece]:
        chunks: Iterator[Rows] = form.read(session)
        if not form.numbered:
            counter = SeqCounter(REORDER_NS + self._disorder_ns)
            chunks = map(counter.number, chunks)
        return reordered(chunks, session, source.label, self._disorder_ns, self._sort_buffer_events)


def open_recording(
    paths: Sequence[str],
    *,
    name: str | None = None,
    options: RecordingOptions | None = None,
    spool_dir: Path,
    disorder_ns: int = DISORDER_NS,
    sort_buffer_events: int = SORT_BUFFER_EVENTS,
    presort: bool = False,
) -> FileRecording:
    """Open files as one recording; reads every input once, to hash it.

    Args:
        paths: files; ``-`` is standard input, which is copied to `spool_dir` first.
        name: the provider name of all events; else the events' own, or ``recording``.
        options: how to read the files.
        spool_dir: where inputs are copied and sorted.
        disorder_ns: how far behind the events already handed out an event may come.
        sort_buffer_events: how many events may be held in memory while putting them in order.
        presort: sort before the first event is handed out.

    Raises:
        UsageError: an input cannot be opened, its format is not known, or it lacks what is needed.
    """
    options = options or RecordingOptions()
    if not paths or paths.count(STANDARD_INPUT) > 1:
        msg = "name at least one file, and standard input (-) at most once"
        raise UsageError(msg)
    if name is not None and not is_provider(name):
        msg = f"--as {name!r}: {PROVIDER_RULE}"
        raise UsageError(msg)
    inputs = [open_input(path, spool_dir) for path in paths]
    opened = [(source, open_format(source, options)) for source in inputs]
    return FileRecording(
        opened,
        name,
        options,
        spool_dir,
        disorder_ns=disorder_ns,
        sort_buffer_events=sort_buffer_events,
        presort=presort,
    )
