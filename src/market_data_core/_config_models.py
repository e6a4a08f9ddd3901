"""The settings of ``configs/streaming.yaml``, section by section."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from market_data_core._config_types import (
    Interval,
    SettingsModel,
    Uri,
    check_distinct,
    check_interval,
    from_env,
)
from market_data_core.intervals import NS_PER_MS, parse_interval

STORE_URI_DEFAULT = "${MDP_STORE_URI:-${MDS_DSN:-sqlite:///${MDP_HOME:-.mdp}/store.db}}"

_DAY_MS = 86_400_000


def _or_default_store(uri: Any) -> Any:
    return StoreSettings().uri if uri == "" else uri


_DAYS_MAX = 36_500


def _days(value: Any, where: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _DAYS_MAX:
        msg = f"{where}{value!r} is not a number of days, 0 (for ever) to {_DAYS_MAX}"
        raise ValueError(msg)
    return value


def _days_by_interval(value: Any) -> int | dict[str, int]:
    """Days of all bars, or of each interval by its one spelling."""
    if not isinstance(value, dict):
        return _days(value)
    found = [(check_interval(str(name)), name, days) for name, days in value.items()]
    check_distinct([interval for interval, _, _ in found])
    return {interval: _days(days, f"{name}: ") for interval, name, days in found}


Days = Annotated[int, BeforeValidator(_days)]


class StoreRetentionSettings(SettingsModel):
    """How long rows are kept, table by table."""

    bars_ohlcv: Annotated[int | dict[str, int], BeforeValidator(_days_by_interval)] = Field(
        default=0,
        description="Age in days from which `mdp store policies --apply` deletes bars, with their "
        "history; 0: never. Or by interval: `{1s: 30, 1m: 0}`.",
    )
    signals: Days = Field(default=0, description="Likewise, for signals.")
    options_snap: Days = Field(default=0, description="Likewise, for options.")
    fundamentals: Days = Field(default=0, description="Likewise, for fundamentals.")
    news: Days = Field(default=0, description="Likewise, for news.")
    job_runs: Days = Field(default=0, description="Likewise, for the records of runs.")

    def rules(self) -> list[tuple[str, str | None, int]]:
        """(table, interval or None for all, days) of everything that is not kept for ever."""
        found: list[tuple[str, str | None, int]] = []
        for table in type(self).model_fields:
            days = getattr(self, table)
            each = days.items() if isinstance(days, dict) else [(None, days)]
            found += [(table, interval, number) for interval, number in each if number]
        return found


class StoreSettings(SettingsModel):
    """Where bars, checkpoints and bookkeeping live."""

    uri: Annotated[Uri, BeforeValidator(_or_default_store)] = from_env(
        STORE_URI_DEFAULT,
        "`sqlite:///` and a path (a fourth slash makes it absolute) or `postgresql://…`. "
        "Empty: the default.",
    )
    retention: StoreRetentionSettings = Field(default_factory=StoreRetentionSettings)


class MicroBatchSettings(SettingsModel):
    """From events to bars."""

    window_ms: int = Field(
        default=2000, ge=1, le=7 * _DAY_MS, description="Length of the only window, in ms."
    )
    windows: Annotated[
        tuple[Interval, ...], Field(max_length=16), AfterValidator(check_distinct)
    ] = Field(
        default=(),
        description="Several windows from one pass, such as `2s` and `1m`; instead of `window_ms`.",
    )
    max_batch_size: int = Field(
        default=5000,
        ge=1,
        le=1_000_000,
        description="Most events that are worked on at once, in events.",
    )
    allow_late_ms: int = Field(
        default=500, ge=0, le=_DAY_MS, description="How far the watermark stays behind, in ms."
    )
    max_future_ms: int = Field(
        default=5000,
        ge=0,
        le=_DAY_MS,
        description="How far a live event may be ahead of the clock, in ms.",
    )
    flush_timeout_ms: int = Field(
        default=1000,
        ge=10,
        le=_DAY_MS,
        description="Silence after which a provider counts as idle, in ms.",
    )
    revise_horizon_ms: int = Field(
        default=10_000,
        ge=1,
        le=7 * _DAY_MS,
        description="How long a closed window can be restated by late events, in ms of event time.",
    )
    lease_ms: int = Field(
        default=2500,
        ge=100,
        le=600_000,
        description="Silence after which an owner's partitions may be taken over, in ms.",
    )
    commit_interval_ms: int = Field(
        default=500,
        ge=1,
        le=60_000,
        description="Longest time between two checkpoints under load, in ms.",
    )
    pending_rows_max: int = Field(
        default=20_000,
        ge=1,
        le=10_000_000,
        description="Bars that may wait for a commit under way before reading waits too; the "
        "capacity that feedback is told against.",
    )
    max_symbols_in_metrics: int = Field(
        default=50,
        ge=0,
        le=10_000,
        description="Symbols with a metric label of their own; all others share `other`.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.windows and "window_ms" in self.model_fields_set:
            msg = "window_ms and windows are both given; keep one of them"
            raise ValueError(msg)
        reach = self.max_future_ms + self.allow_late_ms
        if reach >= self.revise_horizon_ms:
            msg = (
                f"max_future_ms + allow_late_ms ({reach}) must be less than revise_horizon_ms "
                f"({self.revise_horizon_ms}); raise revise_horizon_ms"
            )
            raise ValueError(msg)
        if self.commit_interval_ms >= self.lease_ms:
            msg = (
                f"commit_interval_ms ({self.commit_interval_ms}) must be less than lease_ms "
                f"({self.lease_ms})"
            )
            raise ValueError(msg)
        return self

    @property
    def windows_ns(self) -> tuple[int, ...]:
        """Lengths of all windows in nanoseconds, ascending and distinct."""
        if self.windows:
            return tuple(sorted(parse_interval(window) for window in self.windows))
        return (self.window_ms * NS_PER_MS,)

    @property
    def base_ns(self) -> int:
        """Length in nanoseconds of the base window: what divides every window, the longest such."""
        return math.gcd(*self.windows_ns)


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class TelemetrySettings(SettingsModel):
    """Metrics and logs."""

    metrics_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address that serves the metrics; `0.0.0.0`: all.",
    )
    metrics_port: int = Field(
        default=9101,
        ge=0,
        le=65_535,
        description="Port of `/metrics`; if it is taken, the next free one. 0: not served.",
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = (
        Field(default="INFO", description="Least severe level that is logged.")
    )
    log_json: bool = Field(default=False, description="Log lines as JSON objects.")
