"""How a process shows what it does: metrics over HTTP, log lines on standard error."""

from __future__ import annotations

import errno
import logging
import sys
from typing import Any

import structlog
from prometheus_client import disable_created_metrics, start_http_server
from structlog.typing import EventDict, Processor, WrappedLogger

from market_data_core.errors import UsageError
from market_data_core.redaction import redact, redact_value

LOCALHOST = "127.0.0.1"

_PORTS_TRIED = 100
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def serve_metrics(port: int, host: str = LOCALHOST, announce: bool = True) -> int:
    """Serve this process's metrics under ``/metrics`` from a thread of its own.

    Args:
        port: wanted port; if it is taken, the next free one within 100 is used and logged. With 0
            the system chooses.
        host: address to listen on.
        announce: whether the address is worth a line at the level INFO, rather than DEBUG; that
            the wanted port was taken always is.

    Returns:
        The port that is served.

    Raises:
        UsageError: no port is free, or the address cannot be used.
    """
    # Nobody asks for the gauge that would stand beside every counter.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    log = structlog.get_logger(__name__)
    for candidate in range(port, min(port + _PORTS_TRIED, 65_536) if port else 1):
        try:
            server, _ = start_http_server(candidate, addr=host)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            msg = f"metrics cannot be served on {host}:{candidate}: {error.strerror or error}"
            raise UsageError(msg) from error
        served = int(server.server_port)
        if port and served != port:
            log.warning("metrics port is taken, using the next free one", wanted=port, port=served)
        else:
            say = log.info if announce else log.debug
            say("metrics are served", url=f"http://{host}:{served}/metrics")
        return served
    msg = (
        f"metrics cannot be served: ports {port} to {port + _PORTS_TRIED - 1} of {host} are taken; "
        "set telemetry.metrics_port"
    )
    raise UsageError(msg)


def configure_logging(level: str = "INFO", json: bool = False) -> None:
    """Send all log lines, those of libraries too, to standard error; passwords are masked.

    Args:
        level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``, in any case.
        json: one JSON object per line instead of text.

    Raises:
        UsageError: `level` is none of these.
    """
    if level.upper() not in _LEVELS:
        msg = f"log level {level!r} is not one of {', '.join(_LEVELS)}"
        raise UsageError(msg)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(shared, json=json))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _formatter(shared: list[Processor], *, json: bool) -> logging.Formatter:
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Before masking, because a traceback can show a password as well.
            structlog.processors.format_exc_info,
            _mask_secrets,
            renderer,
        ],
    )


def _mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: str, value: Any) -> Any:
    plain = redact_value(key, value)
    if plain is not value or isinstance(value, int | float | str | bool | None):
        return plain
    return redact(repr(value))  # an object whose text, such as an exception's, may hold a URI
