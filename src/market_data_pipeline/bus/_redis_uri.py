"""Where a Redis server is: the URI of the settings as a client, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from market_data_core.errors import UsageError
from market_data_core.redaction import redact

_SENTINEL, _SENTINEL_TLS = "redis+sentinel", "rediss+sentinel"
_SCHEMES = ("redis", "rediss", "unix", _SENTINEL, _SENTINEL_TLS)
_SENTINEL_PORT = 26_379
_PREFIX = "sentinel_"
_TLS_FILES = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ca_path")
_PARAMETERS = {
    "username", "password", "socket_timeout", "socket_connect_timeout", "socket_keepalive",
    "max_connections", "client_name", *_TLS_FILES, "ssl_password", "ssl_cert_reqs", "ssl_ca_data",
    "ssl_check_hostname", "ssl_min_version", "ssl_ciphers",
}  # fmt: skip
"""What may stand behind ``?``; the rest would change what answers look like."""
_SOCKET_S = 5.0
_SOCKET_MIN_S = 1.0
_OPTIONS: Mapping[str, Any] = {
    "protocol": 2,
    "client_name": "mdp",
    "socket_connect_timeout": _SOCKET_S,
    "socket_timeout": _SOCKET_S,
    "socket_keepalive": True,
}


def client_of(uri: str) -> tuple[Any, list[Any]]:
    """A client of the server that a URI names, and what has to be closed besides it.

    Args:
        uri: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://host,host/service/0`` or
            ``rediss+sentinel://…``.

    Raises:
        UsageError: the URI cannot be used.
    """
    try:
        client, others = _client(uri)
        client.connection_pool.make_connection()  # reads certificates; connects to nothing
    except (ValueError, TypeError, OSError, RedisError) as error:
        msg = f"bus.redis.uri: {redact(uri)}: {redact(str(error))}"
        raise UsageError(msg) from None
    return client, others


def _client(uri: str) -> tuple[Any, list[Any]]:
    parts = urlsplit(uri)
    if parts.scheme not in _SCHEMES:
        msg = f"{parts.scheme or 'it'!r} is no scheme of Redis: {', '.join(_SCHEMES)}"
        raise ValueError(msg)
    if parts.scheme not in (_SENTINEL, _SENTINEL_TLS):
        if parts.scheme != "unix":
            _database(parts.path.strip("/"))
        found = _with_options(parse_url(uri))
        if parts.scheme == "unix":
            del found["socket_keepalive"]
        return Redis.from_url(uri, **_without_retries(found)), []
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        msg = f"it names no service: {parts.scheme}://host,host/service/0"
        raise ValueError(msg)
    user, _, hosts = parts.netloc.rpartition("@")
    plain = f"redis://{user}@localhost/{_database(database)}?{parts.query}"
    given = {n: v for n, v in dict(parse_url(plain)).items() if n != "host"}
    about_sentinels = {n: given.pop(n) for n in list(given) if n.startswith(_PREFIX)}
    options = _without_retries(_with_options(given))
    options["ssl"] = parts.scheme == _SENTINEL_TLS
    sentinels = _without_retries(_OPTIONS) | {"ssl": options["ssl"]}
    sentinels |= {n: v for n, v in options.items() if n.startswith("ssl_")}
    sentinels |= _checked({n.removeprefix(_PREFIX): v for n, v in about_sentinels.items()})
    manager: Any = Sentinel  # untyped
    manager = manager([_address(host) for host in hosts.split(",")], sentinel_kwargs=sentinels)
    return manager.master_for(service, **options), [manager]


def _with_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the URI says, and our options where it says nothing."""
    plain = {
        n: v for n, v in given.items() if n not in ("connection_class", "host", "port", "path")
    }
    database = plain.pop("db", 0)
    return {**_OPTIONS, **_checked(plain), "db": database}


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in _PARAMETERS:
            msg = (
                f"parameter {name!r} is not known here; there are {', '.join(sorted(_PARAMETERS))}"
            )
            raise ValueError(msg)
        if name in _TLS_FILES and not Path(value).exists():
            msg = f"{name}: there is no file {value}"
            raise ValueError(msg)
        if name == "socket_timeout" and not value >= _SOCKET_MIN_S:
            msg = f"{name}: {value} is less than {_SOCKET_MIN_S:g} s, as long as a reader may wait"
            raise ValueError(msg)
    return dict(given)


def _without_retries(options: Mapping[str, Any]) -> dict[str, Any]:
    """Whoever calls us waits and tries again; nothing is sent twice behind its back."""
    return {**options, "retry": Retry(NoBackoff(), 0)}


def _database(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        msg = f"{text!r} is not the number of a database"
        raise ValueError(msg)
    return int(text)


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        msg = "a Sentinel's host is missing"
        raise ValueError(msg)
    return parts.hostname, parts.port or _SENTINEL_PORT
