"""The archive's folder as writers use it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from market_data_pipeline.archive.layout import Segment
from market_data_pipeline.archive.shelf import Shelf, Table

TOPIC = "mdp.events"


@pytest.mark.parametrize("log_id", ["9f8e7d6c5b", "a-b_-c-d-e", "bT/L/BKUQ"])  # Kafka's are base64
def test_only_what_older_owners_staged_is_swept(tmp_path: Path, log_id: str) -> None:
    shelf = Shelf(tmp_path)
    older, newer = (Segment(TOPIC, log_id, 0, 7, token) for token in (2, 4))
    for segment in (older, newer):
        shelf.stage(segment, [Table("letters/date=2025-10-24", pl.DataFrame({"a": [1]}))])

    shelf.sweep(TOPIC, 0, 3)  # of an owner that was paused, and has a successor

    for segment in (older, newer):
        shelf.publish(segment)
    (found,) = tmp_path.glob("letters/date=2025-10-24/*.parquet")
    assert found.name.startswith(newer.name)
