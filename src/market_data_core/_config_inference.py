"""The settings of rules and models: section ``inference`` of ``configs/streaming.yaml``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from market_data_core import registry
from market_data_core._config_problems import problems_of
from market_data_core._config_types import (
    Interval,
    SettingsModel,
    check_distinct,
    check_provider_name,
    check_signal_name,
    check_symbol,
)
from market_data_core._config_yaml import Problem
from market_data_core._suggest import did_you_mean
from market_data_core.events import OFFICIAL_SUFFIX


def _one_star(text: str) -> str:
    if "*" in text[:-1]:
        msg = f"{text!r}: a * may only stand at the end, for any further characters"
        raise ValueError(msg)
    return text


def _provider(text: str) -> str:
    stem = _one_star(text.removesuffix(OFFICIAL_SUFFIX))
    if not stem:
        msg = f"{text!r} is not a provider's name; write one, or *{OFFICIAL_SUFFIX}"
        raise ValueError(msg)
    check_provider_name(stem.removesuffix("*"))
    return text


SymbolPattern = Annotated[str, AfterValidator(check_symbol), AfterValidator(_one_star)]
ProviderPattern = Annotated[str, AfterValidator(_provider)]


class AdapterSettings(SettingsModel):
    """What the settings of every adapter begin with."""

    enabled: bool = Field(default=False, description="Whether it is evaluated.")


class RulesAdapterSettings(AdapterSettings):
    """Rules over feature columns."""

    enabled: bool = Field(default=True, description="Whether rules are evaluated.")
    file: Path = Field(
        default=Path("configs/rules.yaml"),
        description="The rules. Where the default file does not exist, those built in.",
    )


class ModelAdapterSettings(AdapterSettings):
    """What the settings of all models have in common."""

    enabled: bool = Field(default=False, description="Whether the model is evaluated.")
    model_path: str = Field(default="", description="The model's file.")
    sha256: str = Field(
        default="",
        pattern=r"^([0-9a-fA-F]{64})?$",
        description="Checksum the file must have, in hex.",
    )
    name: str = Field(
        default="",
        description="Name of the signals. Empty: the file's name without its ending.",
    )
    features: Annotated[tuple[str, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        max_length=1024,
        description="Columns that the model is given, in its order. Empty: those it was trained "
        "with, if its file names them.",
    )
    interval: Interval | None = Field(
        default=None,
        description="Bars it is given, such as `2s`. Not set: those of the smallest window.",
    )
    output: Literal["auto", "predict", "proba"] = Field(
        default="auto",
        description="What it is asked for: `proba` gives the likeliest class with its probability "
        "as score, `predict` a class or number alone. `auto`: `proba` where the model has it.",
    )
    when: str = Field(
        default="",
        description="Condition for a signal, over columns, `prediction` and `score`, such as "
        "`prediction > 0 and score > 0.6`. Empty: always.",
    )
    values: dict[str, float] = Field(
        default_factory=dict,
        description="Number of each class, by label: `{up: 1, down: -1}`. Classes that are numbers "
        "need none.",
    )
    meta: Annotated[tuple[str, ...], AfterValidator(check_distinct)] | None = Field(
        default=None,
        description="Columns that the signals tell in their metadata. Not set: the model's.",
    )
    nan: Literal["skip", "pass"] = Field(
        default="skip",
        description="Rows with an unknown column: `skip` gives no signal, `pass` shows them to the "
        "model, which must be made for them.",
    )
    symbols: Annotated[tuple[SymbolPattern, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        description="Symbols it is evaluated for; a `*` at the end stands for anything. Empty: "
        "all.",
    )
    providers: Annotated[tuple[ProviderPattern, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        description="Likewise, providers. Empty: all, but not vendors' own bars, such as those of "
        "`ibkr:official`.",
    )
    cooldown: Interval | None = Field(
        default=None,
        description="Event time for which a symbol's signal holds further ones back: `60s`.",
    )
    fallback: str = Field(
        default="",
        description="File of the rules that are evaluated while the model does not answer. Empty: "
        "none.",
    )

    @field_validator("name")
    @classmethod
    def _named(cls, name: str, given: ValidationInfo) -> str:
        """The name of the signals: that of the file where none is given."""
        path: str = given.data.get("model_path", "")
        if name or not path:
            return name and check_signal_name(name)
        stem = PurePosixPath(path.replace("\\", "/")).stem
        if not given.data.get("enabled"):
            return stem  # nobody has chosen it; it is checked when somebody does
        try:
            return check_signal_name(stem)
        except ValueError as error:
            msg = f"is not given, and that of the file cannot be the signals': {error}; give one"
            raise ValueError(msg) from error


class SklearnAdapterSettings(ModelAdapterSettings):
    """A scikit-learn model."""

    trusted: Annotated[tuple[str, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        description="Types in a skops file that may be loaded beside those known to be safe; they "
        "may run code, so that `sha256` has to be set.",
    )


class OnnxAdapterSettings(ModelAdapterSettings):
    """A model in the ONNX format."""


class AdaptersSettings(SettingsModel):
    """Who turns features into signals; installed adapters of others stand beside ours."""

    model_config = ConfigDict(extra="allow")

    rules: RulesAdapterSettings = Field(default_factory=RulesAdapterSettings)
    sklearn: SklearnAdapterSettings = Field(default_factory=SklearnAdapterSettings)
    onnx: OnnxAdapterSettings = Field(default_factory=OnnxAdapterSettings)

    @model_validator(mode="before")
    @classmethod
    def _others(cls, given: Any) -> Any:
        """Validate the settings of every other adapter with its own model."""
        if not isinstance(given, dict):
            return given
        others = {name: given[name] for name in given if name not in cls.model_fields}
        return {**given, **{name: _other(str(name), found) for name, found in others.items()}}

    def by_name(self) -> dict[str, AdapterSettings]:
        """The settings of all adapters, by name."""
        ours = {name: getattr(self, name) for name in type(self).model_fields}
        return {**ours, **(self.__pydantic_extra__ or {})}


def _other(name: str, given: Any) -> AdapterSettings:
    """The settings of an adapter that is not ours.

    Raises:
        ValidationError: there is no such adapter, or they are wrong.
        UsageError: what it needs is not installed.
    """
    if isinstance(given, AdapterSettings):
        return given
    known = registry.backends("inference")
    if name not in known:
        raise _refused(given, [Problem((name,), f"unknown key; {did_you_mean(name, known)}")])
    model = registry.backend("inference", name).settings or AdapterSettings
    if not issubclass(model, AdapterSettings):
        msg = f"settings of adapter {name!r} must derive from AdapterSettings"
        raise TypeError(msg)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _refused(given, problems_of(error, model, (name,))) from error


def _refused(given: object, problems: Iterable[Problem]) -> ValidationError:
    """What pydantic would raise for these problems."""
    details = [
        InitErrorDetails(
            type="value_error",
            loc=problem.path,
            input=given,
            ctx={"error": ValueError(problem.text)},
        )
        for problem in problems
    ]
    return ValidationError.from_exception_data(AdaptersSettings.__name__, details)


class BreakerSettings(SettingsModel):
    """When a model that fails is left alone."""

    failures: int = Field(
        default=5, ge=1, le=1000, description="Failures in a row after which it is not asked."
    )
    open_s: float = Field(
        default=30, gt=0, le=86_400, description="Seconds after which one call tries again."
    )


class InferenceSettings(SettingsModel):
    """From features to signals."""

    adapters: AdaptersSettings = Field(default_factory=AdaptersSettings)
    deadline_ms: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description="Longest that one call of an adapter may take, in ms.",
    )
    workers: int = Field(
        default=2, ge=1, le=64, description="Threads of each adapter; a call that hangs holds one."
    )
    breaker: BreakerSettings = Field(default_factory=BreakerSettings)
