"""``mdp conservation``: where every event that was received has gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_core.contracts.store import Store
    from market_data_pipeline.windows.checkpoint import Counts

    Terms = list[tuple[str, int, Counts]]

_TERMS = ("received", "stored", "open", "deduplicated", "late", "dead_lettered", "lost")
_COLUMNS = ("topic", "partition", *_TERMS, "holds")


def conservation(
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", help="Output format.")
    ] = "table",
    config: _output.ConfigOption = None,
) -> None:
    """The conservation equation of every topic and partition, as of the last checkpoints.

    received = stored + open + deduplicated + late + dead_lettered + lost
    """
    settings = _output.load_settings(config)
    terms, absent = _output.run_async(_read(settings))
    rows = [_row(topic, partition, counts) for topic, partition, counts in terms]
    if form == "json":
        _output.write_rows(rows, _COLUMNS, form)
    elif rows:
        total = _row("total", None, _total(terms))
        total["holds"] = all(row["holds"] for row in rows)
        _show([*rows, total])
    if not rows:
        raise MdpError(absent or "no checkpoints yet: nothing has been committed; run mdp run FILE")
    if not all(row["holds"] for row in rows):
        msg = "the conservation equation does not hold; the counts above say where"
        raise MdpError(msg)


async def _read(settings: Settings) -> tuple[Terms, str]:
    from market_data_pipeline.backends import missing_store, open_backends

    absent = missing_store(settings)
    if absent:
        return [], absent
    async with open_backends(settings, wait=False) as backends:
        return await read_counts(backends.store, settings.bus.group), ""


async def read_counts(store: Store, group: str) -> Terms:
    """The equation's terms by (topic, partition), as of the last checkpoints.

    Raises:
        DamagedFileError: a checkpoint cannot be read.
    """
    from market_data_pipeline.positions import batch_checkpoints

    return [
        (row.key.topic, row.key.partition, checkpoint.counts)
        for row, checkpoint in batch_checkpoints(await store.status(group))
    ]


def _total(terms: Terms) -> Counts:
    from market_data_pipeline.windows.checkpoint import Counts

    total = Counts()
    for _, _, counts in terms:
        total.add(counts)
    return total


def _row(topic: str, partition: int | None, counts: Counts) -> dict[str, object]:
    terms = {name: getattr(counts, name) for name in _TERMS}
    return {"topic": topic, "partition": partition, **terms, "holds": counts.holds()}


def _show(rows: list[dict[str, object]]) -> None:
    cells = [[_cell(value) for value in row.values()] for row in rows]
    _output.show_table(_COLUMNS, cells, right=("partition", *_TERMS))


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else value
