"""``configs/datasets.yaml``: names for stretches of a feed's history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from market_data_core._config_problems import problems_of
from market_data_core._config_types import (
    SettingsModel,
    Symbol,
    check_distinct,
    check_interval,
    check_provider_name,
)
from market_data_core._config_yaml import Problem
from market_data_core._suggest import did_you_mean
from market_data_core.config import problems_text, read_document
from market_data_core.errors import ConfigError, RejectedError, UsageError
from market_data_core.events import format_ts, parse_ts

DEFAULT_DATASETS = Path("configs/datasets.yaml")
"""The file that is read when none is named."""
TICK = "tick"
"""In place of an interval: the events themselves."""


def _time(value: Any) -> int:
    """UTC ns of a date or time as YAML gives it; a date is its first moment."""
    try:
        return parse_ts(str(value))
    except RejectedError as error:
        msg = f"{error}; write 2025-10-24 or 2025-10-24T14:02:00Z (UTC)"
        raise ValueError(msg) from error


def _interval(text: str) -> str:
    """The canonical spelling of an interval, or ``tick``."""
    return text if text == TICK else check_interval(text)


Time = Annotated[int, BeforeValidator(_time)]


class DatasetSettings(SettingsModel):
    """A stretch of a feed's history.

    Attributes:
        from_ts: UTC ns; its key is ``from``.
        to_ts: UTC ns, exclusive; its key is ``to``.
    """

    provider: Annotated[str, AfterValidator(check_provider_name)] = Field(
        min_length=1, description="The feed's name, as its events bear it."
    )
    symbols: Annotated[tuple[Symbol, ...], AfterValidator(check_distinct)] = Field(
        default=(), description="Symbols; none: all."
    )
    interval: Annotated[str, AfterValidator(_interval)] = Field(
        default=TICK, description="`tick`: the events themselves; else bars of this interval."
    )
    from_ts: Time | None = Field(default=None, alias="from", description="Date or time, UTC.")
    to_ts: Time | None = Field(default=None, alias="to", description="Likewise, exclusive.")
    schedule: str = Field(
        default="", description="When it is brought up to date; for whoever does that."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.from_ts is not None and self.to_ts is not None and self.from_ts >= self.to_ts:
            msg = (
                f"from ({format_ts(self.from_ts)}) must be before to ({format_ts(self.to_ts)}), "
                "which is exclusive"
            )
            raise ValueError(msg)
        return self


def load_datasets(path: Path = DEFAULT_DATASETS) -> dict[str, DatasetSettings]:
    """All datasets by name.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong; the message names the file and
            of every problem the line, the key, and what to write instead.
    """
    document = read_document(path)
    problems: list[Problem] = list(document.problems)
    found = {}
    for name, values in document.data.items():
        if not isinstance(values, dict):
            problems.append(Problem((name,), "must be a group of settings (key: value)"))
            continue
        try:
            found[name] = DatasetSettings.model_validate(values)
        except ValidationError as error:
            problems += problems_of(error, DatasetSettings, (name,))
    if problems:
        raise ConfigError(problems_text(path, document, problems))
    return found


def find_dataset(name: str, path: Path = DEFAULT_DATASETS) -> DatasetSettings:
    """The dataset of that name.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong.
        UsageError: there is none of that name.
    """
    datasets = load_datasets(path)
    if name not in datasets:
        msg = f"there is no dataset {name!r} in {path}; {did_you_mean(name, datasets)}"
        raise UsageError(msg)
    return datasets[name]
