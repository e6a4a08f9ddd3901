"""What inference is put together from: features, rules and models as they are configured."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from market_data_core import registry
from market_data_core._config_inference import (
    AdapterSettings,
    ModelAdapterSettings,
    RulesAdapterSettings,
)
from market_data_core._config_types import check_signal_name
from market_data_core.config import BAR_COLUMNS, Settings
from market_data_core.contracts.feature import Feature
from market_data_core.contracts.inference import Adapter
from market_data_core.contracts.store import PartitionKey
from market_data_core.errors import ConfigError
from market_data_core.intervals import NS_PER_MS, format_interval
from market_data_pipeline import metrics
from market_data_pipeline.assembly import Assembly
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.holding import held
from market_data_pipeline.inference.adapters.rules import RulesAdapter
from market_data_pipeline.inference.guard import guard, load_fallback
from market_data_pipeline.patience import patient
from market_data_pipeline.signals.beside import inferred_live
from market_data_pipeline.signals.checkpoint import GROUP_SUFFIX
from market_data_pipeline.signals.editions import Editions
from market_data_pipeline.signals.evaluator import Evaluator, Guard, Unguarded
from market_data_pipeline.signals.index import ClosedWindows
from market_data_pipeline.signals.lane import LaneSignals
from market_data_pipeline.signals.renewal import Renewal
from market_data_pipeline.signals.settings import Signalled, SignalsSettings
from market_data_pipeline.signals.worker import SignalWorker
from market_data_store.sinks.groups import CoordinatedCommits

_POLL_BYTES = 4 << 20
_COORDINATOR = _COMPONENT = "inference"
_DEADLINE_MS = 600_000


def evaluator_of(
    settings: Settings, kinds: tuple[str, ...] = (), rules: str | None = None
) -> Evaluator | None:
    """What evaluates bars by the configuration.

    Args:
        settings: the configuration.
        kinds: adapters to use, whether enabled or not; none: those that are enabled.
        rules: a text of rules instead of that of their file.

    Returns:
        None if no adapter is to be used.

    Raises:
        ConfigError: features, rules or a model are wrong, or two signals share a name.
        UsageError: there is no such adapter, or its driver is not installed.
    """
    chosen = kinds or enabled_adapters(settings)
    guards = [_guard(settings, kind, rules) for kind in chosen]
    if not guards:
        return None
    first: dict[str, str] = {}
    for one in guards:
        for name in one.names:
            _check_name(one.name, name)
            if first.setdefault(name, one.name) != one.name:
                msg = (
                    f"inference.adapters: {first[name]} and {one.name} both give signals named "
                    f"{name!r}; give one of them another name (a fallback is a file of its own, "
                    "with names that no other rules have)"
                )
                raise ConfigError(msg)
    features = partial(catalog, settings.features)
    base = format_interval(settings.micro_batch.windows_ns[0])  # of rules that name none
    words = f"{base} {settings.features.model_dump_json()}"
    text = "".join(one.text for one in guards if isinstance(one, Unguarded))
    evaluator = Evaluator(features, guards, settings.features.session_gap_ns, words, text)
    for length_ns in settings.micro_batch.windows_ns:
        evaluator.needs(length_ns)  # what is wrong with features is told at the start
    return evaluator


def _check_name(adapter: str, name: str) -> None:
    """Raise ConfigError if signals cannot have that name; adapters may be anybody's."""
    try:
        check_signal_name(name)
    except ValueError as error:
        msg = f"inference.adapters.{adapter}: a signal's name {error}"
        raise ConfigError(msg) from error


def patient_evaluator(settings: Settings) -> Evaluator | None:
    """As :func:`evaluator_of`, with models that are waited for: nothing else answers for them.

    For what is not live: there every bar is to have its answer, and time to wait for it.
    """
    inference = settings.inference
    alone = {
        kind: adapter.model_copy(update={"fallback": ""})
        for kind, adapter in inference.adapters
        if isinstance(adapter, ModelAdapterSettings)
    }
    adapters = inference.adapters.model_copy(update=alone)
    waiting = inference.model_copy(update={"adapters": adapters, "deadline_ms": _DEADLINE_MS})
    return evaluator_of(settings.model_copy(update={"inference": waiting}))


async def live_signals(
    parts: Assembly, evaluator: Evaluator, kinds: tuple[str, ...] = ()
) -> SignalWorker:
    """A worker on the live topic of bars, which follows changes of rules and models.

    Args:
        parts: what to work with.
        evaluator: what is computed.
        kinds: as they were given to :func:`evaluator_of`.

    Raises:
        UsageError: the topic of signals has another number of partitions than that of bars.
    """
    bus, batch = parts.settings.bus, parts.settings.micro_batch
    info = await parts.bus.find_topic(bus.bars_topic)
    info = info or await parts.bus.create_topic(bus.bars_topic, bus.partitions)
    await parts.bus.create_topic(bus.signals_topic, info.partitions)
    settings = SignalsSettings(
        group=bus.group + GROUP_SUFFIX,
        member=parts.member,
        lease_ns=batch.lease_ms * NS_PER_MS,
        commit_interval_ns=batch.commit_interval_ms * NS_PER_MS,
        poll_bytes=_POLL_BYTES,
        topic=bus.signals_topic,
        horizon_ns=batch.revise_horizon_ms * NS_PER_MS,
    )
    commits = CoordinatedCommits(parts.store, _COORDINATOR)

    def built(rules: str | None = None) -> Evaluator:
        made = evaluator_of(parts.settings, kinds, rules)
        assert made is not None  # noqa: S101  (there was one from the same adapters)
        return made

    editions = Editions(evaluator, built)
    renewal = Renewal(_files(parts.settings, kinds), built, evaluator.version)
    closed = ClosedWindows(parts.store, parts.generations, bus.group, bus.partitions)
    worker = SignalWorker(
        parts.bus, parts.store, commits, info, settings, editions, parts.clock, closed, renewal
    )
    parts.progress.signalled = worker.done
    return worker


async def signal_lane(
    parts: Assembly,
    evaluator: Evaluator,
    events_topic: str,
    told: Collection[str],
    stop: asyncio.Event,
) -> Signalled:
    """Evaluate the bars of a complete recording; nothing is done a second time.

    Args:
        parts: what to work with.
        evaluator: what is computed.
        events_topic: the recording's.
        told: providers of whose bars the live topic was told.
        stop: ends the work.

    Raises:
        FencedError: another process has taken over.
    """
    bus, batch = parts.settings.bus, parts.settings.micro_batch
    lane = events_topic.removeprefix(f"{bus.events_topic}.")
    bars = await patient(lambda: parts.bus.find_topic(f"{bus.bars_topic}.{lane}"), stop=stop)
    if bars is None:  # it was dropped when the recording's time was over
        return Signalled()
    topic = f"{bus.signals_topic}.{lane}"
    await patient(lambda: parts.bus.create_topic(topic, 1), stop=stop)
    key = PartitionKey(bus.group + GROUP_SUFFIX, bars.name, 0)
    lease_ns = batch.lease_ms * NS_PER_MS
    async with held(parts.store, key, parts.member, lease_ns, stop) as claim:
        if claim is None:
            return Signalled()
        commits = CoordinatedCommits(parts.store, _COORDINATOR)
        live = await patient(lambda: inferred_live(parts, told), stop=stop)
        lane_signals = LaneSignals(parts.bus, parts.store, commits, evaluator, bars, topic, live)
        parts.progress.signalled = lane_signals.done
        return await lane_signals.run(claim, stop)


def _files(settings: Settings, kinds: tuple[str, ...]) -> list[Path]:
    """The files of rules and models that are used."""
    adapters = settings.inference.adapters.by_name()
    chosen = [adapters[kind] for kind in kinds or enabled_adapters(settings) if kind in adapters]
    rules = [given.file for given in chosen if isinstance(given, RulesAdapterSettings)]
    models = [given for given in chosen if isinstance(given, ModelAdapterSettings)]
    paths = [path for given in models for path in (given.model_path, given.fallback) if path]
    return [*rules, *map(Path, paths)]


def enabled_adapters(settings: Settings) -> tuple[str, ...]:
    """The kinds of adapters that the configuration enables."""
    adapters = settings.inference.adapters.by_name()
    return tuple(kind for kind, given in adapters.items() if given.enabled)


def _guard(settings: Settings, kind: str, rules: str | None) -> Guard:
    backend = registry.backend("inference", kind)
    model = backend.settings or AdapterSettings
    given = settings.inference.adapters.by_name().get(kind) or model()
    windows = [format_interval(length) for length in settings.micro_batch.windows_ns]
    known = known_columns(settings)
    if rules is not None and isinstance(given, RulesAdapterSettings):
        source = f"earlier rules of {given.file}"
        return Unguarded(RulesAdapter.of_text(rules, source, known, windows[0], windows))
    adapter: Adapter = backend.create(given, known, windows[0], windows)
    if isinstance(adapter, RulesAdapter):
        return Unguarded(adapter)
    fallback = None
    if isinstance(given, ModelAdapterSettings):
        fallback = load_fallback(given, known, windows[0], windows)
    return guard(
        adapter,
        settings.inference,
        fallback=fallback,
        on_failure=lambda reason: metrics.ERRORS.labels(_COMPONENT, reason).inc(),
    )


def known_columns(settings: Settings) -> frozenset[str]:
    """The columns that rules and models can name."""
    features: Mapping[str, Feature] = catalog(settings.features, settings.micro_batch.windows_ns[0])
    return frozenset((*features, *BAR_COLUMNS))
