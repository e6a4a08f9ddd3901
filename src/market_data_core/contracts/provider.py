"""Where events come from: live feeds and recordings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from market_data_core.events import EventBatch, Rejected, Tick

Bar_co = TypeVar("Bar_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a live provider is asked for.

    Attributes:
        symbols: upper-case symbols; empty for everything the provider is configured with.
    """

    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FeedState:
    """A feed tells that it was lost, paused or held back, or that it is back.

    While a feed is away its silence says nothing about the market, so windows stay open. When it
    is back, what it yields begins after everything that it yielded before.
    """

    state: Literal["away", "back"]


Item = Tick | EventBatch | Rejected | FeedState


class LiveProvider(Protocol):
    """A feed without an end.

    Attributes:
        name: the provider name its events bear.
    """

    name: str

    def stream(self, subscription: Subscription) -> AsyncIterator[Item]:
        """Yield what the vendor sends, as it comes; ends only when closed or cancelled.

        Raises:
            TransientError: the connection is lost for longer than the provider retries.
            UsageError: the vendor refuses the subscription or the credentials.
        """
        ...


class BarProvider(Protocol[Bar_co]):
    """A feed of a vendor's finished bars, for use from Python: ``mds_client.models.Bar`` rows.

    Attributes:
        name: the provider name that its bars bear.
    """

    name: str

    def stream_bars(self, symbols: Sequence[str]) -> AsyncIterator[Bar_co]:
        """Yield the bars of upper-case `symbols` as they come; none of them: all there are.

        Raises:
            TransientError: the connection is lost for longer than the provider retries.
            UsageError: the vendor refuses the symbols or the credentials.
        """
        ...


class Recording(Protocol):
    """A finite input that gives the same events, in the same order, every time it is read.

    Attributes:
        lane: the name of its lane, a hash of the inputs' content and the reading options.
    """

    lane: str

    def read(self) -> Iterator[EventBatch | Rejected]:
        """Yield all events merged in src_ts order (ties in input order); blocks on I/O.

        Raises:
            OutOfOrder: the inputs have to be sorted first, see `presorted`; some events were
                handed out already.
            UsageError: an input is cut off or damaged; all that could be read was handed out.
        """
        ...

    def presorted(self) -> Recording:
        """The same inputs, sorted before the first event is handed out; another lane."""
        ...
