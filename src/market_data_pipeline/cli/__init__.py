"""The ``mdp`` command. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import sys

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli.archive import archive
from market_data_pipeline.cli.bars import bars
from market_data_pipeline.cli.conservation import conservation
from market_data_pipeline.cli.dlq import dlq_app
from market_data_pipeline.cli.doctor import doctor
from market_data_pipeline.cli.features import features_app
from market_data_pipeline.cli.job import job_app
from market_data_pipeline.cli.repartition import repartition
from market_data_pipeline.cli.replay import replay
from market_data_pipeline.cli.run import infer, micro_batch, produce, run
from market_data_pipeline.cli.signals import signals
from market_data_pipeline.cli.store import store_app
from market_data_pipeline.cli.tail import tail
from market_data_pipeline.cli.topics import forget_group, groups, topics
from market_data_pipeline.cli.verify import verify

app = typer.Typer(
    name="mdp",
    help="Market data into exactly-once bars: capture, windows, store, verification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
stream_app = typer.Typer(
    help="The stages as processes of their own over a shared bus.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.command()(run)
app.command()(bars)
app.command()(signals)
app.command()(verify)
app.command()(conservation)
app.command()(doctor)
app.add_typer(stream_app, name="stream")
app.add_typer(features_app, name="features")
app.add_typer(dlq_app, name="dlq")
app.add_typer(job_app, name="job")
app.add_typer(store_app, name="store")
stream_app.command()(produce)
stream_app.command("micro-batch")(micro_batch)
stream_app.command()(infer)
stream_app.command()(tail)
stream_app.command()(topics)
stream_app.command()(groups)
stream_app.command()(forget_group)
stream_app.command()(repartition)
stream_app.command()(archive)
stream_app.command()(replay)


def main() -> None:
    """Run the command line; errors meant for people become one line and an exit code."""
    try:
        app()
    except MdpError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  (the command line's own output)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # the reader has gone (| head); keep the interpreter from complaining at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
