"""Columns as the server takes and gives them, byte by byte."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import psycopg

from market_data_store.backends import _postgres_read
from market_data_store.backends._postgres_arrays import (
    copy_rows,
    dumpers,
    floats,
    integers,
    moments,
    read_floats,
    read_integers,
    read_moments,
    texts,
)

if TYPE_CHECKING:
    from tests.servers.postgres import Server

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_copied_rows_are_the_columns(postgres: Server) -> None:
    """Names of any length, and nulls, in one stream without a byte too many."""
    heads = [("", "a"), ("LONGER", "ÄÖ-株"), ("x", "y" * 300)]
    head_of = np.array([2, 0, 1, 1, 0])
    ts = np.array([0, -1, 10**15, 1_761_314_520_123_456, 1])
    first = np.array([0.1, -0.0, 5e-324, 1e308, 3.0])
    last = np.array([np.nan, 1.0, np.nan, 2.0, 3.0])
    count = np.array([1, -1, -1, 2**62, 0])
    for keep in (np.arange(5), np.array([4]), np.array([3, 4]), np.array([1, 4])):
        data = copy_rows(heads, head_of[keep], ts[keep], [first[keep], last[keep]], count[keep], 7)
        with psycopg.connect(postgres.address) as db:
            db.execute(
                """CREATE TEMP TABLE t (a text, b text, ts timestamptz, f float8, l float8,
                    n bigint, c timestamptz, u timestamptz)"""
            )
            with db.cursor() as cursor, cursor.copy("COPY t FROM STDIN (FORMAT binary)") as copy:
                copy.write(data)
            rows = db.execute("SELECT * FROM t").fetchall()
        now = _EPOCH + timedelta(microseconds=7)
        assert rows == [
            (
                *heads[head_of[i]],
                _EPOCH + timedelta(microseconds=int(ts[i])),
                first[i],
                None if np.isnan(last[i]) else last[i],
                None if count[i] < 0 else count[i],
                now,
                now,
            )
            for i in keep
        ]


def test_arrays_go_there_and_back(postgres: Server) -> None:
    numbers = np.array([0.1, -0.0, 5e-324, np.inf, np.nan])
    whole = np.array([0, -(2**63), 2**63 - 1])
    names = ["", "a", "ÄÖ", "a", "'{}\""]
    for n in (0, 1, 3):
        with psycopg.connect(postgres.address) as db:
            for cls, dumper in dumpers():
                db.adapters.register_dumper(cls, dumper)
            given = (floats(numbers[:n]), integers(whole[:n]), moments(whole[:n] >> 12))
            answer = db.execute("SELECT %s, %s, %s", given, binary=True).pgresult
            assert answer is not None
            values = [answer.get_value(0, i) for i in range(3)]
            assert db.execute("SELECT %s", (texts(names[:n]),)).fetchone() == (names[:n],)
        assert read_floats(values[0]).tobytes() == numbers[:n].tobytes()
        assert read_integers(values[1]).tolist() == whole[:n].tolist()
        assert read_moments(values[2]).tolist() == (whole[:n] >> 12).tolist()
    assert len(read_floats(None)) == 0


def test_a_part_that_lost_its_order_is_put_in_order() -> None:
    """Grouping may give the rows of a series in any order."""
    shuffled = np.array([3, 1, 2])
    cells: list[bytes | None] = [moments(shuffled)]
    cells += [floats(shuffled + 0.5)] * 6 + [integers(shuffled)]
    cells += [moments(shuffled)] * 2 + [integers(shuffled)]
    for column in _postgres_read._arrays(cells):
        assert np.floor(column).tolist() == [1, 2, 3]
