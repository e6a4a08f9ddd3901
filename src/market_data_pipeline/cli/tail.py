"""``mdp stream tail``: what a topic holds, one JSON object a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import _output

if TYPE_CHECKING:
    from market_data_pipeline.cli._tail_topic import Point

_LAST_LINES = 50


def tail(
    topic: Annotated[
        str, typer.Option(help="Topic to read; the live one with all its generations.")
    ] = "mdp.events",
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Begin at this offset, or time of appending (ISO, UTC)."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="End before this offset, or time of appending (ISO, UTC).")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="How many lines: the last ones (50), or with --from the first (all)."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    symbol: Annotated[
        str | None, typer.Option(help="Only these symbols, separated by commas, in any case.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only of this feed.")] = None,
    partition: Annotated[int | None, typer.Option(help="Only this partition.")] = None,
    marks: Annotated[bool, typer.Option("--marks", help="Marks of time as well.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Records as they stand in the log, undecoded.")
    ] = False,
    config: _output.ConfigOption = None,
) -> None:
    """What a topic holds as JSON lines, decoded: the last ones, or from a place on.

    With --follow it goes on with what comes, also after the bus was away or the topic was made
    anew; then --from and --limit end it after so many lines.
    """
    from market_data_core.errors import UsageError

    _output.check_limit(limit)
    if follow and until is not None:
        msg = "--until ends where --follow goes on; give one of them"
        raise UsageError(msg)
    begin, end = _point(from_, "--from"), _point(until, "--until")
    settings = _output.load_settings(config)

    from market_data_pipeline.cli import _tail
    from market_data_pipeline.cli._tail_lines import Lines
    from market_data_pipeline.cli._tail_topic import Wanted
    from market_data_pipeline.generations import registry_topic

    keep = _LAST_LINES if limit is None and begin is None else limit
    registry = registry_topic(settings.bus.events_topic)
    lines = Lines(_output.symbols_of(symbol), provider, marks, raw, registry)
    wanted = Wanted(topic, partition, begin, end, keep)
    _output.run_async(_tail.tail(settings, wanted, lines, follow))


def _point(text: str | None, option: str) -> Point | None:
    """An offset, or a time in UTC ns.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return "offset", int(text)
    at = _output.parse_when(text, option)
    assert at is not None  # noqa: S101
    return "time", at
