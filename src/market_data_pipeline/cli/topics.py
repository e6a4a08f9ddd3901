"""``mdp stream topics``, ``groups``, ``forget-group``: what the bus holds, and who has read it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from market_data_pipeline.cli import _output

FormatOption = Annotated[
    Literal["table", "json", "csv"], typer.Option("--format", help="Output format.")
]


def topics(
    positions: Annotated[
        bool, typer.Option("--positions", help="Each partition's positions instead.")
    ] = False,
    form: FormatOption = "table",
    config: _output.ConfigOption = None,
) -> None:
    """Every topic of the bus: what it holds, its partitions, and from when to when."""
    from market_data_pipeline.cli import _topics

    settings = _output.load_settings(config)
    _output.run_async(_topics.show(settings, positions, form))


def groups(
    topic: Annotated[
        str | None,
        typer.Option(
            help="Only this topic, finished recordings too; the live one with all its generations."
        ),
    ] = None,
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Finished recordings as well.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Fail if a partition with unread input has no owner, or lags too far."
        ),
    ] = False,
    max_lag_ms: Annotated[
        int | None, typer.Option(help="With --check: the greatest lag that is no failure.")
    ] = None,
    form: FormatOption = "table",
    config: _output.ConfigOption = None,
) -> None:
    """How far consumer groups have read: owners, positions, and what is unread or open."""
    from market_data_core.errors import UsageError
    from market_data_pipeline.cli import _groups

    if max_lag_ms is not None and (max_lag_ms < 0 or not check):
        msg = f"--max-lag-ms {max_lag_ms} must be 0 or more, and goes with --check"
        raise UsageError(msg)
    settings = _output.load_settings(config)
    wanted = _groups.Wanted(topic, group, everything or topic is not None, check, max_lag_ms)
    _output.run_async(_groups.show(settings, wanted, form))


def forget_group(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Such as mdp-consumers-archive.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: _output.ConfigOption = None,
) -> None:
    """Remove a group's positions for good, so that the bus keeps nothing for it any more.

    For one that was given up. Refused while any of its members is alive.
    """
    from market_data_pipeline.cli import _forget

    _output.run_async(_forget.forget(_output.load_settings(config), group, yes))
