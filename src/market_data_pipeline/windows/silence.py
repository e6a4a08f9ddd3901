"""What a provider's silence says of its windows."""

from __future__ import annotations

from market_data_core.records import Mark
from market_data_pipeline.windows.assigner import floor_to
from market_data_pipeline.windows.stream import WindowStream

PAUSE_MAX_NS = 3_600 * 10**9
"""A feed that paused on purpose and stays away for so long is as silent as any other."""


def idle_mark(provider: str, stream: WindowStream, silent_ns: int, silence_ns: int) -> Mark | None:
    """A mark, if the provider's silence lets a window close, or a closed one be let go.

    A silent provider's clock is taken to have gone on since its last record.

    Args:
        provider: its name.
        stream: its windows.
        silent_ns: how long ago its last record was.
        silence_ns: after how long that counts.
    """
    if silent_ns < (PAUSE_MAX_NS if stream.paused else silence_ns):
        return None
    reached = stream.greatest + silent_ns - stream.spec.allow_late_ns
    reached = floor_to(reached, stream.spec.base_ns)
    if reached >= stream.next_end():
        return Mark(kind="idle", provider=provider, ts=reached)
    release = stream.release_at()
    if stream.watermark < release <= reached:
        # what closed long ago must not hold back the log for ever
        return Mark(kind="idle", provider=provider, ts=release)
    return None
