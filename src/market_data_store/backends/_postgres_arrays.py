"""Columns of NumPy as PostgreSQL's binary arrays and COPY rows, and back, without Python objects.

A value of a column takes part as a whole array, so the cost per row is that of copying its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncCursor
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts microseconds from 2000."""
EPOCH_DAYS = 10_957
"""Likewise days; all of ours begin in 1970."""
_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_HEADER = 20  # bytes before the first element of an array of one dimension
_NULL = -1


class _Packed(bytes):
    """An array as the server takes it."""


class Texts(_Packed):
    """``text[]``."""


class Floats(_Packed):
    """``float8[]``."""


class Blobs(_Packed):
    """``bytea[]``."""


class Integers(_Packed):
    """``bigint[]``."""


class Moments(_Packed):
    """``timestamptz[]``."""


class Days(_Packed):
    """``date[]``."""


T = TypeVar("T", bound=_Packed)
Missing = NDArray[np.bool_] | None

_TYPES: dict[type[_Packed], tuple[int, int]] = {
    Texts: (1009, 25),
    Blobs: (1001, 17),
    Floats: (1022, 701),
    Integers: (1016, 20),
    Moments: (1185, 1184),
    Days: (1182, 1082),
}
"""Each array's type, and that of its elements."""


def dumpers() -> list[tuple[type[_Packed], type[Dumper]]]:
    """What a connection has to know to take the arrays as parameters."""
    return [
        (cls, type(f"{cls.__name__}Dumper", (_PackedDumper,), {"oid": array}))
        for cls, (array, _) in _TYPES.items()
    ]


class _PackedDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        return bytes(obj)


def _packed(cls: type[T], n: int, body: bytes, nulls: bool = False) -> T:
    element = _TYPES[cls][1]
    shape = (1, nulls, element, n, 1) if n else (0, 0, element)
    return cls(np.array(shape, ">i4").tobytes() + body)


def _numbers(cls: type[T], column: NDArray[Any], dtype: str, missing: Missing = None) -> T:
    cells = np.empty(len(column), [("length", ">i4"), ("value", dtype)])
    cells["length"], cells["value"] = cells.dtype.itemsize - 4, column
    if missing is None or not missing.any():
        return _packed(cls, len(column), cells.tobytes())
    cells["length"][missing] = _NULL
    flat = cells.view(np.uint8).reshape(len(cells), -1)
    whole = np.ones(flat.shape, bool)
    whole[missing, 4:] = False
    return _packed(cls, len(column), flat[whole].tobytes(), nulls=True)


def floats(column: NDArray[np.float64], missing: Missing = None) -> Floats:
    """A parameter of type ``float8[]``; what is `missing` is null."""
    return _numbers(Floats, column, ">f8", missing)


def integers(column: NDArray[Any], missing: Missing = None) -> Integers:
    """A parameter of type ``bigint[]``; what is `missing` is null."""
    return _numbers(Integers, column, ">i8", missing)


def moments(column_us: NDArray[np.int64], missing: Missing = None) -> Moments:
    """A parameter of type ``timestamptz[]`` from microseconds since 1970."""
    return _numbers(Moments, column_us - EPOCH_US, ">i8", missing)


def days(column: NDArray[np.int64]) -> Days:
    """A parameter of type ``date[]`` from days since 1970."""
    return _numbers(Days, column - EPOCH_DAYS, ">i4")


def texts(column: Iterable[str]) -> Texts:
    """A parameter of type ``text[]``; equal texts are encoded once."""
    known: dict[str, bytes] = {}
    cells = [known.get(text) or known.setdefault(text, _field(text)) for text in column]
    return _packed(Texts, len(cells), b"".join(cells))


def encoded_texts(column: Iterable[bytes]) -> Texts:
    """A parameter of type ``text[]`` from UTF-8."""
    return _strings(Texts, column)


def blobs(column: Iterable[bytes]) -> Blobs:
    """A parameter of type ``bytea[]``."""
    return _strings(Blobs, column)


def _strings(cls: type[T], column: Iterable[bytes]) -> T:
    cells = [len(raw).to_bytes(4, "big") + raw for raw in column]
    return _packed(cls, len(cells), b"".join(cells))


@lru_cache(maxsize=1 << 16)
def _head(width: int, texts: tuple[str, ...]) -> bytes:
    return width.to_bytes(2, "big") + b"".join(map(_field, texts))


def _field(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(4, "big") + raw


def raw_rows(cursor: AsyncCursor[Any]) -> Iterator[list[bytes | None]]:
    """The rows of a cursor's answer, values as they came."""
    answer = cursor.pgresult
    if answer is not None:
        for row in range(answer.ntuples):
            yield [answer.get_value(row, column) for column in range(answer.nfields)]


def read_floats(raw: bytes | None) -> NDArray[np.float64]:
    """An answer of type ``float8[]`` without nulls; None is no elements."""
    return _read(raw, ">f8").astype(np.float64)


def read_integers(raw: bytes | None) -> NDArray[np.int64]:
    """An answer of type ``bigint[]`` without nulls; None is no elements."""
    return _read(raw, ">i8").astype(np.int64)


def read_moments(raw: bytes | None) -> NDArray[np.int64]:
    """An answer of type ``timestamptz[]`` without nulls, in microseconds since 1970."""
    return read_integers(raw) + EPOCH_US


def _read(raw: bytes | None, dtype: str) -> NDArray[Any]:
    if raw is None or len(raw) < _HEADER:
        return np.empty(0, dtype)
    cells: NDArray[Any] = np.frombuffer(raw, [("length", ">i4"), ("value", dtype)], offset=_HEADER)
    return cells["value"]


def copy_rows(
    heads: Sequence[tuple[str, ...]],
    head_of: NDArray[Any],
    moments_us: NDArray[np.int64],
    values: Sequence[NDArray[np.float64]],
    count: NDArray[np.int64],
    now_us: int,
) -> bytes:
    """Rows for ``COPY … (FORMAT binary)``: head's texts, moment, values, count, now, now.

    Args:
        heads: distinct beginnings of rows.
        head_of: shape (n,), which of them a row has.
        moments_us: shape (n,), microseconds since 1970.
        values: columns of shape (n,); NaN in the last one is null.
        count: shape (n,); negative is null.
        now_us: microseconds since 1970, the last two columns of each row.
    """
    width = len(heads[0]) + 1 + len(values) + 3
    encoded = [_head(width, head) for head in heads]
    lengths = np.array([len(head) for head in encoded])
    longest = int(lengths.max())
    padded = b"".join(head.ljust(longest, b"\0") for head in encoded)
    head_bytes = np.frombuffer(padded, np.uint8).reshape(-1, longest)
    names = ["ts", *(f"value{i}" for i in range(len(values))), "count", "created", "updated"]
    fields: list[Any] = [("head", np.uint8, (longest,))]
    for name in names:
        fields += [
            (f"{name}_length", ">i4"),
            (name, ">f8" if name.startswith("value") else ">i8"),
        ]
    rows = np.empty(len(head_of), fields)
    rows["head"] = head_bytes[head_of]
    for name in names:
        rows[f"{name}_length"] = 8
    rows["ts"] = moments_us - EPOCH_US
    for i, column in enumerate(values):
        rows[f"value{i}"] = column
    rows["count"] = count
    rows["created"] = rows["updated"] = now_us - EPOCH_US
    nulls = {f"value{len(values) - 1}": np.isnan(values[-1]), "count": count < 0}
    for name, missing in nulls.items():
        rows[f"{name}_length"][missing] = _NULL
    if (lengths == longest).all() and not any(missing.any() for missing in nulls.values()):
        return b"".join((_SIGNATURE, rows.tobytes(), _TRAILER))
    whole = np.ones((len(rows), rows.dtype.itemsize), bool)
    whole[:, :longest] = (np.arange(longest) < lengths[:, None])[head_of]
    dtypes: Any = rows.dtype.fields
    for name, missing in nulls.items():
        at = dtypes[name][1]
        whole[missing, at : at + 8] = False
    flat = rows.view(np.uint8).reshape(len(rows), -1)
    return b"".join((_SIGNATURE, flat[whole].tobytes(), _TRAILER))
