"""From two providers to the store: router, write coordinator, sink; and what happens when it jams.

    python examples/run_pipeline_to_store.py
    MDS_DSN=postgresql://me@127.0.0.1/market python examples/run_pipeline_to_store.py

The providers are mocks, the store is a real one. Three things are made to go wrong:

- at first the store takes its time: the queue fills, feedback turns soft and hard, and the router
  slows its providers down, until the store is quick again;
- it refuses the bars of one symbol: they alone become dead letters, in .dlq/pipeline_bars.ndjson;
- then whatever was wrong with that symbol is mended, and the dead letters are replayed.

Metrics are at http://127.0.0.1:9000/metrics meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Any

from market_data_core.errors import MdpError, RejectedError
from market_data_core.feedback import FeedbackEvent
from market_data_pipeline import MockProvider, ProviderRouter, RateCoordinator
from market_data_pipeline.telemetry import configure_logging, serve_metrics
from market_data_store.coordinator import (
    CircuitBreaker,
    CoordinatorRuntimeSettings,
    DeadLetterQueue,
    FeedbackBus,
    RetryPolicy,
    WriteCoordinator,
)
from market_data_store.sinks import BarsSink
from mds_client import AMDS
from mds_client.models import Bar

SYMBOLS = ("AAPL", "MSFT", "SPY", "TSLA")
REFUSED = "TSLA"
SLOW_FOR_S, SLOW_S = 4.0, 0.2


class MoodySink(BarsSink):
    """A sink with the moods of a bad day: slow for a while, and particular about one symbol."""

    def __init__(self, client: AMDS) -> None:
        super().__init__(client)
        self.refuses = True
        self._quick_from = monotonic() + SLOW_FOR_S

    async def write(self, batch: Sequence[Any]) -> Any:
        """Store the batch, in its own time, if nothing in it is refused."""
        if monotonic() < self._quick_from:
            await asyncio.sleep(SLOW_S)
        if self.refuses and any(bar.symbol == REFUSED for bar in batch):
            msg = f"{REFUSED} breaks a rule of the database"
            raise RejectedError(reason="refused", message=msg)
        return await super().write(batch)


class Demo:
    """The parts, and what they show of themselves."""

    def __init__(self, bars: int) -> None:
        settings = CoordinatorRuntimeSettings(coordinator_capacity=600, coordinator_batch_size=50)
        self.bars = bars
        self.rate = RateCoordinator()
        self.feedback = FeedbackBus()
        self.feedback.subscribe(self.rate.on_feedback)
        self.feedback.subscribe(self.tell)
        self.providers = [MockProvider(name, rate=800) for name in ("fast", "faster")]
        self.dlq = DeadLetterQueue[Bar](".dlq/pipeline_bars.ndjson")
        self.client = AMDS.from_env()
        self.sink = MoodySink(self.client)
        self.coordinator = WriteCoordinator[Bar](
            sink=self.sink,
            capacity=settings.coordinator_capacity,
            workers=settings.coordinator_workers,
            batch_size=settings.coordinator_batch_size,
            retry_policy=RetryPolicy(max_attempts=5),
            circuit_breaker=CircuitBreaker(failure_threshold=5),
            dlq=self.dlq,
            on_backpressure_high=lambda: print("           the queue is high"),
            on_backpressure_low=lambda: print("           the queue is low again"),
            feedback=self.feedback,
            coord_id="pipeline_bars",
        )

    def tell(self, event: FeedbackEvent) -> None:
        """Show an event of the feedback."""
        scale = {"ok": 1.0, "soft": 0.5, "hard": 0.0}[event.level]
        print(f"feedback   {event.level:<5} {event.reason}; providers at {scale:.0%}")

    def show(self, what: str) -> None:
        """Show how far everything is."""
        health = self.coordinator.health()
        print(
            f"{what:<10} {health.submitted:,} submitted = {health.written:,} stored + "
            f"{health.dead_lettered:,} dead letters + {health.queue_size:,} waiting or in flight "
            f"({health.workers_alive} workers, circuit {health.circuit_state})"
        )

    async def fill(self) -> None:
        """Providers → router → coordinator."""
        async with ProviderRouter(self.providers, self.rate) as router:
            taken = 0
            async for bar in router.stream_bars(SYMBOLS):
                await self.coordinator.submit(bar)
                taken += 1
                if taken % 1_000 == 0:
                    self.show("progress")
                if taken == self.bars:
                    break
        await self.coordinator.flush()
        self.show("flushed")

    async def replay(self) -> None:
        """Dead letters back through the coordinator, now that nothing is wrong any more."""
        self.sink.refuses = False
        while failed := await self.dlq.replay(500):
            print(f"replay     {len(failed)} records, such as: {failed[0].error}")
            await self.coordinator.submit_many(record.items for record in failed)
            await self.coordinator.flush()
        self.show("replayed")

    async def run(self) -> int:
        """Everything, then a look into the store; 0 if all bars are there."""
        async with self.sink, self.coordinator:
            await self.fill()
            await self.replay()
            names = [provider.name for provider in self.providers]
            frame = await self.client.bars(SYMBOLS, "1m", provider=names)
        await self.feedback.close()
        print(f"store      {len(frame):,} bars, {frame['symbol'].n_unique()} symbols")
        left = len(await self.dlq.lines())
        print(f"dlq        {self.dlq.path}: {left} records left")
        return int(left > 0 or len(frame) < self.bars)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bars", type=int, default=5_000, help="default %(default)s")
    parser.add_argument("--port", type=int, default=9000, help="of the metrics; %(default)s")
    given = parser.parse_args()
    configure_logging("ERROR")
    port = serve_metrics(given.port)
    print(f"metrics    http://127.0.0.1:{port}/metrics")
    try:
        return asyncio.run(Demo(given.bars).run())
    except MdpError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
