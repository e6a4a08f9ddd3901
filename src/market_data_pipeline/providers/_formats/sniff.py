"""Telling a file's format by its content."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from market_data_core.errors import UsageError
from market_data_pipeline.providers._formats.binance import BinanceFormat
from market_data_pipeline.providers._formats.csv_file import CsvFormat, header_of
from market_data_pipeline.providers._formats.dbn import DbnFormat
from market_data_pipeline.providers._formats.inputs import PARQUET_MAGIC, ZSTD_MAGIC, Input
from market_data_pipeline.providers._formats.ndjson import NdjsonFormat
from market_data_pipeline.providers._formats.options import FormatName, RecordingOptions
from market_data_pipeline.providers._formats.parquet_file import ParquetFormat
from market_data_pipeline.providers._formats.rows import Format
from market_data_pipeline.providers._formats.table import ALIASES

_FORMATS: dict[str, Callable[[Input, RecordingOptions], Format]] = {
    "binance": BinanceFormat,
    "ndjson": NdjsonFormat,
    "csv": CsvFormat,
    "parquet": ParquetFormat,
    "dbn": DbnFormat,
}
_HEAD_BYTES = 1 << 16
_BINARY_BYTES = 1 << 10
_DBN_MAGIC = b"DBN"
_RECEIVED = re.compile(rb"\d{16,19} \{")
_NAME = re.compile(r"[A-Za-z_][\w .#%/()-]*")
_KNOWN_NAMES = frozenset(name for aliases in ALIASES.values() for name in aliases)


class _Shape(msgspec.Struct):
    ver: Any = None
    stream: Any = None
    e: Any = None


_shape = msgspec.json.Decoder(_Shape)


def open_format(source: Input, options: RecordingOptions) -> Format:
    """The file as its format, which the options name or its first bytes tell.

    Raises:
        UsageError: the bytes are of no format that can be read, or lack what is needed.
    """
    name = format_of(source) if options.format == "auto" else options.format
    if source.gzipped and name in ("parquet", "dbn"):
        msg = f"{source.label} is {name} data inside gzip; decompress it first"
        raise UsageError(msg)
    return _FORMATS[name](source, options)


def format_of(source: Input) -> FormatName:
    """What a file is; text of no known kind counts as NDJSON, so that every line is kept.

    Raises:
        UsageError: the bytes are binary data of no known format.
    """
    head = source.head(_HEAD_BYTES)
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if head.startswith((_DBN_MAGIC, ZSTD_MAGIC)):
        return "dbn"
    if b"\0" in head[:_BINARY_BYTES]:
        msg = (
            f"{source.label} is binary data of no known format; known are Binance messages, "
            "NDJSON events, CSV, Parquet and Databento DBN"
        )
        raise UsageError(msg)
    for line in head.split(b"\n"):
        found = _format_of_line(line.strip())
        if found:
            return found
    return "csv" if _is_csv(head) else "ndjson"


def _format_of_line(line: bytes) -> FormatName | None:
    if _RECEIVED.match(line):
        return "binance"
    if not line.startswith(b"{"):
        return None
    try:
        shape = _shape.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if shape.ver is not None:
        return "ndjson"
    return "binance" if shape.stream is not None or shape.e is not None else None


def _is_csv(head: bytes) -> bool:
    """Whether the first line names columns: one that is known, or as many as the next has."""
    separator, names = header_of(head)
    if not names or not all(_NAME.fullmatch(name) for name in names):
        return False
    if _KNOWN_NAMES.intersection(name.lower() for name in names):
        return True
    lines = [line for line in head.split(b"\n") if line.strip()]
    return len(lines) > 1 and lines[1].count(separator.encode()) == len(names) - 1
