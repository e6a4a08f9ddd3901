"""A sink that does what the test tells it, and a coordinator on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from market_data_store.coordinator import CircuitBreaker, RetryPolicy, WriteCoordinator


class ControlledSink:
    """Keeps what is written.

    Attributes:
        open: cleared, writes wait until it is set.
        fail: called with each batch before it is kept; raises what the store would.
        entered: writes that have begun.
    """

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fail: Callable[[list[Any]], None] = lambda batch: None
        self.entered = 0
        self.concurrent = 0
        self.concurrent_max = 0
        self.began = asyncio.Event()

    @property
    def items(self) -> list[Any]:
        return [item for batch in self.batches for item in batch]

    async def write(self, batch: Sequence[Any]) -> None:
        self.entered += 1
        self.concurrent += 1
        self.concurrent_max = max(self.concurrent_max, self.concurrent)
        self.began.set()
        try:
            await self.open.wait()
            self.fail(list(batch))
            self.batches.append(list(batch))
        finally:
            self.concurrent -= 1

    async def wait_until_called(self, times: int) -> None:
        while self.entered < times:
            self.began.clear()
            await self.began.wait()


class StoreError(Exception):
    """As drivers of PostgreSQL raise it."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"the database says {sqlstate}")
        self.sqlstate = sqlstate


class Make(Protocol):
    def __call__(self, other: Any = None, **options: Any) -> WriteCoordinator[Any]: ...


@pytest.fixture
def sink() -> ControlledSink:
    return ControlledSink()


@pytest.fixture
def make(sink: ControlledSink, tmp_path: Path, request: pytest.FixtureRequest) -> Make:
    """A coordinator that never pauses for long, named after the test."""

    def build(other: Any = None, **options: Any) -> WriteCoordinator[Any]:
        defaults: dict[str, Any] = {
            "coord_id": request.node.name.replace("[", ".").replace("]", "").replace("/", "-")[:60],
            "dlq": tmp_path / "dead.ndjson",
            "flush_interval": 0.01,
            "retry_policy": RetryPolicy(initial_backoff_ms=1, max_backoff_ms=2),
            "circuit_breaker": CircuitBreaker(recovery_timeout=0.01),
            "drain_timeout": 5.0,
        }
        return WriteCoordinator(sink=other or sink, **(defaults | options))

    return build
