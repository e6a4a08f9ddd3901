"""How memory is kept, and how often it is searched for garbage."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # malloc.h
_MIB = 1 << 20
_OBJECTS = 50_000


def tune_memory() -> None:
    """Prepare a process that carries events: what malloc keeps, and when garbage is looked for."""
    _look_less_often_for_garbage()
    _keep_freed_memory()


def _look_less_often_for_garbage() -> None:
    """Messages come by the thousand, and none is part of a cycle.

    By default Python looks through all that lives after every 700 new objects, which takes a third
    of the time of reading them.
    """
    gc.freeze()
    gc.set_threshold(_OBJECTS)


def _keep_freed_memory() -> None:
    """Let malloc keep some freed memory; does nothing on other C libraries than glibc.

    Every batch needs columns of a few hundred kilobytes for a moment. By default glibc maps and
    unmaps each of them, and every page is cleared and faulted in again: a fifth of the time of the
    whole path. Bounded: at most 64 MiB stay at each arena's end.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_MMAP_THRESHOLD, 16 * _MIB)
        mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        mallopt(_TOP_PAD, 8 * _MIB)
        mallopt(_ARENA_MAX, 2)
