"""The stages wired, top to bottom: provider → bus → window → store → feature → inference → signal.

A *live* run reads feeds into the live topic and cuts it into windows for as long as it is left
running. A *lane* carries one recording, from its first event to its end mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from market_data_core import registry
from market_data_core.config import Settings
from market_data_core.contracts.provider import LiveProvider, Recording, Subscription
from market_data_pipeline.archive.archiver import archiver_of
from market_data_pipeline.archive.settings import Archived
from market_data_pipeline.assembly import Assembly, Progress, Summary
from market_data_pipeline.backends import Backends
from market_data_pipeline.lanes import Lanes
from market_data_pipeline.live_batchers import LiveBatchers
from market_data_pipeline.patience import patient
from market_data_pipeline.pump import Pump
from market_data_pipeline.routing.feedback import FeedbackListener
from market_data_pipeline.routing.rate import RateCoordinator
from market_data_pipeline.routing.router import ProviderRouter
from market_data_pipeline.signals.assembly import evaluator_of, live_signals, signal_lane
from market_data_pipeline.signals.beside import attended, ends, evaluated, is_its
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.settings import Signalled

_DRAIN_S = 10.0
_LOOK_S = 0.05


class Flow:
    """One process's share of the work on the configured backends.

    Args:
        settings: the configuration.
        backends: opened bus and store.
    """

    def __init__(self, settings: Settings, backends: Backends) -> None:
        self._parts = Assembly(settings, backends)

    @property
    def progress(self) -> Progress:
        """How the run is doing."""
        return self._parts.progress

    async def record(
        self,
        recording: Recording,
        stop: asyncio.Event,
        speed: float | None = None,
        evaluator: Evaluator | None = None,
    ) -> Summary:
        """Carry one recording from its first event to its last signal; resumes where it stood.

        Args:
            recording: what to carry.
            stop: ends the work.
            speed: how many times faster than their own time events are carried; None: at once.
            evaluator: what is made of its bars once all are there; None: nothing.
        """

        async def infer(summary: Summary, told: Collection[str]) -> Summary:
            assert evaluator is not None  # noqa: S101
            done = await signal_lane(self._parts, evaluator, summary.topic, told, stop)
            if done.left and not stop.is_set():
                await self._infer_beside(done, stop)
            return replace(summary, signalled=done)

        lanes = Lanes(self._parts, speed)
        return await lanes.record(recording, stop, infer if evaluator else None)

    async def _infer_beside(self, done: Signalled, stop: asyncio.Event) -> None:
        """Evaluate, if nobody else does, what live inference was told of by a recording."""
        parts, evaluator = self._parts, evaluator_of(self._parts.settings)
        if evaluator is None:
            return
        its = await patient(lambda: is_its(parts, evaluator), stop=stop)
        if not its or await patient(lambda: attended(parts), stop=stop):
            evaluator.close()
            return
        until = await patient(lambda: ends(parts), stop=stop)
        enough, there = asyncio.Event(), False
        inferring = asyncio.create_task(self.infer(enough, evaluator))
        try:
            while not (there or stop.is_set() or inferring.done()):
                await asyncio.sleep(_LOOK_S)
                there = await patient(lambda: evaluated(parts, until), stop=stop)
            enough.set()
            made = await inferring
            if there:
                done.include(made)
        finally:
            inferring.cancel()
            await asyncio.gather(inferring, return_exceptions=True)

    async def produce(
        self, providers: Mapping[str, LiveProvider], symbols: tuple[str, ...], stop: asyncio.Event
    ) -> int:
        """Write feeds to the live topic until they end or `stop` is set; returns the events.

        They follow the feedback on the bus, whichever process it comes from.

        Raises:
            UsageError: a vendor refuses what is asked for.
        """
        await self._live_topics(stop)
        rate = RateCoordinator()
        router = ProviderRouter(providers, rate)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._pump(provider).run(router.feed(kind, Subscription(symbols))))
            for kind, provider in providers.items()
        ]
        listener = FeedbackListener(self._parts.bus, rate.on_feedback)
        beside: set[asyncio.Task[Any]] = {
            asyncio.create_task(stop.wait()),
            asyncio.create_task(listener.run()),
        }
        try:
            while not stop.is_set() and not all(task.done() for task in tasks):
                busy = {task for task in tasks if not task.done()}
                done, _ = await asyncio.wait(busy | beside, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a feed that can never work ends the run
                beside -= done
        finally:
            for task in (*tasks, *beside):
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*beside, return_exceptions=True)
        for outcome in ended:  # what was taken last may not have been written
            if isinstance(outcome, Exception):
                raise outcome
        return self._parts.progress.produced

    def _pump(self, provider: LiveProvider) -> Pump:
        producer = self._parts.live_producer(provider.name)
        linger_s = self._parts.settings.bus.linger_ms / 1e3
        return Pump(producer, linger_s, self._parts.produced)

    async def micro_batch(self, stop: asyncio.Event, drain: bool = False) -> Summary:
        """Cut the live topic into windows until `stop` is set.

        Args:
            stop: ends the work; what was read is committed.
            drain: after `stop`, first read what is there (for at most ten seconds).
        """
        await self._live_topics(stop)
        return await LiveBatchers(self._parts, _DRAIN_S if drain else 0.0).run(stop)

    async def archive(
        self, stop: asyncio.Event, root: Path, *, once: bool, lanes: bool
    ) -> Archived:
        """Write the live topic and its dead letters to the archive until `stop` is set.

        Args:
            stop: ends the work; what was read is written.
            root: the archive's folder.
            once: end by itself once what is there now is archived.
            lanes: recordings' topics too.

        Raises:
            UsageError: the folder cannot be used, or is not the one used so far.
        """
        done = await archiver_of(self._parts, root, lanes).run(stop, once)
        self._parts.progress.produced = done.events
        return done

    async def infer(
        self,
        stop: asyncio.Event,
        evaluator: Evaluator,
        kinds: tuple[str, ...] = (),
        drain: bool = False,
    ) -> Signalled:
        """Turn closed bars of the live topic into signals until `stop` is set.

        Args:
            stop: ends the work; what was evaluated is committed.
            evaluator: what is made of the bars.
            kinds: adapters that were chosen for it; none: those that are enabled.
            drain: after `stop`, first read what is there (for at most ten seconds).
        """
        worker = await patient(lambda: live_signals(self._parts, evaluator, kinds), stop=stop)
        return await worker.run(stop, _DRAIN_S if drain else 0.0)

    async def live(
        self,
        providers: Mapping[str, LiveProvider],
        symbols: tuple[str, ...],
        stop: asyncio.Event,
        evaluator: Evaluator | None = None,
    ) -> Summary:
        """Produce, micro-batch and, with an evaluator, infer in one process."""
        if evaluator is None:
            return await self._live(providers, symbols, stop)
        batched = asyncio.Event()
        inferring = asyncio.create_task(self.infer(batched, evaluator, drain=True))
        working = asyncio.create_task(self._live(providers, symbols, stop))
        try:
            await asyncio.wait({inferring, working}, return_when=asyncio.FIRST_COMPLETED)
            if inferring.done() and not working.done():  # it has failed
                stop.set()
            summary = await working
            batched.set()
            return replace(summary, signalled=await inferring)
        finally:
            for task in (inferring, working):
                task.cancel()
            await asyncio.gather(inferring, working, return_exceptions=True)

    async def _live(
        self, providers: Mapping[str, LiveProvider], symbols: tuple[str, ...], stop: asyncio.Event
    ) -> Summary:
        produced = asyncio.Event()

        async def produce() -> None:
            try:
                await self.produce(providers, symbols, stop)
            finally:
                produced.set()

        feeding = asyncio.create_task(produce())
        try:
            summary = await self.micro_batch(produced, drain=True)
        finally:
            stop.set()
            await asyncio.gather(feeding, return_exceptions=True)
        await feeding
        return summary

    async def _live_topics(self, stop: asyncio.Event) -> None:
        parts, bus = self._parts, self._parts.settings.bus
        await patient(lambda: parts.result_topics(bus.bars_topic), stop=stop)
        outside = bus.type == "kafka"  # whose own tools can add partitions
        await patient(lambda: parts.generations.open(bus.partitions, enter=outside), stop=stop)


def open_providers(
    settings: Settings, kinds: tuple[str, ...], limit_s: float | None
) -> dict[str, LiveProvider]:
    """The live providers to run: those named, else those that the configuration enables.

    Raises:
        UsageError: a provider is not known, or its driver is not installed.
    """
    chosen = kinds or tuple(settings.enabled_producers())
    return {
        kind: registry.backend("provider", kind).create(settings.producer(kind), limit_s=limit_s)
        for kind in chosen
    }
