"""A Redis server of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.servers.redis import MISSING, Server, binary, running


@pytest.fixture
def server() -> Iterator[Server]:
    """A Redis server that a test may stop and damage; what it has taken is on its disk."""
    if binary() is None:
        pytest.skip(MISSING)
    with running("--appendfsync", "always") as one:
        assert one
        yield one
