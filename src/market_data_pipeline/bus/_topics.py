"""What every bus says alike: which names topics may have, and what is wrong with a request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from market_data_core.errors import LogHoleError, LogLostError, UsageError
from market_data_core.records import TopicInfo

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class NoTopicError(UsageError):
    """There is no topic of that name, or it is only just being created."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no topic {name!r}")


Doing = Literal["append", "poll"]
WHILE_IN_USE = "was removed or replaced while in use; start again to go on with what is there now"


class Losses:
    """Logs that a client has lost: removed, or replaced by others of their names.

    However such a loss was found out, the next append and the next poll are errors, once each;
    whoever asks again after that works with the topic that is there.
    """

    def __init__(self) -> None:
        self._untold: set[tuple[str, Doing]] = set()

    def note(self, name: str) -> None:
        """The log that this client knew under the name is not there any more."""
        self._untold |= {(name, "append"), (name, "poll")}

    def forget(self, name: str) -> None:
        """This client has made or dropped the topic itself: nobody needs to be told."""
        self._untold -= {(name, "append"), (name, "poll")}

    def tell(self, name: str, doing: Doing) -> None:
        """Raise what has yet to be told.

        Raises:
            LogLostError: the log was lost since this was done last.
        """
        if (name, doing) in self._untold:
            self._untold.discard((name, doing))
            msg = f"topic {name!r} {WHILE_IN_USE}"
            raise LogLostError(msg)

    @contextmanager
    def told(self, name: str, doing: Doing) -> Iterator[None]:
        """Append or poll within it: tells what is known at first; what is raised is told."""
        self.tell(name, doing)
        try:
            yield
        except LogHoleError:  # of a log that goes on
            raise
        except LogLostError:
            self._untold.discard((name, doing))
            raise


def is_name(name: str) -> bool:
    """Whether a topic may be called so."""
    return bool(_NAME.fullmatch(name))


def check_name(name: str) -> None:
    """Refuse what is no name.

    Raises:
        UsageError: it is none.
    """
    if not is_name(name):
        msg = f"{name!r} is not a topic name: letters, digits, '.', '_' and '-' only"
        raise UsageError(msg)


def check_partition(info: TopicInfo, partition: int) -> None:
    """Refuse a partition that the topic does not have.

    Raises:
        UsageError: it does not.
    """
    if not 0 <= partition < info.partitions:
        msg = (
            f"topic {info.name!r} has no partition {partition}, only 0 to "
            f"{info.partitions - 1}; was it made with another bus.partitions?"
        )
        raise UsageError(msg)


def check_partitions(info: TopicInfo, wanted: int) -> None:
    """Refuse a topic that was made with another number of partitions.

    Raises:
        UsageError: it was.
    """
    if info.partitions != wanted:
        msg = (
            f"topic {info.name!r} has {info.partitions} partitions, the configuration says "
            f"{wanted}; set bus.partitions to {info.partitions}"
        )
        raise UsageError(msg)
