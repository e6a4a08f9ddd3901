"""The nearest valid name, for messages about a name that is not valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """What to write instead of `name`, as the end of a sentence.

    Names the nearest of `valid` where one is near, then all of them (the first 20).
    """
    names = list(valid)
    if not names:
        return "there are none to choose from"
    lowered = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return (f"did you mean {lowered[near[0]]!r}? " if near else "") + f"valid: {listed}"
