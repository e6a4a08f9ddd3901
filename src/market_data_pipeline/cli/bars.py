"""``mdp bars``: what the store holds."""

from __future__ import annotations

from typing import Annotated

import typer

from market_data_pipeline.cli import _output, _stored

_VIEW = _stored.View("bars", ("created_at", "updated_at"), "mdp run FILE")


def bars(
    symbol: _stored.SymbolArgument,
    interval: Annotated[str | None, typer.Option(help="Only this interval, such as 2s.")] = None,
    provider: _stored.ProviderOption = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="ISO time or date, UTC; first window start.")
    ] = None,
    to: _stored.ToOption = None,
    limit: _stored.LimitOption = None,
    form: _stored.FormOption = "table",
    output: _stored.OutputOption = None,
    config: _output.ConfigOption = None,
) -> None:
    """Bars of SYMBOL: all intervals and providers unless told otherwise."""
    from market_data_core.tables import BARS

    _output.check_limit(limit)
    span = _output.parse_range(from_, to)
    settings = _output.load_settings(config)
    others = {"interval": _output.canonical(interval), "provider": provider}
    what = _stored.selected(BARS, symbol, others, span)
    _stored.show(settings, _VIEW, what, _stored.Shown(limit, form, output))
