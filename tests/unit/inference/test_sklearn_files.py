"""Which files the scikit-learn adapter loads, and which it refuses."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from tests.unit.inference.sklearn_models import (
    NAMES,
    Saved,
    data,
    fitted,
    load,
    only,
    saver,
    sha256_of,
    table,
)

from market_data_core._config_inference import SklearnAdapterSettings
from market_data_core.contracts.feature import Floats
from market_data_core.errors import ConfigError


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return saver(tmp_path)


def test_names_and_order_must_be_the_models(saved: Saved) -> None:
    matrix, labels = data()
    model = RandomForestClassifier(5, random_state=1).fit(
        pandas.DataFrame(matrix, columns=NAMES), labels
    )
    assert tuple(model.feature_names_in_) == NAMES

    swapped = ("vol", "ret", "rsi", "close")
    message = r"features: are \[vol, ret, rsi, close\], but .* with \[ret, vol, rsi, close\]"
    with pytest.raises(ConfigError, match=message):
        load(saved(model, features=swapped))
    with pytest.raises(ConfigError, match=r"features: unknown column 'rsi'"):
        load(saved(model, features=()), known=("ret", "vol", "close"))
    with pytest.raises(ConfigError, match=r"are 2 \(\[ret, vol\]\), but .* takes 4"):
        load(saved(fitted(LogisticRegression()), features=("ret", "vol")))
    with pytest.raises(
        ConfigError, match=r"is empty, and .* does not name its columns; it takes 4"
    ):
        load(saved(fitted(LogisticRegression()), features=()))


def test_another_file_than_the_pinned_one_is_refused(saved: Saved) -> None:
    settings = saved(fitted(LogisticRegression()))
    right = sha256_of(settings)
    with pytest.raises(ConfigError, match=rf"sha256: .* the checksum {right}, not {'0' * 64}"):
        load(settings.model_copy(update={"sha256": "0" * 64}))
    assert load(settings.model_copy(update={"sha256": right.upper()})).names == ("trend",)


class Malicious:
    """Runs code as soon as it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self._marker),)


@pytest.mark.parametrize("pin", ["", "0" * 64])
def test_a_pickle_that_is_not_pinned_runs_no_code(tmp_path: Path, pin: str) -> None:
    path, marker = tmp_path / "model.pkl", tmp_path / "was-here"
    joblib.dump(Malicious(marker), path)
    settings = SklearnAdapterSettings(model_path=str(path), sha256=pin, features=NAMES)
    with pytest.raises(ConfigError, match="sha256"):
        load(settings)
    assert not marker.exists()

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    pinned = SklearnAdapterSettings(model_path=str(path), sha256=sha256, features=NAMES)
    with pytest.raises(ConfigError, match="NoneType, which predicts nothing"):
        load(pinned)  # the pin is what says that it may
    assert marker.exists()


class Doubler:
    """A type that no one knows."""

    def __init__(self) -> None:
        self.n_features_in_ = 4

    def predict(self, matrix: Floats) -> Floats:
        return matrix[:, 0] * 2


def test_a_skops_file_with_an_unknown_type_needs_it_named(saved: Saved) -> None:
    kind = f"{Doubler.__module__}.Doubler"
    settings = saved(Doubler())
    pin = sha256_of(settings)
    message = rf'trusted: .* not known to be safe: {kind}; .* name them .* sha256: "{pin}"'
    with pytest.raises(ConfigError, match=message):
        load(settings)


def test_a_skops_file_with_a_trusted_type_must_be_pinned(saved: Saved) -> None:
    kind = f"{Doubler.__module__}.Doubler"
    settings = saved(Doubler(), trusted=[kind])
    pin = sha256_of(settings)
    message = rf'sha256: is empty, and .*trusted names {kind}: .* leave .* pin it: sha256: "{pin}"'
    with pytest.raises(ConfigError, match=message):
        load(settings)

    matrix, _ = data(20)
    adapter = load(settings.model_copy(update={"sha256": pin}))
    np.testing.assert_array_equal(only(adapter.evaluate(table(matrix))).value, matrix[:, 0] * 2)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, saved: Saved) -> None:
    settings = saved(fitted(LogisticRegression()))
    Path(settings.model_path).write_bytes(b"not a zip")
    with pytest.raises(ConfigError, match=r"trend\.skops cannot be loaded as skops: BadZipFile"):
        load(settings)
    with pytest.raises(ConfigError, match=r"gone\.skops: cannot be read: No such file"):
        load(SklearnAdapterSettings(model_path=str(tmp_path / "gone.skops")))
    with pytest.raises(ConfigError, match="model_path: is empty"):
        load(SklearnAdapterSettings())
    with pytest.raises(ConfigError, match=r"belongs under inference\.adapters\.onnx"):
        load(SklearnAdapterSettings(model_path="trend.onnx"))
    with pytest.raises(ConfigError, match="StandardScaler, which predicts nothing"):
        load(saved(StandardScaler().fit(data()[0])))


@pytest.mark.parametrize("width", [3, 5])
def test_a_tree_that_reads_beyond_its_row_is_refused(width: int, saved: Saved) -> None:
    matrix, labels = data()
    model = RandomForestClassifier(3, random_state=1).fit(matrix, labels)
    wider = RandomForestClassifier(3, random_state=1).fit(np.ones((10, width)), np.arange(10) % 2)
    model.estimators_[1] = wider.estimators_[0]
    with pytest.raises(ConfigError, match="damaged: it holds trees for another number of features"):
        load(saved(model))


@pytest.mark.parametrize("field", ["left", "feature_idx"])
def test_a_tree_that_leads_out_of_itself_is_refused(field: str, saved: Saved) -> None:
    model = fitted(HistGradientBoostingClassifier(max_iter=3))
    nodes = model._predictors[1][0].nodes
    nodes[field][0] = 0 if field == "left" else 4  # round in a circle, or beyond the row
    with pytest.raises(ConfigError, match="damaged: it holds a tree that leads out of itself"):
        load(saved(model))


def test_ensembles_of_models_with_columns_of_their_own_are_loaded(saved: Saved) -> None:
    few = make_pipeline(PCA(2), DecisionTreeClassifier(random_state=1))
    bag = BaggingClassifier(RandomForestClassifier(3), 3, max_features=2, random_state=1)
    model = VotingClassifier([("few", few), ("bag", bag)], voting="soft")
    found = only(load(saved(fitted(model))).evaluate(table(data()[0])))
    assert found.value.tolist() == model.predict(data()[0]).tolist()


def test_the_version_tells_whatever_decides_about_the_signals(saved: Saved) -> None:
    settings = saved(fitted(LogisticRegression()))
    changes: list[dict[str, Any]] = [{}, {"when": "score > 0.6"}, {"symbols": ("SPY",)}]
    versions = [load(settings.model_copy(update=change)).version for change in changes]
    moved = Path(settings.model_path).with_name("moved") / "trend.skops"
    moved.parent.mkdir()
    Path(settings.model_path).rename(moved)
    again = settings.model_copy(update={"model_path": str(moved), "enabled": True})
    assert load(again).version == versions[0]

    versions.append(load(saved(fitted(LogisticRegression(C=0.1)))).version)
    assert len(set(versions)) == 4
