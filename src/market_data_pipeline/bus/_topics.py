"""What every bus says alike: which names topics may have, and what is wrong with a request."""

from __future__ import annotations

import re

from market_data_core.errors import UsageError
from market_data_core.records import TopicInfo

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class NoTopicError(UsageError):
    """There is no topic of that name, or it is only just being created."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no topic {name!r}")


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
