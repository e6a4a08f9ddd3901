"""``mdp signals``: what rules and models have said, as the store holds it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from market_data_pipeline.cli import _output, _stored

_VIEW = _stored.View("signals", ("created_at",), "mdp stream infer")


def signals(
    symbol: _stored.SymbolArgument,
    name: Annotated[str | None, typer.Option(help="Only of this rule or model.")] = None,
    state: Annotated[
        Literal["active", "retracted"] | None,
        typer.Option(help="Only those that hold, or only those that no longer do."),
    ] = None,
    provider: _stored.ProviderOption = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="ISO time or date, UTC; first window end.")
    ] = None,
    to: _stored.ToOption = None,
    limit: _stored.LimitOption = None,
    form: _stored.FormOption = "table",
    output: _stored.OutputOption = None,
    config: _output.ConfigOption = None,
) -> None:
    """Signals of SYMBOL: of all rules, models and providers unless told otherwise.

    A signal's time is the end of the window that caused it. One that no longer holds, because a
    bar was restated, stays with the state retracted.
    """
    from market_data_core.tables import SIGNALS

    _output.check_limit(limit)
    span = _output.parse_range(from_, to)
    settings = _output.load_settings(config)
    others = {"name": name, "provider": provider, "state": state}
    what = _stored.selected(SIGNALS, symbol, others, span)
    _stored.show(settings, _VIEW, what, _stored.Shown(limit, form, output))
