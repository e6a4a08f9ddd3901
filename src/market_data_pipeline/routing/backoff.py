"""How long to wait before a broken feed is begun again."""

from __future__ import annotations

import random

_PAUSE_MIN_S, _PAUSE_MAX_S = 0.2, 30.0
_GOOD_S = 60.0


class Backoff:
    """How long to wait before a broken feed is begun again.

    Each pause is drawn between half and the whole of a limit that begins at 0.2 s and doubles up
    to 30 s, so that the clients of a vendor that was down do not come back all at once. A feed
    that served for a minute begins anew.
    """

    def __init__(self) -> None:
        self._limit_s = _PAUSE_MIN_S

    def pause_s(self, served_s: float) -> float:
        """The next pause, in seconds; `served_s` is for how long the feed had yielded items."""
        if served_s >= _GOOD_S:
            self._limit_s = _PAUSE_MIN_S
        limit, self._limit_s = self._limit_s, min(2 * self._limit_s, _PAUSE_MAX_S)
        return random.uniform(limit / 2, limit)  # noqa: S311  (nobody gains by guessing it)
