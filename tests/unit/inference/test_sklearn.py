"""The scikit-learn adapter, with real models from real files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import skops.io
from prometheus_client import REGISTRY
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.unit.inference.sklearn_models import (
    KNOWN,
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
from market_data_core.errors import ConfigError, ModelError
from market_data_pipeline.inference._model_adapter import ModelAdapter
from market_data_pipeline.inference._model_objects import parts
from market_data_pipeline.inference.adapters.sklearn import SklearnModel


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return saver(tmp_path)


CLASSIFIERS = [
    pytest.param(RandomForestClassifier(100, n_jobs=-1, random_state=1), id="forest"),
    pytest.param(HistGradientBoostingClassifier(max_iter=20, random_state=1), id="hist"),
    pytest.param(GradientBoostingClassifier(n_estimators=10, random_state=1), id="boosting"),
    pytest.param(LogisticRegression(), id="logistic"),
    pytest.param(make_pipeline(StandardScaler(), LogisticRegression()), id="pipeline"),
    pytest.param(
        make_pipeline(
            StandardScaler(),
            PCA(3),
            MLPClassifier((8,), solver="lbfgs", max_iter=5000, random_state=1),
        ),
        id="network",
    ),
]


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_gives_the_likeliest_class_with_its_probability(model: Any, saved: Saved) -> None:
    model = fitted(model)
    settings = saved(model)
    adapter = load(settings)
    matrix, _ = data(300, seed=1)

    found = only(adapter.evaluate(table(matrix)))

    expected = model.predict_proba(matrix)
    assert found.name == "trend"
    assert found.rows.tolist() == list(range(300))
    assert found.value.tolist() == model.predict(matrix).tolist()
    assert found.score is not None
    np.testing.assert_allclose(found.score, expected.max(axis=1), rtol=1e-12)
    assert found.notes["model_sha256"] == sha256_of(settings)
    assert found.notes["library"].startswith("scikit-learn ")
    np.testing.assert_array_equal(found.meta["rsi"], matrix[:, 2])


@pytest.mark.parametrize(
    "model",
    [
        *CLASSIFIERS,
        pytest.param(KNeighborsClassifier(5), id="neighbours"),
        pytest.param(Ridge(), id="ridge"),
        pytest.param(RandomForestRegressor(30, random_state=1), id="regressor"),
    ],
)
def test_a_row_is_answered_alike_whatever_rows_are_with_it(model: Any, saved: Saved) -> None:
    adapter = load(saved(fitted(model), "joblib"))
    matrix, _ = data(700, seed=2)
    whole = only(adapter.evaluate(table(matrix)))
    draw = np.random.default_rng(3)

    for size in (1, 2, 3, 7, 255, 256, 257, 700):
        chosen = draw.permutation(700)[:size]
        found = only(adapter.evaluate(table(matrix[chosen])))
        assert found.value.tobytes() == whole.value[chosen].tobytes()
        if whole.score is not None:
            assert found.score is not None
            assert found.score.tobytes() == whole.score[chosen].tobytes()


def test_a_regressor_gives_its_prediction_and_no_score(saved: Saved) -> None:
    matrix, _ = data()
    model = Ridge().fit(matrix, matrix[:, 0] * 2)
    found = only(load(saved(model)).evaluate(table(matrix)))
    assert found.score is None
    np.testing.assert_allclose(found.value, model.predict(matrix), rtol=1e-12)


def test_labels_become_the_numbers_set_for_them(saved: Saved) -> None:
    matrix, labels = data()
    model = RandomForestClassifier(10, random_state=1).fit(
        matrix, np.where(labels > 0, "up", "down")
    )
    for output in ("proba", "predict"):
        settings = saved(model, values={"up": 1, "down": -1}, output=output)
        found = only(load(settings).evaluate(table(matrix)))
        assert found.value.tolist() == np.where(model.predict(matrix) == "up", 1, -1).tolist()
        assert (found.score is None) == (output == "predict")

    with pytest.raises(ConfigError, match=r"values: say no number for the class down"):
        load(saved(model, values={"up": 1}))
    with pytest.raises(ConfigError, match=r"values: 'Up' is not a class.*did you mean 'up'"):
        load(saved(model, values={"Up": 1, "down": -1}))


def test_a_signal_only_where_the_condition_holds(saved: Saved) -> None:
    model = fitted(RandomForestClassifier(20, random_state=1))
    matrix, _ = data(200, seed=4)
    settings = saved(
        model,
        when="prediction > 0 and score >= 0.7 and volume > prev(volume)",
        name="long",
        cooldown="1m",
        meta=["close"],
    )
    adapter = load(settings)
    assert adapter.names == ("long",)
    assert adapter.columns("2s") == {**dict.fromkeys(NAMES, 0), "volume": 1}
    assert adapter.columns("1m") == {}
    assert adapter.cooldown_ns == 60 * 10**9

    found = only(adapter.evaluate(table(matrix)))

    chances = model.predict_proba(matrix)[:, 1]
    expected = np.flatnonzero(chances >= 0.7)
    assert found.rows.tolist() == expected[expected > 0].tolist()
    assert list(found.meta) == ["close"]
    assert found.cooldown_ns == adapter.cooldown_ns


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("predictoin > 0", r"when: .*: unknown column 'predictoin'; did you mean 'prediction'"),
        ("score > 0.5", r"when: .*: unknown column 'score'.*; this model gives no score"),
        ("prev(prediction) < 0", r"when: prediction is known for the row's own bar alone"),
        ("prediction >", r"when: .*position"),
    ],
)
def test_a_condition_that_is_none_is_refused(when: str, message: str, saved: Saved) -> None:
    matrix, _ = data()
    with pytest.raises(ConfigError, match=message):
        load(saved(Ridge().fit(matrix, matrix[:, 0]), when=when))


def test_rows_with_something_unknown_are_not_shown(saved: Saved) -> None:
    matrix, _ = data(20)
    matrix[3, 1], matrix[5, 0], matrix[7, 2] = np.nan, np.inf, 1e300
    adapter = load(saved(fitted(LogisticRegression())))
    counted = partial(
        REGISTRY.get_sample_value, "inference_rows_unknown_total", {"adapter": "sklearn"}
    )
    before = counted() or 0
    found = only(adapter.evaluate(table(matrix)))
    assert found.rows.tolist() == [row for row in range(20) if row not in {3, 5, 7}]
    assert counted() == before + 3
    assert adapter.evaluate(table(np.full((4, 4), np.nan))) == []


def test_a_model_made_for_unknown_values_sees_them(saved: Saved) -> None:
    matrix, _ = data(20)
    matrix[3, 1], matrix[5, 0] = np.nan, np.inf
    model = fitted(HistGradientBoostingClassifier(max_iter=5))
    found = only(load(saved(model, nan="pass")).evaluate(table(matrix)))
    assert found.rows.tolist() == [row for row in range(20) if row != 5]


def test_only_the_symbols_and_providers_in_its_scope(saved: Saved) -> None:
    matrix, _ = data(9)
    model = fitted(LogisticRegression())
    adapter = load(saved(model, symbols=["spy", "Q*"], providers=["ib*"]))
    assert adapter.evaluate(table(matrix, provider="polygon")) == []
    found = only(adapter.evaluate(table(matrix, provider="ibkr")))
    assert found.rows.tolist() == [0, 1, 3, 4, 6, 7]

    everywhere = load(saved(model))
    assert everywhere.evaluate(table(matrix, provider="ibkr:official")) == []
    own = load(saved(model, providers=["ibkr:official"], interval="1d"))
    assert own.columns("1d")
    with pytest.raises(ConfigError, match=r"interval: there is no window of 5m; .*2s, 1m"):
        load(saved(model, interval="5m"))


def test_a_model_that_knows_names_is_given_names(saved: Saved) -> None:
    matrix, labels = data()
    chosen = ColumnTransformer([("scaled", StandardScaler(), ["rsi", "ret"])])
    forest = RandomForestClassifier(5, n_jobs=-1, random_state=1)
    model = make_pipeline(chosen, forest).fit(pandas.DataFrame(matrix, columns=NAMES), labels)
    adapter = load(saved(model, features=()))
    assert adapter.columns("2s") == dict.fromkeys(NAMES, 0)
    found = only(adapter.evaluate(table(matrix)))
    expected = model.predict(pandas.DataFrame(matrix, columns=NAMES))
    assert found.value.tolist() == expected.tolist()


def test_everything_in_a_model_works_in_one_thread(saved: Saved) -> None:
    model = fitted(make_pipeline(StandardScaler(), RandomForestClassifier(5, n_jobs=-1)))
    settings = saved(model)
    estimator = skops.io.load(settings.model_path, trusted=["sklearn.tree._tree.Tree"])
    SklearnModel(estimator, settings, "")
    threads = {vars(part)["n_jobs"] for part in parts(estimator) if "n_jobs" in dir(part)}
    assert threads == {1}


class Odd:
    """An estimator that answers what it was told."""

    def __init__(self, answer: Callable[[int], Any], *, classes: Any = None) -> None:
        self.n_features_in_ = 4
        self._answer = answer
        if classes is not None:
            self.classes_ = np.array(classes)

    def predict(self, matrix: Floats) -> Any:
        return self._answer(len(matrix))

    predict_proba = predict


def not_a_number_in_the_third(rows: int) -> Floats:
    return np.where(np.arange(rows) == 2, np.nan, 1.0)


@pytest.mark.parametrize(
    ("model", "reason", "message"),
    [
        (Odd(lambda rows: np.ones(rows - 1)), "shape", r"shape \(255,\)"),
        (Odd(lambda rows: np.ones((rows, 2))), "shape", r"\(5, 2\) and type float64"),
        (Odd(lambda rows: np.array(["up"] * rows)), "shape", "type <U2"),
        (Odd(lambda rows: 1.0), "shape", r"shape \(\)"),
        (Odd(lambda rows: np.ones((rows, 3)), classes=[0, 1]), "shape", r"not \(5, 2\)"),
        (Odd(lambda rows: np.full((rows, 2), 7.0), classes=[0, 1]), "shape", "outside of 0 to 1"),
        (Odd(not_a_number_in_the_third), "not_finite", "1 of 5 rows"),
        (Odd(lambda rows: np.full((rows, 2), np.nan), classes=[0, 1]), "not_finite", "5 of 5"),
    ],
)
def test_nonsense_is_no_answer(model: Any, reason: str, message: str) -> None:
    settings = SklearnAdapterSettings(model_path="odd.skops", features=NAMES)
    adapter = ModelAdapter(
        "sklearn", SklearnModel(model, settings, ""), settings, KNOWN, "2s", ("2s",)
    )
    with pytest.raises(ModelError, match=message) as caught:
        adapter.evaluate(table(data(5)[0]))
    assert caught.value.reason == reason
