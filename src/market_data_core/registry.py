"""Backends by name, found without importing them.

A backend is a module of a stage's package with a module-level ``BACKEND``, or an entry point of
the group ``market_data_platform.<stage>`` that leads to a :class:`Backend`. To add one is to
add a file::

    # market_data_pipeline/providers/replica.py
    BACKEND = Backend("replica", "Events of another deployment.", ReplicaSettings, open_replica)
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from market_data_core._suggest import did_you_mean
from market_data_core.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pydantic import BaseModel

DISTRIBUTION = "market-data-platform"
PACKAGES = {
    "provider": "market_data_pipeline.providers",
    "bus": "market_data_pipeline.bus",
    "store": "market_data_store.backends",
    "feature": "market_data_pipeline.features",
    "inference": "market_data_pipeline.inference.adapters",
}
"""The package that holds each stage's backends."""

_OWN_PACKAGES = ("market_data_", "mds_client")
_BACKEND_LINE = re.compile(r"^BACKEND\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to fill a stage.

    Attributes:
        name: what configuration and command line call it; the name of its module.
        summary: one sentence for listings.
        settings: the model of its settings, None if it has none.
        factory: makes it; imports its driver only when called.
        extra: the extra of the distribution that installs its driver; None if it needs none.
    """

    name: str
    summary: str
    settings: type[BaseModel] | None
    factory: Callable[..., Any]
    extra: str | None = None

    def create(self, *args: Any, **kwargs: Any) -> Any:
        """What the factory makes of the arguments.

        Raises:
            UsageError: its driver is not installed; the message names the extra.
        """
        try:
            return self.factory(*args, **kwargs)
        except ModuleNotFoundError as error:
            raise _missing_driver(self.name, self.extra, error) from error


def backends(stage: str) -> list[str]:
    """The names of all backends of `stage`, sorted; imports none of them.

    Raises:
        UsageError: `stage` has no backends.
    """
    return sorted({*_modules(stage), *(point.name for point in _entry_points(stage))})


def backend(stage: str, name: str) -> Backend:
    """The backend `name` of `stage`; a module of ours goes before an entry point of that name.

    Raises:
        UsageError: no such stage or backend, or its driver is not installed.
    """
    try:
        found = _load(stage, name)
    except ModuleNotFoundError as error:
        raise _missing_driver(name, name, error) from error
    if found is None:
        msg = f"unknown {stage} {name!r}; {did_you_mean(name, backends(stage))}"
        raise UsageError(msg)
    if not isinstance(found, Backend):
        msg = f"{stage} {name!r}: BACKEND is a {type(found).__name__}, not a registry.Backend"
        raise TypeError(msg)
    return found


def _load(stage: str, name: str) -> object:
    """What stands under `name`; imports exactly one module."""
    if name in _modules(stage):
        return importlib.import_module(f"{PACKAGES[stage]}.{name}").BACKEND
    points = [point for point in _entry_points(stage) if point.name == name]
    if len({point.value for point in points}) > 1:
        msg = (
            f"{stage} {name!r} is provided twice: {', '.join(p.value for p in points)}; "
            "uninstall one of them"
        )
        raise UsageError(msg)
    return points[0].load() if points else None


def _modules(stage: str) -> Iterator[str]:
    """Names of the modules of the stage's package that define BACKEND, told from their source."""
    package = importlib.util.find_spec(_package(stage))
    if package is None:
        return
    for module in pkgutil.iter_modules(package.submodule_search_locations):
        if module.name.startswith("_"):
            continue
        spec = module.module_finder.find_spec(module.name, None)
        if spec is not None and _defines_backend(spec):
            yield module.name


def _defines_backend(spec: ModuleSpec) -> bool:
    get_source = getattr(spec.loader, "get_source", None)
    source = get_source(spec.name) if get_source else None
    # Without sources (compiled distributions) every module counts; loading it will tell.
    return source is None or bool(_BACKEND_LINE.search(source))


def _entry_points(stage: str) -> list[EntryPoint]:
    from importlib.metadata import entry_points  # 20 ms that only a listing or a miss has to pay

    return list(entry_points(group=f"market_data_platform.{stage}"))


def _package(stage: str) -> str:
    if stage not in PACKAGES:
        msg = f"unknown stage {stage!r}; {did_you_mean(stage, PACKAGES)}"
        raise UsageError(msg)
    return PACKAGES[stage]


def _missing_driver(name: str, extra: str | None, error: ModuleNotFoundError) -> Exception:
    """The error for the user, or `error` itself where it is a fault of this project."""
    missing = error.name or ""
    if extra is None or not missing or missing.startswith(_OWN_PACKAGES):
        return error
    return UsageError(
        f"{name!r} needs the module {missing!r}, which is not installed; "
        f"run: pip install '{DISTRIBUTION}[{extra}]'"
    )
