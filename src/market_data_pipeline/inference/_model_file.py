"""Files of models: read once, checked before anything in them is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from market_data_core._config_inference import ModelAdapterSettings
from market_data_core.errors import ConfigError

_ELSEWHERE = {".onnx": "onnx", ".skops": "sklearn", ".joblib": "sklearn", ".pkl": "sklearn"}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's file.

    Attributes:
        path: where it stood.
        format: what its ending says it is.
        data: all of it; nothing is read from the path again.
        sha256: of `data`, in hex.
    """

    path: Path
    format: str
    data: bytes
    sha256: str


def read_model(settings: ModelAdapterSettings, kind: str, formats: Mapping[str, str]) -> ModelFile:
    """The file that `settings` name.

    Args:
        settings: of the adapter.
        kind: the adapter's name.
        formats: the endings it knows, with their formats.

    Raises:
        ConfigError: no file is named, it cannot be read, has an ending that is not known, or is
            not the one whose checksum is set.
    """
    where = f"inference.adapters.{kind}"
    if not settings.model_path:
        msg = f"{where}.model_path: is empty; name the model's file"
        raise ConfigError(msg)
    path = Path(settings.model_path)
    ending = path.suffix.lower()
    if ending not in formats:
        other = _ELSEWHERE.get(ending)
        hint = f"; it belongs under inference.adapters.{other}" if other else ""
        msg = f"{where}.model_path: {path} does not end in {', '.join(sorted(formats))}{hint}"
        raise ConfigError(msg)
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"{where}.model_path: {path}: cannot be read: {error.strerror}"
        raise ConfigError(msg) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if settings.sha256 and sha256 != settings.sha256.lower():
        msg = (
            f"{where}.sha256: {path} has the checksum {sha256}, not {settings.sha256.lower()}; it "
            "is another file than the one that was pinned, and was not loaded"
        )
        raise ConfigError(msg)
    return ModelFile(path, formats[ending], data, sha256)


def features_of(
    settings: ModelAdapterSettings, kind: str, named: tuple[str, ...], width: int | None
) -> tuple[str, ...]:
    """The columns that a model is given, in its order.

    Args:
        settings: of the adapter.
        kind: the adapter's name.
        named: those that the model was trained with, as far as it names them.
        width: how many it takes; None if it does not say.

    Raises:
        ConfigError: model and settings do not agree, or neither says it.
    """
    where = f"inference.adapters.{kind}.features"
    given = settings.features
    if given and named and given != named:
        msg = (
            f"{where}: are [{', '.join(given)}], but {settings.model_path} was trained with "
            f"[{', '.join(named)}]; names and order must be the model's"
        )
        raise ConfigError(msg)
    features = given or named
    if not features:
        takes = f"; it takes {width}" if width is not None else ""
        msg = f"{where}: is empty, and {settings.model_path} does not name its columns{takes}"
        raise ConfigError(msg)
    if width is not None and len(features) != width:
        msg = (
            f"{where}: are {len(features)} ([{', '.join(features)}]), but {settings.model_path} "
            f"takes {width}"
        )
        raise ConfigError(msg)
    return features
