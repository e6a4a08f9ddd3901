"""A guard around any adapter: it answers in time, or something else answers in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog

from market_data_core._config_inference import InferenceSettings, ModelAdapterSettings
from market_data_core.contracts.inference import Adapter, Firing, Rows
from market_data_core.errors import ModelError
from market_data_pipeline.inference._model_answers import NOT_FINITE, SHAPE
from market_data_pipeline.inference._model_pool import BUSY, TIMEOUT, DaemonPool
from market_data_pipeline.inference.expression import Known
from market_data_store.coordinator.policy import CircuitBreaker, CircuitState

log = structlog.get_logger("inference")

_ERROR, _OPEN, _FALLBACK = "error", "open", "fallback"
REASONS = (TIMEOUT, BUSY, _ERROR, SHAPE, NOT_FINITE, _OPEN, _FALLBACK)
"""Why there is no answer: not in time; all threads hang in earlier calls; it raised; arrays of
another shape or type; numbers that are not finite; it failed so often that it is not asked now;
and what is asked instead has failed too."""


class Said(NamedTuple):
    """An answer.

    Attributes:
        firings: what holds.
        names: of the signals that it speaks of: of these no others hold.
    """

    firings: Sequence[Firing]
    names: Collection[str]


class Guarded:
    """An adapter whose calls have a deadline, off the event loop, and stop while it fails.

    Belongs to one event loop.

    Args:
        adapter: what is asked.
        deadline_s: how long one call may take, in seconds.
        workers: threads for its calls; one that hangs holds its thread for as long as it hangs.
        breaker: counts its failures in a row; while it is open, the adapter is not asked.
        fallback: what is asked instead, for every call that the adapter does not answer; it has
            neither deadline nor breaker.
        on_failure: called with the reason, one of :data:`REASONS`, of every call that the adapter
            does not answer.

    Attributes:
        name: the adapter's.
        version: the adapter's.
        names: of all signals, the fallback's included.
        cooldown_ns: the longest cooldown, the fallback's included.
        standby: version of the fallback, "" if there is none.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        deadline_s: float,
        workers: int,
        breaker: CircuitBreaker,
        fallback: Adapter | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.name, self.version = adapter.name, adapter.version
        both = (adapter, fallback) if fallback else (adapter,)
        self.names = tuple(dict.fromkeys(name for each in both for name in each.names))
        self.cooldown_ns = max(each.cooldown_ns for each in both)
        self.standby = fallback.version if fallback else ""
        self._adapter, self._fallback = adapter, fallback
        self._deadline_s, self._breaker = deadline_s, breaker
        self._on_failure = on_failure
        self._pool: DaemonPool[list[Firing]] = DaemonPool(f"inference-{self.name}", workers)
        self._spare: DaemonPool[list[Firing]] = DaemonPool(f"inference-{self.name}-fallback", 1)
        self._failing = False
        self._stop_listening = breaker.listen(self._turned)

    def columns(self, interval: str) -> Mapping[str, int]:
        """Column -> how many bars back the adapter or its fallback looks at it."""
        found = dict(self._adapter.columns(interval))
        for column, back in self._fallback.columns(interval).items() if self._fallback else ():
            found[column] = max(back, found.get(column, 0))
        return found

    async def evaluate(self, rows: Rows) -> Said:
        """What the adapter says about the rows, or else its fallback.

        A fallback speaks of its own signals only: of the adapter's nobody knows whether they hold.
        Its firings say so in their notes: ``fallback_for`` and ``fallback_version``.

        Raises:
            ModelError: the adapter has no answer and there is no fallback, or that failed too.
        """
        try:
            return Said(await self._ask(rows), self.names)
        except ModelError as error:
            if self._on_failure is not None:
                self._on_failure(error.reason)
            if self._fallback is None:
                raise
        try:
            firings = await self._spare.run(partial(_checked, self._fallback, rows), None)
        except ModelError as error:
            log.warning("nor did the fallback answer", adapter=self.name, error=str(error))
            if self._on_failure is not None:
                self._on_failure(_FALLBACK)
            raise
        notes = {"fallback_for": self.name, "fallback_version": self.standby}
        told = [replace(firing, notes={**firing.notes, **notes}) for firing in firings]
        return Said(told, self._fallback.names)

    def close(self) -> None:
        """Release everything but threads that hang, which end when their calls return."""
        self._stop_listening()
        self._pool.close()
        self._spare.close()
        self._adapter.close()
        if self._fallback is not None:
            self._fallback.close()

    async def _ask(self, rows: Rows) -> list[Firing]:
        if not self._breaker.allow():
            msg = f"{self.name} failed too often and is not asked for now"
            raise ModelError(_OPEN, msg)
        try:
            firings = await self._pool.run(partial(_checked, self._adapter, rows), self._deadline_s)
        except ModelError as error:
            self._note(error)
            self._breaker.record_failure()
            raise
        except asyncio.CancelledError:
            self._breaker.release()
            raise
        self._breaker.record_success()
        if self._failing:
            self._failing = False
            log.info("the model answers again", adapter=self.name)
        return firings

    def _note(self, error: ModelError) -> None:
        """Log the first of several failures in a row."""
        if not self._failing:
            self._failing = True
            log.warning(
                "the model gave no answer", adapter=self.name, reason=error.reason, error=str(error)
            )

    def _turned(self, state: CircuitState) -> None:
        if state == "open":
            log.warning(
                "the model is not asked for a while, since it fails",
                adapter=self.name,
                seconds=self._breaker.recovery_timeout,
                instead=self._fallback.name if self._fallback else "nothing",
            )


def guard(
    adapter: Adapter,
    settings: InferenceSettings,
    *,
    fallback: Adapter | None = None,
    on_failure: Callable[[str], None] | None = None,
) -> Guarded:
    """`adapter`, guarded as the settings say.

    Args:
        adapter: what is asked.
        settings: section ``inference``.
        fallback: what is asked while the adapter does not answer.
        on_failure: called with the reason of every call that the adapter does not answer.
    """
    return Guarded(
        adapter,
        deadline_s=settings.deadline_ms / 1000,
        workers=settings.workers,
        breaker=CircuitBreaker(settings.breaker.failures, settings.breaker.open_s),
        fallback=fallback,
        on_failure=on_failure,
    )


def load_fallback(
    settings: ModelAdapterSettings,
    known: Known,
    default_interval: str,
    intervals: Collection[str],
) -> Adapter | None:
    """The rules that stand in for a model; None if the settings name none.

    Args:
        settings: of the model's adapter.
        known: the columns that there are.
        default_interval: of the rules that name none: the smallest window.
        intervals: all windows.

    Raises:
        ConfigError: the file cannot be read, or a rule in it is wrong.
    """
    if not settings.fallback:
        return None
    from market_data_pipeline.inference.adapters.rules import load_rules

    return load_rules(Path(settings.fallback), known, default_interval, intervals)


def _checked(adapter: Adapter, rows: Rows) -> list[Firing]:
    """What the adapter says, if it is what the contract says.

    Raises:
        ModelError: it is not, or the adapter raised.
    """
    try:
        firings = list(adapter.evaluate(rows))
        for firing in firings:
            if firing.name not in adapter.names:
                _refuse(firing, f"it is not among the names of {adapter.name}")
            _check(firing, len(rows))
    except ModelError:
        raise
    except BaseException as error:
        shown = f"{type(error).__name__}: {error}"[:300]
        raise ModelError(_ERROR, shown) from error
    return firings


def _check(firing: Firing, rows: int) -> None:
    """Refuse a firing that is not one of so many rows."""
    index = firing.rows
    if not _has(index, "i", len(index)) or np.any(np.diff(index) <= 0):
        _refuse(firing, "its rows are not ascending whole numbers")
    if len(index) and not 0 <= index[0] <= index[-1] < rows:
        _refuse(firing, f"its rows are not among the {rows} given")
    columns = {"value": firing.value, **firing.meta}
    if firing.score is not None:
        columns["score"] = firing.score
    for name, values in columns.items():
        if not _has(values, "f", len(index)):
            _refuse(firing, f"{name} is not one float64 for each of its {len(index)} rows")
        if name in {"value", "score"} and not np.isfinite(values).all():
            msg = f"{firing.name}: a {name} is not finite"
            raise ModelError(NOT_FINITE, msg)


def _has(values: Any, kind: str, length: int) -> bool:
    return (
        isinstance(values, np.ndarray)
        and values.shape == (length,)
        and values.dtype.kind == kind
        and values.dtype.itemsize == 8
    )


def _refuse(firing: Firing, why: str) -> None:
    msg = f"{firing.name}: {why}"
    raise ModelError(SHAPE, msg)
