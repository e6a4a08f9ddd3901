"""The settings of features."""

from __future__ import annotations

import keyword
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from market_data_core._config_problems import problems_of
from market_data_core._config_types import (
    Interval,
    SettingsModel,
    check_distinct,
    check_interval,
    check_symbol,
)
from market_data_core._config_yaml import dotted
from market_data_core.errors import ConfigError, UsageError
from market_data_core.intervals import parse_interval

BAR_COLUMNS = ("open", "high", "low", "close", "volume", "bar_vwap", "trade_count")
"""What rules and models see of the bar itself; ``vwap`` alone is the feature of that name."""

LABEL_PREFIX = "label_"
"""What names begin with that look ahead, for training; no feature's does."""

CONDITION_FUNCTIONS = (
    *("prev", "cross_up", "cross_down", "between"),
    *("abs", "sign", "min", "max", "clip"),
)
"""What conditions of rules and models can call."""

ANSWER_COLUMNS = ("prediction", "score")
"""What a model's condition sees of its answer."""

MATRIX_KEY = ("provider", "symbol", "interval", "ts", "end")
"""The columns of the training matrix that tell which bar a row is."""

_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = frozenset(word.lower() for word in keyword.kwlist)
_TAKEN = {
    **dict.fromkeys(BAR_COLUMNS, "is a column of the bars"),
    **dict.fromkeys(MATRIX_KEY, "is a column of the training matrix"),
    **dict.fromkeys(CONDITION_FUNCTIONS, "is a function of conditions"),
    **dict.fromkeys(ANSWER_COLUMNS, "is a model's answer in conditions"),
}

BARS_MAX = 10_000
_REACH = ("horizon", "bars")

BarCount = Annotated[int, Field(ge=1, le=BARS_MAX)]
IndexSymbol = Annotated[str, AfterValidator(lambda symbol: symbol and check_symbol(symbol))]
"""A symbol in upper case, or none."""


class FeatureParameters(SettingsModel):
    """What every family's parameters begin with: how far back it looks, in one of two ways.

    A subclass sets the default of one of them; giving the other one takes its place.
    """

    horizon: Interval | None = Field(
        default=None, description="Bars that begin less than this before the newest one begins."
    )
    bars: BarCount | None = Field(default=None, description="The newest so many bars.")

    @model_validator(mode="before")
    @classmethod
    def _one_reach(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {key: data[key] for key in _REACH if data.get(key) is not None}
        if len(given) == 2:
            msg = "horizon and bars are both given; keep one of them"
            raise ValueError(msg)
        return {**data, **dict.fromkeys(_REACH), **given} if given else data


class CountedParameters(FeatureParameters):
    """Parameters of a family that is defined over a number of bars only."""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.horizon is not None:
            msg = "is defined over a number of bars: give bars instead of horizon"
            raise ValueError(msg)
        return self


class IndexParameters(FeatureParameters):
    """Parameters of a family that compares a symbol with another one of the same feed."""

    index: IndexSymbol = Field(
        default="", description="The symbol to compare with. Empty: that of `features.index`."
    )


def feature_parameters(
    model: type[FeatureParameters], given: dict[str, Any], where: str
) -> FeatureParameters:
    """Parameters of a family, checked.

    Args:
        model: the family's.
        given: what is set.
        where: what the message begins with, such as the key of the window.

    Raises:
        ConfigError: a value is wrong; the message names all that are, and the valid keys.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = [
            f"{dotted(problem.path)}: {problem.text}" if problem.path else problem.text
            for problem in problems_of(error, model)
        ]
    msg = f"{where}: {'; '.join(found)}"
    raise ConfigError(msg)


def _check_column(name: str) -> str:
    """`name` if a feature can bear it: conditions, which Python's parser reads, have to find it."""
    if not _COLUMN.fullmatch(name):
        msg = f"{name!r} is not valid: letters, digits and '_', beginning with a letter or '_'"
        raise ValueError(msg)
    why = _TAKEN.get(name, "")
    if name.lower() in _WORDS:
        why = "is a word of the language of conditions"
    elif name.startswith(LABEL_PREFIX):
        why = "begins as labels do, which look ahead"
    if why:
        msg = f"{name!r} {why}; give the feature another name"
        raise ValueError(msg)
    return name


class FeatureWindow(SettingsModel):
    """One feature over one horizon, or over one number of bars."""

    name: Annotated[str, AfterValidator(_check_column)] = Field(
        description="Name of the column that rules can use."
    )
    horizon: Interval | None = Field(
        default=None, description="How far back it looks, such as `60s`; or give `bars`."
    )
    bars: BarCount | None = Field(
        default=None, description="Over how many bars it is, such as `20`; or give `horizon`."
    )
    feature: str = Field(
        default="",
        description="Family, such as `vwap`. Empty: the name without its horizon or bars.",
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="The family's own parameters, such as `{width: 2.5}`; see the reference of "
        "features.",
        json_schema_extra={"shown_default": "none"},
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.horizon is None) == (self.bars is None):
            msg = f"{self.name}: exactly one of horizon and bars has to be given"
            raise ValueError(msg)
        misplaced = [key for key in _REACH if key in self.parameters]
        if misplaced:
            msg = f"{misplaced[0]} belongs beside name, not into parameters"
            raise ValueError(msg)
        if not self.feature and not self._family_and_reach():
            reach = self.horizon or self.bars
            msg = (
                f"name {self.name!r} is not a family and the horizon or bars, such as "
                f"'vwap_{reach}'; rename it or give feature:"
            )
            raise ValueError(msg)
        return self

    def _family_and_reach(self) -> bool:
        """Whether the name is made of a family and how far back it looks."""
        family, _, suffix = self.name.rpartition("_")
        if self.horizon is None:
            return bool(family) and suffix == str(self.bars)
        try:
            return bool(family) and parse_interval(suffix) == parse_interval(self.horizon)
        except UsageError:
            return False

    @property
    def family(self) -> str:
        """The feature family that computes it."""
        return self.feature or self.name.rpartition("_")[0]


def _check_gap(text: str) -> str:
    return text and check_interval(text)


class FeaturesSettings(SettingsModel):
    """Rolling features over bars."""

    windows: tuple[FeatureWindow, ...] = Field(
        default=(
            FeatureWindow(name="vwap_1m", horizon="60s"),
            FeatureWindow(name="ret_30s", horizon="30s"),
            FeatureWindow(name="vol_5m", horizon="300s"),
        ),
        max_length=256,
        description="Features with horizons or bars of their own, beside the bare families.",
        json_schema_extra={"shown_default": "vwap_1m, ret_30s, vol_5m"},
    )
    session_gap: Annotated[str, AfterValidator(_check_gap)] = Field(
        default="",
        description="A hole at least this long from the end of a symbol's bar to its next one "
        "begins a new session, beyond which no feature looks, such as `30m`. Empty: never.",
    )

    index: IndexSymbol = Field(
        default="",
        description="The symbol that `beta`, `correlation` and `excess` compare others with, such "
        "as `SPY`. Empty: each of them has to name one.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct([window.name for window in self.windows])
        return self

    @property
    def session_gap_ns(self) -> int:
        """Length in nanoseconds of a hole that begins a new session; 0: none does."""
        return parse_interval(self.session_gap) if self.session_gap else 0
