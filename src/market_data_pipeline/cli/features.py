"""``mdp features``: the columns there are, and the matrix that models are trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from market_data_core.errors import UsageError
from market_data_core.intervals import format_interval, parse_interval
from market_data_pipeline.cli import _output, _stored

Form = Literal["parquet", "csv", "json"]

_SUFFIXES: dict[str, Form] = {
    "": "parquet",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".json": "json",
}

_Columns = Annotated[
    str,
    typer.Option(
        help="Features, separated by commas, or all; default the configured windows and what the "
        "enabled rules and models look at."
    ),
]

features_app = typer.Typer(
    help="Feature columns, and the matrix of them for training.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@features_app.command("list")
def list_features(
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="Output format.")
    ] = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Every feature column, for bars of the smallest window.

    Its span is how far back it looks, warm-up included; `bars` is the same as a number of bars, at
    most.
    """
    from market_data_pipeline.cli import _features

    rows = _features.described(_output.load_settings(config))
    columns = tuple(rows[0])
    if form != "table":
        _output.write_rows(rows, columns, form)
        return
    cells = [[_output.cell_text(row[name]) for name in columns] for row in rows]
    _output.show_table(columns, cells, right=("bars",))


@features_app.command()
def export(
    from_: Annotated[
        str | None, typer.Option("--from", help="ISO time or date, UTC; first window start.")
    ] = None,
    to: _stored.ToOption = None,
    symbols: Annotated[str, typer.Option(help="Only these symbols, separated by commas.")] = "",
    provider: Annotated[
        str | None, typer.Option(help="Only this provider; else all but vendors' own bars.")
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Bars of this interval; default the smallest window.")
    ] = None,
    columns: _Columns = "",
    label: Annotated[
        list[str] | None,
        typer.Option(help="Forward return over 60s or 30bars, say; may be repeated."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of a dataset in configs/datasets.yaml.")
    ] = None,
    datasets: Annotated[Path, typer.Option(help="File that names the datasets.")] = Path(
        "configs/datasets.yaml"
    ),
    from_archive: Annotated[
        Path | None,
        typer.Option(help="Compute the bars from this archive's events instead of the store's."),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="Output format; else told by the file's name, or parquet."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File instead of standard output.")
    ] = None,
    config: _output.ConfigOption = None,
) -> None:
    """One row for each bar, with its features as live inference computes them.

    Bars before --from are read for the features. A value that is not known is null. The file
    appears when it is whole.
    """
    from market_data_core.datasets import TICK, find_dataset
    from market_data_pipeline.cli import _features
    from market_data_pipeline.cli.replay import asked_for

    form = form or _form(output)
    if form == "parquet" and output is None and sys.stdout.isatty():
        msg = "parquet is binary; name a file with --output, or send standard output to one"
        raise UsageError(msg)
    settings = _output.load_settings(config)
    span = _output.parse_range(from_, to)
    chosen = tuple(sorted(_output.symbols_of(symbols) or ()))
    known = find_dataset(dataset, datasets) if dataset else None
    asked = asked_for(known, provider, chosen, *span, None)
    length = _output.canonical(interval) or asked.interval
    length_ns = settings.micro_batch.windows_ns[0] if length == TICK else parse_interval(length)
    what = _features.matrix(settings, asked, length_ns, columns, label or [])
    if from_archive is not None:
        source = _features.archived(settings, config, from_archive, what)
    else:
        source = _features.stored(settings)
    names = [one.name for one in what.labels]
    rows = _output.run_async(_features.write(source, what, form, output))
    sys.stderr.write(
        f"{rows:,} bars of {format_interval(length_ns)}: {', '.join((*what.features, *names))}\n"
    )


def _form(output: Path | None) -> Form:
    """The format of a file, by its name."""
    found = _SUFFIXES.get(output.suffix.lower() if output else "")
    if found is None:
        msg = f"{output}: its name does not tell the format; say --format parquet, csv or json"
        raise UsageError(msg)
    return found
