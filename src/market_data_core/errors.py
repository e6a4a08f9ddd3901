"""Every error the platform raises on purpose.

::

    MdpError                      exit code 1: the run failed, the message says what to do
    ├── UsageError                exit code 2: what the user typed cannot be carried out
    │   └── ConfigError           … in a configuration file: names key, line and nearest valid key
    ├── TransientError            the same call may succeed later: wait, then retry
    ├── FencedError               another process owns this now: stop, never retry
    ├── DamagedFileError          a file is not what it should be; nothing was written to it
    ├── LogLostError              the log no longer holds what a checkpoint was built on
    │   └── LogHoleError          ... but goes on behind what is missing
    ├── OutOfOrder            a recording has to be sorted before it is read
    ├── ModelError                a model gave no usable answer: its breaker counts it
    └── RejectedError             one piece of input can never be used: goes to the dead letters
"""

from __future__ import annotations


class MdpError(Exception):
    """Base of all errors whose message is meant for the operator."""

    exit_code = 1


class UsageError(MdpError):
    """What was asked for is not possible as it was written."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or setting is wrong."""


class TransientError(MdpError):
    """The outside world is not ready (locked, full, unreachable); retrying may help."""


class FencedError(MdpError):
    """A commit was refused because another owner has taken over.

    Attributes:
        partition: the partition that was lost.
    """

    def __init__(self, message: str, partition: int = -1) -> None:
        super().__init__(message)
        self.partition = partition


class DamagedFileError(MdpError):
    """A file is corrupt, or belongs to another program; it was left as it was found."""


class LogLostError(MdpError):
    """The log was replaced, cut short, or trimmed past what still had to be read."""


class LogHoleError(LogLostError):
    """Records in the middle of a partition were removed before they were read; it goes on behind.

    Attributes:
        partition: number of the partition.
        position: of the first record behind the hole.
        events: how many are missing.
    """

    def __init__(self, message: str, partition: int, position: int, events: int) -> None:
        super().__init__(message)
        self.partition, self.position, self.events = partition, position, events


class OutOfOrder(MdpError):
    """A recording is too far from time order to be read in one pass; sort it first."""


class RejectedError(MdpError):
    """One event or line breaks a rule.

    Attributes:
        reason: a short word of a bounded set, used as a metric label and by ``mdp dlq``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(MdpError):
    """A model did not answer in time, failed, or answered nonsense.

    Attributes:
        reason: a short word of a bounded set, used as a metric label.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
