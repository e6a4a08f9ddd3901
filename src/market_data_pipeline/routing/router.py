"""Several providers at once: begun again when they break, held back when the store falls behind."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar, cast

import structlog

from market_data_core._suggest import did_you_mean
from market_data_core.contracts.provider import FeedState, Item, Subscription
from market_data_core.errors import MdpError, TransientError, UsageError
from market_data_core.events import EventBatch
from market_data_core.redaction import redact
from market_data_pipeline.metrics import ERRORS
from market_data_pipeline.routing.backoff import Backoff
from market_data_pipeline.routing.rate import RateCoordinator

T = TypeVar("T")
log = structlog.get_logger("router")

_WAITING_MAX = 256
_AWAY, _BACK = FeedState("away"), FeedState("back")
_EVERYTHING = Subscription()
# A pause that is an hour old is taken for silence by the micro-batchers, so it is said again.
_SAID_AGAIN_S = 600.0

RunState = Literal["new", "running", "held", "away", "ended", "failed"]


class Routed(NamedTuple):
    """An item and the provider that it came from.

    Attributes:
        provider: the name under which the router has it.
        item: what it yielded.
    """

    provider: str
    item: Item


@dataclass(frozen=True, slots=True)
class FeedHealth:
    """How one provider's feed is doing.

    Attributes:
        state: ``new``: not begun; ``running``; ``held`` back by feedback; ``away``: broken, it
            will be begun again; ``ended`` by itself or closed; ``failed``: it can never work as it
            was asked for.
        restarts: how often it was begun again.
        error: the latest error, "" if there was none.
    """

    state: RunState = "new"
    restarts: int = 0
    error: str = ""


class ProviderRouter:
    """Runs several providers, which have nothing to fear from one another.

    A feed that breaks is begun again after 0.2 to 30 s, for any error but the platform's own ones
    that no waiting heals. A :class:`UsageError` is one of those: it means that what was asked for
    can never work, so it is raised at once, rather than that a part of the data is missing
    without anybody noticing.

    Args:
        providers: by name, or any number of which each has a `name` of its own.
        rate: holds all of them back as feedback says; None for no limit.

    Raises:
        UsageError: two providers have the same name, or there is none.
    """

    def __init__(
        self,
        providers: Mapping[str, Any] | Iterable[Any],
        rate: RateCoordinator | None = None,
    ) -> None:
        self._providers = _by_name(providers)
        self._rate = rate or RateCoordinator()
        self._health = {name: FeedHealth() for name in self._providers}
        self._filling: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the streams of several providers that are open, and with them the connections.

        Whoever reads one gets what was waiting, and then its end. A :meth:`feed` is closed by
        whoever reads it.
        """
        filling = list(self._filling)
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)

    def health(self) -> dict[str, FeedHealth]:
        """The present state of each provider, by name."""
        return dict(self._health)

    def feed(self, name: str, subscription: Subscription = _EVERYTHING) -> AsyncGenerator[Item]:
        """One provider's items, without an end because of an error.

        ``FeedState("away")`` comes when the feed breaks and when it is held back, and again
        every ten minutes while it is; ``FeedState("back")`` when it is released. Whoever takes an
        item has it for good: holding back means that the next one is not asked for.

        Raises:
            UsageError: no such provider, or it refuses what is asked for.
        """
        begin = partial(self._method(name, "stream"), subscription)
        return self._unbroken(name, begin, _events_in)

    async def stream(self, subscription: Subscription) -> AsyncGenerator[Routed]:
        """All providers' items, in turns where several wait; ends when all feeds have ended.

        At most 256 items of a provider wait; then it is not asked for more.

        Raises:
            UsageError: a provider refuses what is asked for; items that were waiting come first.
        """
        streams = {name: self.feed(name, subscription) for name in self._providers}
        async with aclosing(self._merge(streams)) as merged:
            async for name, item in merged:
                yield Routed(name, item)

    async def stream_bars(self, symbols: Sequence[str]) -> AsyncGenerator[Any]:
        """All providers' bars, as :meth:`stream` has the items.

        A provider that is begun again may send bars that came before; a store keeps one of each.

        Raises:
            UsageError: as for :meth:`stream`.
        """
        streams = {
            name: self._unbroken(
                name, partial(self._method(name, "stream_bars"), symbols), _one_event
            )
            for name in self._providers
        }
        async with aclosing(self._merge(streams)) as merged:
            async for _, bar in merged:
                if not isinstance(bar, FeedState):
                    yield bar

    def _method(self, name: str, method: str) -> Callable[..., AsyncIterator[Any]]:
        if name not in self._providers:
            msg = f"unknown provider {name!r}; {did_you_mean(name, list(self._providers))}"
            raise UsageError(msg)
        found = getattr(self._providers[name], method, None)
        if found is None:
            msg = f"provider {name!r} has no {method}(); use another provider"
            raise UsageError(msg)
        return cast("Callable[..., AsyncIterator[Any]]", found)

    def _say(self, name: str, **changed: Any) -> None:
        self._health[name] = replace(self._health[name], **changed)

    # ---- one feed --------------------------------------------------------------------------

    async def _unbroken(
        self, name: str, begin: Callable[[], AsyncIterator[T]], events_in: Callable[[T], int]
    ) -> AsyncGenerator[T | FeedState]:
        """What `begin` yields, begun again when it breaks, at the rate that is allowed."""
        backoff = Backoff()
        try:
            while True:
                first: float | None = None
                there = False
                try:
                    if not self._rate.scale(name):
                        async with aclosing(self._held(name, there)) as states:
                            async for state in states:
                                yield state
                    async with _closing(begin()) as items:
                        async for item in items:
                            there = not isinstance(item, FeedState) or item.state == "back"
                            if first is None and not isinstance(item, FeedState):
                                first = monotonic()
                                self._say(name, state="running")
                            yield item
                            if not self._rate.take(name, events_in(item)):
                                async with aclosing(self._held(name, there)) as states:
                                    async for state in states:
                                        yield state
                except Exception as error:
                    if isinstance(error, MdpError) and not isinstance(error, TransientError):
                        self._say(name, state="failed", error=redact(str(error)))
                        raise
                    pause_s = backoff.pause_s(0.0 if first is None else monotonic() - first)
                    self._lost(name, error, pause_s)
                else:
                    return
                yield _AWAY
                await asyncio.sleep(pause_s)
                self._say(name, restarts=self._health[name].restarts + 1)
        finally:
            if self._health[name].state != "failed":
                self._say(name, state="ended")

    async def _held(self, name: str, there: bool) -> AsyncGenerator[FeedState]:
        """Wait until the provider may be read again; it is back then if it was `there`."""
        self._say(name, state="held")
        waiting = asyncio.ensure_future(self._rate.wait(name))
        try:
            while not waiting.done():
                yield _AWAY
                await asyncio.wait({waiting}, timeout=_SAID_AGAIN_S)
        finally:
            waiting.cancel()
        self._say(name, state="running" if there else "away")
        if there:
            yield _BACK

    def _lost(self, name: str, error: Exception, pause_s: float) -> None:
        expected = isinstance(error, TransientError)
        text = redact(str(error)) or type(error).__name__
        self._say(name, state="away", error=text)
        ERRORS.labels("provider", "lost" if expected else "unexpected").inc()
        log.warning(
            "feed lost",
            provider=name,
            error=text,
            again_in_seconds=round(pause_s, 1),
            exc_info=None if expected else error,
        )

    # ---- all of them -----------------------------------------------------------------------

    async def _merge(
        self, streams: Mapping[str, AsyncGenerator[T]]
    ) -> AsyncGenerator[tuple[str, T]]:
        """One item of each stream that has some, in turns."""
        some = asyncio.Event()
        inboxes: dict[str, _Inbox[T]] = {name: _Inbox() for name in streams}
        tasks = [asyncio.create_task(inboxes[name].fill(streams[name], some)) for name in streams]
        self._filling.update(tasks)
        for task in tasks:
            task.add_done_callback(lambda _: some.set())
        try:
            while True:
                some.clear()
                if any(task.done() and not task.cancelled() and task.exception() for task in tasks):
                    for task in tasks:
                        task.cancel()
                for name, inbox in inboxes.items():
                    if inbox.waiting:
                        item = inbox.waiting.popleft()
                        inbox.room.set()
                        yield name, item
                if any(inbox.waiting for inbox in inboxes.values()):
                    await asyncio.sleep(0)  # streams and others want to go on too
                    continue
                if all(task.done() for task in tasks):
                    for task in tasks:
                        if not task.cancelled():
                            task.result()
                    return
                await some.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._filling.difference_update(tasks)


@dataclass(slots=True, eq=False)
class _Inbox(Generic[T]):
    """What one provider has yielded and nobody has taken yet."""

    waiting: deque[T] = field(default_factory=deque)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    async def fill(self, stream: AsyncGenerator[T], some: asyncio.Event) -> None:
        async with aclosing(stream):
            async for item in stream:
                self.waiting.append(item)
                some.set()
                if len(self.waiting) >= _WAITING_MAX:
                    self.room.clear()
                    await self.room.wait()


@asynccontextmanager
async def _closing(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """The stream, closed at the end if it is of a kind that can be."""
    try:
        yield stream
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def _one_event(_: object) -> int:
    return 1


def _events_in(item: Item) -> int:
    if isinstance(item, EventBatch):
        return len(item)
    return 0 if isinstance(item, FeedState) else 1


def _by_name(providers: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(providers, Mapping):
        named = dict(providers)
    else:
        named = {}
        for provider in cast("Iterable[Any]", providers):
            if provider.name in named:
                msg = f"two providers are named {provider.name!r}; give each its own name"
                raise UsageError(msg)
            named[provider.name] = provider
    if not named:
        msg = "a router needs at least one provider"
        raise UsageError(msg)
    return named
