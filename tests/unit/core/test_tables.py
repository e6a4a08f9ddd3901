"""What is told of the tables agrees with itself and with the classes of their rows."""

from __future__ import annotations

import msgspec
import pytest

from market_data_core.bars import VALUE_COLUMNS
from market_data_core.tables import BARS, FUNDAMENTALS, NEWS, OPTIONS, SIGNALS, TABLES, Table
from mds_client import models

_ROWS: list[tuple[Table, type[msgspec.Struct]]] = [
    (BARS, models.Bar),
    (SIGNALS, models.SignalRow),
    (OPTIONS, models.OptionSnap),
    (FUNDAMENTALS, models.FundamentalPoint),
    (NEWS, models.NewsItem),
]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_column_has_one_part(table: Table) -> None:
    """It is in the key, a value, or a stamp; the time and what is in the key are always there."""
    names = [column.name for column in table.columns]
    assert len(set(names)) == len(names)
    assert sorted([*table.key, *table.values, *table.stamps]) == sorted(names)
    written = [column.name for column in table.written]
    assert written == [name for name in names if name not in table.stamps]
    kinds = {column.name: column for column in table.columns}
    assert kinds[table.time].kind == "time"
    always = [*table.key, table.time, *table.stamps]
    assert [name for name in always if kinds[name].nullable] == []
    assert table.time not in table.series
    assert {*table.series, table.time, table.row_id} >= set(table.key)
    assert TABLES[table.name] is table


def test_a_bar_s_values_are_those_of_batches() -> None:
    assert BARS.values == (*VALUE_COLUMNS, "state")


@pytest.mark.parametrize(("table", "kind"), _ROWS, ids=lambda x: getattr(x, "name", ""))
def test_a_row_s_class_has_the_columns(table: Table, kind: type[msgspec.Struct]) -> None:
    """Each that is written, and no other; None is possible where the column may be empty."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    assert sorted(fields) == sorted(column.name for column in table.written)
    for column in table.written:
        assert ("None" in str(fields[column.name].type)) == column.nullable, column.name
