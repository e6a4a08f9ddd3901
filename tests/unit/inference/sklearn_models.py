"""Tables, models of scikit-learn fitted to them, and the files of these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import skops.io
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from market_data_core import registry
from market_data_core._config_inference import SklearnAdapterSettings
from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Firing
from market_data_pipeline.inference._model_adapter import ModelAdapter

NAMES = ("ret", "vol", "rsi", "close")
KNOWN = (*NAMES, "volume")


class Table:
    """Rows made of columns."""

    def __init__(self, columns: Mapping[str, Floats], *, provider: str = "feed") -> None:
        self.provider, self.interval = provider, "2s"
        self.symbols: Sequence[str] = ("SPY", "QQQ", "AAPL")
        self._columns = columns
        count = len(next(iter(columns.values())))
        self.codes = np.arange(count, dtype=np.intp) % 3
        self.ts = np.arange(count, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ts)

    def value(self, column: str, back: int = 0) -> Floats:
        values = self._columns[column]
        return np.concatenate([np.full(back, np.nan), values])[: len(values)]


def table(matrix: Floats, **more: str) -> Table:
    columns = dict(zip(NAMES, matrix.T, strict=True))
    return Table({**columns, "volume": np.arange(len(matrix), dtype=np.float64)}, **more)


def data(rows: int = 400, seed: int = 7) -> tuple[Floats, NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(rows, len(NAMES))) * [0.01, 0.2, 20, 300]
    noisy = matrix[:, 0] * 100 + draw.normal(size=rows)
    return matrix, np.where(noisy > 0, 1, -1)


def fitted(model: Any) -> Any:
    matrix, labels = data()
    with threadpool_limits(1):  # threads that wait for one another are slow on a busy machine
        return model.fit(matrix, labels)


Saved = Callable[..., SklearnAdapterSettings]


def saver(folder: Path) -> Saved:
    """Saves a model in `folder`, and gives the settings that load it."""

    def save(model: Any, ending: str = "skops", **settings: Any) -> SklearnAdapterSettings:
        path = folder / f"trend.{ending}"
        if ending == "skops":
            skops.io.dump(model, path)
        else:
            joblib.dump(model, path)
            settings.setdefault("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
        return SklearnAdapterSettings(model_path=str(path), **{"features": NAMES, **settings})

    return save


def load(settings: SklearnAdapterSettings, known: Sequence[str] = KNOWN) -> ModelAdapter:
    found = registry.backend("inference", "sklearn").create(settings, known, "2s", ("2s", "1m"))
    assert isinstance(found, ModelAdapter)
    return found


def only(firings: Sequence[Firing]) -> Firing:
    assert len(firings) == 1
    return firings[0]


def sha256_of(settings: SklearnAdapterSettings) -> str:
    return hashlib.sha256(Path(settings.model_path).read_bytes()).hexdigest()
