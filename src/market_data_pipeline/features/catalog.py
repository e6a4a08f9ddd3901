"""The feature columns by name: those of the configuration, and every family by its own name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, get_args

from market_data_core import registry
from market_data_core._suggest import did_you_mean
from market_data_core.config import (
    FeatureParameters,
    FeaturesSettings,
    IndexParameters,
    feature_parameters,
)
from market_data_core.contracts.feature import Feature
from market_data_core.errors import ConfigError, UsageError
from market_data_core.intervals import format_interval
from market_data_core.registry import Backend

DEPTH_MAX = 100_000
"""Most bars that a feature may look at, warm-up included."""


class _Bare(NamedTuple):
    """A column that is there without being configured.

    Attributes:
        family: whose it is.
        line: which of the family's lines; empty for the default one.
    """

    family: str
    line: str = ""


def catalog(settings: FeaturesSettings, interval_ns: int) -> Mapping[str, Feature]:
    """Every feature column that bars of one length can have, by name.

    These are the configured windows, every family by its own name with its defaults, and each
    further line of a family as ``<family>_<line>``, such as ``macd_signal``. A feature is made when
    it is first asked for; then ConfigError is raised where bars of this length are too long for it.

    Args:
        settings: the configured windows.
        interval_ns: the bars' length.

    Raises:
        ConfigError: a window names no family, bears a bare column's name, or has parameters that
            the family does not take; the message names the window and what is valid.
    """
    return _Catalog(settings, interval_ns)


class _Catalog(Mapping[str, Feature]):
    def __init__(self, settings: FeaturesSettings, interval_ns: int) -> None:
        self._interval_ns, self._index = interval_ns, settings.index
        self._families = registry.backends("feature")
        self._made: dict[str, Feature] = {}
        self._configured: dict[str, tuple[Backend, FeatureParameters, str]] = {}
        for number, window in enumerate(settings.windows):
            where = f"features.windows[{number}] ({window.name})"
            if self._bare(window.name):
                msg = (
                    f"{where}: is the column of the family with its defaults; "
                    "give the window another name"
                )
                raise ConfigError(msg)
            bare = self._bare(window.family)
            if bare is None:
                msg = (
                    f"{where}: unknown feature family {window.family!r}; "
                    f"{did_you_mean(window.family, self._families)}"
                )
                raise ConfigError(msg)
            reach = {"horizon": window.horizon} if window.horizon else {"bars": window.bars}
            self._configured[window.name] = self._prepare(
                bare, {**window.parameters, **reach}, where
            )

    def __getitem__(self, name: str) -> Feature:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._configured
        for family in self._families:
            yield family
            yield from (f"{family}_{line}" for line in _lines(_family(family))[1:])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._configured or self._bare(name) is not None)

    def _bare(self, name: str) -> _Bare | None:
        """What a bare name stands for; imports a family only where the name begins with it."""
        if name in self._families:
            return _Bare(name)
        for family in self._families:
            line = name.removeprefix(f"{family}_")
            if line != name and line in _lines(_family(family))[1:]:
                return _Bare(family, line)
        return None

    def _prepare(
        self, bare: _Bare, given: dict[str, Any], where: str
    ) -> tuple[Backend, FeatureParameters, str]:
        backend = _family(bare.family)
        if bare.line:
            if "line" in given:
                msg = f"{where}: parameters.line is given, and so is feature {bare.line!r}"
                raise ConfigError(msg)
            given = {**given, "line": bare.line}
        if issubclass(_model(backend), IndexParameters) and not given.get("index"):
            if not self._index:
                msg = (
                    f"{where}: compares with another symbol; name it as parameters: "
                    "{index: SPY}, or as features.index for all"
                )
                raise ConfigError(msg)
            given = {**given, "index": self._index}
        return backend, feature_parameters(_model(backend), given, where), where

    def _make(self, name: str) -> Feature:
        if name in self._configured:
            backend, parameters, where = self._configured[name]
        else:
            bare = self._bare(name)
            if bare is None:
                raise KeyError(name)
            backend, parameters, where = self._prepare(bare, {}, f"feature {name}")
        try:
            feature: Feature = backend.create(parameters, self._interval_ns)
        except UsageError as error:
            msg = f"{where}: {error}"
            raise ConfigError(msg) from error
        depth = feature.span.depth(self._interval_ns)
        if depth > DEPTH_MAX:
            msg = (
                f"{where}: looks at {depth} bars of {format_interval(self._interval_ns)}, the most "
                f"is {DEPTH_MAX}; use fewer bars, or longer ones"
            )
            raise ConfigError(msg)
        return feature


@cache
def _family(name: str) -> Backend:
    return registry.backend("feature", name)


def _model(backend: Backend) -> type[FeatureParameters]:
    model = backend.settings
    if model is None or not issubclass(model, FeatureParameters):
        msg = f"settings of feature {backend.name!r} must derive from FeatureParameters"
        raise TypeError(msg)
    return model


def _lines(backend: Backend) -> tuple[str, ...]:
    """The lines of a family of several, its default one first."""
    line = _model(backend).model_fields.get("line")
    if line is None:
        return ()
    names = get_args(line.annotation)
    return (line.default, *(name for name in names if name != line.default))
