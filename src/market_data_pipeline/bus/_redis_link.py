"""The connection to a Redis server: commands, scripts, and its errors as ours."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Any

import structlog
from redis import exceptions as errors

from market_data_core.errors import MdpError, TransientError, UsageError
from market_data_core.redaction import redact
from market_data_pipeline.bus._redis_uri import client_of

log = structlog.get_logger("redis")

_PASSING = (
    errors.OutOfMemoryError,
    errors.ReadOnlyError,
    errors.TryAgainError,
    errors.ClusterDownError,
    errors.MasterDownError,
)
_PASSING_WORDS = re.compile(
    r"(?:^|[\s:]-)(?:OOM|LOADING|READONLY|MASTERDOWN|MISCONF|NOREPLICAS|BUSY|TRYAGAIN|CLUSTERDOWN"
    r"|UNKILLABLE|UNBLOCKED)\b|Script killed"
)
"""Words of a server that will take the same command later, also where a script met them."""
_BLOCK_MAX_S = 2.0
_BLOCK_SHARE = 0.4
_CLUSTER = "a Redis cluster is not supported: use one server, or one with replicas and Sentinel"
_SHAPES = {":meta": "hash", ":keys": "zset", ":topics": "set"}


class Link:
    """Commands to one server, with our errors.

    Args:
        uri: where it is, see :func:`market_data_pipeline.bus._redis_uri.client_of`.

    Attributes:
        client: the driver's.
        block_s: longest wait on the server; less than the socket's time-out, so that silence
            means a fault.

    Raises:
        UsageError: the URI cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.client, self._others = client_of(uri)
        # the raw answer: parsing streams into dictionaries costs more than reading them
        for command in ("XREAD", "XRANGE", "XREVRANGE"):
            self.client.set_response_callback(command, _as_it_is)
        timeout_s = self.client.connection_pool.connection_kwargs["socket_timeout"]
        self.block_s: float = min(_BLOCK_MAX_S, _BLOCK_SHARE * timeout_s)
        self._hashes: dict[str, str] = {}
        self._examined = False

    async def close(self) -> None:
        """Close all connections."""
        for client in (self.client, *self._others):
            await client.aclose()

    async def call(self, *command: Any, keys: Sequence[str] = ()) -> Any:
        """The answer to one command.

        Args:
            command: the command.
            keys: that it uses, to be named if something else is in the way.

        Raises:
            TransientError: the server cannot be reached, or will take the command later.
            UsageError: it refuses who we are or what we ask.
        """
        async with self._translated(keys):
            return await self.client.execute_command(*command)

    async def several(
        self, commands: Sequence[Sequence[Any]], keys: Sequence[str] = (), lenient: bool = False
    ) -> list[Any]:
        """The answers to several commands, sent at once on one connection.

        Args:
            commands: what to send.
            keys: as for :meth:`call`.
            lenient: what the server refuses is an answer like any other.
        """
        async with self._translated(keys):
            async with self.client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                found: list[Any] = await pipe.execute(raise_on_error=False)
            for answer in found:
                if isinstance(answer, Exception) and not lenient:
                    raise answer
            return found

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """The answer of a script, which is sent only if the server does not have it."""
        digest = self._hashes.get(script)
        if digest is None:
            digest = self._hashes[script] = sha1(script.encode(), usedforsecurity=False).hexdigest()
        async with self._translated(keys):
            try:
                return await self.client.execute_command(
                    "EVALSHA", digest, len(keys), *keys, *arguments
                )
            except errors.NoScriptError:
                return await self.client.execute_command(
                    "EVAL", script, len(keys), *keys, *arguments
                )

    async def examine(self) -> None:
        """Log once what of the server's settings is at odds with a log."""
        if self._examined:
            return
        try:
            _, policy = await self.call("CONFIG", "GET", "maxmemory-policy")
            _, kept = await self.call("CONFIG", "GET", "appendonly")
        except (UsageError, ValueError):  # a server that lets nobody ask
            policy, kept = b"noeviction", b"yes"
        self._examined = True
        if policy != b"noeviction":
            log.warning(
                "the server throws data away when its memory is full; "
                "set maxmemory-policy to noeviction",
                policy=policy.decode(),
            )
        if kept != b"yes":
            log.warning(
                "the server keeps no append-only file, so that events do not survive its end; "
                "set appendonly to yes"
            )

    @asynccontextmanager
    async def _translated(self, keys: Sequence[str]) -> AsyncIterator[None]:
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0

        def forgotten() -> bool:
            """Whether the driver has dropped a cancellation.

            Its wait_for does, before Python 3.12, if it comes with an answer or an error: who
            waits for the end of the task would wait for ever.
            """
            return task is not None and task.cancelling() > cancelled

        try:
            yield
        except (errors.RedisError, OSError) as error:
            if forgotten():
                raise asyncio.CancelledError from error
            if "WRONGTYPE" in str(error):
                raise await self._in_the_way(error, keys) from None
            raise self._ours(error) from None
        if forgotten():
            raise asyncio.CancelledError

    def _ours(self, error: Exception) -> MdpError:
        text = str(error)
        if isinstance(error, errors.AuthenticationError):
            return UsageError(self._told(error, "check user and password of bus.redis.uri"))
        if _is_mistrust(error):
            return UsageError(self._told(error, "check ssl_ca_certs and the like in bus.redis.uri"))
        if isinstance(error, (errors.MovedError, errors.ClusterCrossSlotError)):
            return UsageError(self._told(error, _CLUSTER))
        refused = isinstance(error, errors.ResponseError) and not isinstance(error, _PASSING)
        if refused and not _PASSING_WORDS.search(text):
            return UsageError(self._told(error))
        return TransientError(self._told(error))

    async def _in_the_way(self, error: Exception, keys: Sequence[str]) -> MdpError:
        """Which of the keys is not what the bus needs there."""
        try:
            kinds = await self.several([("TYPE", key) for key in keys])
        except MdpError as failure:
            return failure
        found = zip(keys, (kind.decode() for kind in kinds), strict=True)
        wrong = [f"{key!r} is a {kind}" for key, kind in found if kind not in ("none", _shape(key))]
        hint = "it is somebody else's: remove it, or set another bus.redis.key_prefix"
        return UsageError(self._told(error, f"{', '.join(wrong)}; {hint}"))

    def _told(self, error: BaseException, hint: str = "") -> str:
        said, _, _ = str(error).partition(" : <")  # what the driver knows of its own objects
        text = redact(f"{self._uri}: {said or type(error).__name__}")
        return f"{text}; {hint}" if hint else text


def _shape(key: str) -> str:
    """The type of the key that the bus has under such a name."""
    if ":writers:" in key:
        return "hash"
    return next((kind for end, kind in _SHAPES.items() if key.endswith(end)), "stream")


def _is_mistrust(error: BaseException | None) -> bool:
    """Whether the server's certificate is not trusted, which no waiting mends."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _as_it_is(response: Any, **_: Any) -> Any:
    return response
