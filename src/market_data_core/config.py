"""Configuration: ``configs/streaming.yaml``, checked as a whole before anything starts.

Every key has a default. Unknown keys are errors. A key without a value keeps its default. In
texts ``${VAR}``, ``${VAR:-default}``, ``${VAR:?message}`` and ``$$`` are filled in from the
environment.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError

from market_data_core import registry
from market_data_core._config_archive import ArchiveSettings
from market_data_core._config_bus import (
    BusSettings,
    EmbeddedBusSettings,
    KafkaBusSettings,
    RedisBusSettings,
    RetentionSettings,
)
from market_data_core._config_features import (
    BAR_COLUMNS,
    LABEL_PREFIX,
    BarCount,
    CountedParameters,
    FeatureParameters,
    FeaturesSettings,
    FeatureWindow,
    IndexParameters,
    feature_parameters,
)
from market_data_core._config_inference import InferenceSettings
from market_data_core._config_models import (
    MicroBatchSettings,
    StoreSettings,
    TelemetrySettings,
)
from market_data_core._config_problems import problems_of, shorten
from market_data_core._config_reference import SettingDoc, describe
from market_data_core._config_types import (
    Interval,
    ProducerSettings,
    SettingsModel,
    Size,
    Symbol,
    Uri,
    check_distinct,
    check_provider_name,
)
from market_data_core._config_yaml import Document, Problem, dotted, parse_yaml, read_text
from market_data_core.errors import ConfigError, UsageError
from market_data_core.redaction import redact, redact_value

DEFAULT_PATH = Path("configs/streaming.yaml")
"""The file that is read, if it exists, when none is named."""

_EITHER = ("window_ms", "windows")
_Path = tuple[str | int, ...]


class Settings(SettingsModel):
    """The whole file."""

    version: Literal[1] = Field(default=1, description="Version of this file's format.")
    bus: BusSettings = Field(default_factory=BusSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    producers: dict[str, SerializeAsAny[ProducerSettings]] = Field(
        default_factory=dict, description="Settings of each producer, by its kind."
    )
    micro_batch: MicroBatchSettings = Field(default_factory=MicroBatchSettings)
    features: FeaturesSettings = Field(default_factory=FeaturesSettings)
    inference: InferenceSettings = Field(default_factory=InferenceSettings)
    archive: ArchiveSettings = Field(default_factory=ArchiveSettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)

    def producer(self, kind: str) -> ProducerSettings:
        """The settings of the producer `kind`, whether enabled or not; its defaults if it has none.

        Raises:
            UsageError: no such producer, or its driver is not installed.
        """
        found = self.producers.get(kind)
        return found if found is not None else _producer_model(kind)(name=kind)

    def enabled_producers(self) -> dict[str, ProducerSettings]:
        """The settings of all producers that run when none is named, by kind."""
        return {kind: found for kind, found in self.producers.items() if found.enabled}

    def redacted(self) -> dict[str, Any]:
        """Everything as plain JSON-ready data, without passwords and other secrets."""
        shown = redact_value("", self.model_dump(mode="json"))
        assert isinstance(shown, dict)  # noqa: S101
        return shown


def load_config(
    path: Path | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """The settings of a file, checked.

    Args:
        path: the file; None for ``configs/streaming.yaml`` if it exists, else all defaults.
        overrides: dotted key to value, set over the file; None as a value leaves the file's. Either
            of ``micro_batch.window_ms`` and ``micro_batch.windows`` replaces the other.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong; the message names the file and
            of every problem the line, the key, and what to write instead.
    """
    if path is None and DEFAULT_PATH.is_file():
        path = DEFAULT_PATH
    document = read_document(path) if path else Document()
    set_over = _apply(document, overrides or {})
    found = list(document.problems)
    producers = document.data.pop("producers", {})
    kinds, producer_problems = _load_producers(producers)
    found += producer_problems
    settings: Settings | None = None
    try:
        settings = Settings.model_validate({**document.data, "producers": kinds})
    except ValidationError as error:
        found += problems_of(error, Settings)
    found += _shared_names(kinds)
    if found or settings is None:
        raise ConfigError(problems_text(path, document, found, set_over))
    return settings


def document() -> Iterator[SettingDoc]:
    """Every setting there is, those of all installed producers included."""
    for section in describe(Settings):
        if not section.key.startswith("producers."):
            yield section
    for kind in registry.backends("provider"):
        yield from describe(_producer_model(kind), f"producers.{kind}.")


def read_document(path: Path) -> Document:
    """A YAML file as plain data, without the keys that have no value.

    Raises:
        ConfigError: it cannot be read.
    """
    document = parse_yaml(read_text(path), os.environ)
    document.data = _without_nulls(document.data)
    return document


def _without_nulls(data: dict[str, Any], *, empty: Any = None) -> dict[str, Any]:
    """`data` without the keys that have no value, so that their defaults hold.

    A producer that is only named is meant to run, so it counts as an empty group.
    """
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            kept[key] = _without_nulls(value, empty={} if key == "producers" else None)
        elif value is not None or empty is not None:
            kept[key] = empty if value is None else value
    return kept


def _apply(document: Document, overrides: Mapping[str, object]) -> set[_Path]:
    """Set `overrides` over the file's data; returns where."""
    applied: set[_Path] = set()
    for key, value in overrides.items():
        if value is None:
            continue
        *parents, last = key.split(".")
        at: dict[str, object] = document.data
        for parent in parents:
            below = at.get(parent)
            if not isinstance(below, dict):
                below = at[parent] = {}
            at = below
        at[last] = value
        applied.add(tuple(key.split(".")))
        if parents == ["micro_batch"] and last in _EITHER:
            other = _EITHER[1 - _EITHER.index(last)]
            if f"micro_batch.{other}" not in overrides:
                at.pop(other, None)
    return applied


def _producer_model(kind: str) -> type[ProducerSettings]:
    model = registry.backend("provider", kind).settings
    if model is None:
        return ProducerSettings
    if not issubclass(model, ProducerSettings):
        msg = f"settings of provider {kind!r} must derive from ProducerSettings"
        raise TypeError(msg)
    return model


def _load_producers(given: object) -> tuple[dict[str, ProducerSettings], list[Problem]]:
    """Each producer's settings by its own model."""
    loaded: dict[str, ProducerSettings] = {}
    problems: list[Problem] = []
    if not isinstance(given, dict):
        text = f"must be a group of settings (kind: settings), got {shorten(given)}"
        return loaded, [Problem(("producers",), text)]
    for kind, values in given.items():
        path = ("producers", str(kind))
        try:
            model = _producer_model(str(kind))
        except UsageError as error:
            problems.append(Problem(path, str(error)))
            continue
        named = values
        if isinstance(values, dict) and not values.get("name"):
            named = {**values, "name": kind}
        try:
            loaded[str(kind)] = model.model_validate(named)
        except ValidationError as error:
            problems += problems_of(error, model, path)
    return loaded, problems


def _shared_names(kinds: Mapping[str, ProducerSettings]) -> Iterator[Problem]:
    """Two producers under one provider name would mix their events."""
    first: dict[str, str] = {}
    for kind, producer in kinds.items():
        if producer.enabled and first.setdefault(producer.name, kind) != kind:
            text = f"{producer.name!r} is also the name of producers.{first[producer.name]}"
            yield Problem(("producers", kind, "name"), f"{text}; give each its own")


def problems_text(
    path: Path | None,
    document: Document,
    problems: list[Problem],
    set_over: Collection[_Path] = (),
) -> str:
    """What is wrong with a file, by line, as the text of an error.

    Args:
        path: the file.
        document: what it says.
        problems: what is wrong.
        set_over: settings that stand on the command line instead.
    """
    lines: list[tuple[int, str]] = []
    for problem in problems:
        place = problem.path
        line = problem.line
        if any(place[: len(key)] == key for key in set_over):
            where = "on the command line: "
        else:
            line = line or document.line_of(place)
            where = f"line {line}: " if line else ""
        key = f"{dotted(place)}: " if place else ""
        lines.append((line or 0, f"{where}{key}{redact(problem.text)}"))
    texts = [text for _, text in sorted(lines, key=lambda item: item[0])]
    name = str(path) if path else "settings"
    if len(texts) == 1:
        return f"{name}: {texts[0]}"
    return "\n  ".join([f"{name}: {len(texts)} problems", *texts])


__all__ = [
    "BAR_COLUMNS",
    "DEFAULT_PATH",
    "LABEL_PREFIX",
    "ArchiveSettings",
    "BarCount",
    "BusSettings",
    "CountedParameters",
    "EmbeddedBusSettings",
    "FeatureParameters",
    "FeatureWindow",
    "FeaturesSettings",
    "IndexParameters",
    "InferenceSettings",
    "Interval",
    "KafkaBusSettings",
    "MicroBatchSettings",
    "ProducerSettings",
    "RedisBusSettings",
    "RetentionSettings",
    "SettingDoc",
    "Settings",
    "SettingsModel",
    "Size",
    "StoreSettings",
    "Symbol",
    "TelemetrySettings",
    "Uri",
    "check_distinct",
    "check_provider_name",
    "document",
    "feature_parameters",
    "load_config",
]
