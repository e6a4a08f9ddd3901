"""A coordinator's settings from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from market_data_core._config_problems import problems_of
from market_data_core._config_types import SettingsModel
from market_data_core._suggest import did_you_mean
from market_data_core.errors import ConfigError

PREFIX = "MDS_"
Overflow = Literal["block", "drop_oldest", "drop", "error"]


class CoordinatorRuntimeSettings(SettingsModel):
    """Read from the environment when it is made: ``MDS_COORDINATOR_CAPACITY`` and so on.

    Each field's variable is its name in upper case after ``MDS_``; arguments come before the
    environment, the environment before the defaults.

    Raises:
        ConfigError: a variable of that kind is not known, or its value cannot be used.
    """

    coordinator_capacity: int = Field(default=10_000, ge=1, description="Rows that may wait.")
    coordinator_workers: int = Field(default=4, ge=1, le=1024, description="Concurrent writers.")
    coordinator_batch_size: int = Field(default=500, ge=1, description="Rows of a full batch.")
    coordinator_flush_interval: float = Field(
        default=0.25, gt=0, description="Longest wait for a batch to fill, in seconds."
    )
    coordinator_high_watermark: float = Field(
        default=0.8, gt=0, le=1, description="Part of the capacity from which the queue is high."
    )
    coordinator_low_watermark: float = Field(
        default=0.5, ge=0, lt=1, description="Part of it at which a high queue is low again."
    )
    coordinator_overflow: Overflow = Field(
        default="block",
        description="When the queue is full: wait, drop the oldest, or raise an error.",
    )
    coordinator_retry_max_attempts: int = Field(
        default=5, ge=1, description="Attempts before the breaker is opened."
    )
    coordinator_retry_initial_backoff_ms: float = Field(
        default=50, ge=0, description="Pause after the first failure, in ms."
    )
    coordinator_retry_max_backoff_ms: float = Field(
        default=2000, ge=0, description="Longest pause between attempts, in ms."
    )
    coordinator_breaker_failure_threshold: int = Field(
        default=5, ge=1, description="Failures in a row that open the breaker."
    )
    coordinator_breaker_recovery_timeout: float = Field(
        default=60, ge=0, description="Longest time without a try, in seconds."
    )
    coordinator_drain_timeout: float = Field(
        default=10, ge=0, description="Longest wait for the queue to empty at the end, in seconds."
    )

    def __init__(self, **values: object) -> None:
        given = _from_environment(os.environ, type(self).model_fields) | values
        try:
            super().__init__(**given)
        except ValidationError as error:
            lines = [
                f"  {PREFIX}{str(p.path[0]).upper()}: {p.text}" if p.path else f"  {p.text}"
                for p in problems_of(error, type(self))
            ]
            msg = "coordinator settings:\n" + "\n".join(lines)
            raise ConfigError(msg) from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.coordinator_low_watermark >= self.coordinator_high_watermark:
            msg = (
                f"coordinator_low_watermark {self.coordinator_low_watermark} has to be below "
                f"coordinator_high_watermark {self.coordinator_high_watermark}"
            )
            raise ValueError(msg)
        if self.coordinator_retry_initial_backoff_ms > self.coordinator_retry_max_backoff_ms:
            msg = (
                f"coordinator_retry_initial_backoff_ms {self.coordinator_retry_initial_backoff_ms}"
                f" is more than coordinator_retry_max_backoff_ms "
                f"{self.coordinator_retry_max_backoff_ms}"
            )
            raise ValueError(msg)
        return self


def _from_environment(
    environment: Mapping[str, str], fields: Mapping[str, object]
) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, text in environment.items():
        if not name.startswith(f"{PREFIX}COORDINATOR_"):
            continue
        field = name.removeprefix(PREFIX).lower()
        if field not in fields:
            valid = [f"{PREFIX}{known}".upper() for known in fields]
            msg = f"environment variable {name} is not a setting; {did_you_mean(name, valid)}"
            raise ConfigError(msg)
        if text.strip():
            found[field] = text.strip()
    return found
