"""What a recording tells of a live feed's bars."""

from __future__ import annotations

from market_data_core.contracts.store import PartitionKey, PartitionStatus
from market_data_pipeline.lane_news import live_providers
from market_data_pipeline.windows.checkpoint import Checkpoint, StreamState


def test_a_vendors_own_bars_have_a_provider_of_their_own() -> None:
    streams = [
        StreamState(provider="a", kind="tick"),
        StreamState(provider="b", kind="bar", interval="1m"),
    ]
    checkpoint = Checkpoint(log_id="log", streams=streams).encode()
    row = PartitionStatus(PartitionKey("g", "mdp.events", 0), 1, "", 0, 1, checkpoint)
    assert live_providers([row]) == {"a", "b:official"}
