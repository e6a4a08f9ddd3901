"""A row's answer is the same, bit for bit, however the rows are divided into calls.

All trees, forests and boosted trees that scikit-learn has are tried, with few classes and many.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.ensemble
import sklearn.tree
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeRegressor
from tests.unit.inference.sklearn_models import Saved, load, only, saver, table
from threadpoolctl import threadpool_limits

from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Firing
from market_data_core.errors import ConfigError

TREES = (
    "sklearn.tree.",
    "sklearn.ensemble._forest",
    "sklearn.ensemble._gb",
    "sklearn.ensemble._hist_gradient_boosting.",
)
ROWS = 600
SMALL = {"n_estimators": 5, "max_iter": 4, "random_state": 1}


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return saver(tmp_path)


def small(kind: type[Any], **more: Any) -> Any:
    """An estimator that is fitted quickly."""
    known = kind().get_params()
    return kind(**{name: value for name, value in SMALL.items() if name in known}, **more)


def every_estimator() -> Iterator[Any]:
    """One of each that answers something, with the settings that change how it does."""
    names = [(place, name) for place in (sklearn.tree, sklearn.ensemble) for name in place.__all__]
    for kind in (getattr(place, name) for place, name in names):
        concrete = isinstance(kind, type) and not isabstract(kind) and hasattr(kind, "predict")
        if concrete and kind.__module__.startswith(TREES):
            yield small(kind)
    network = MLPClassifier((16,), solver="lbfgs", max_iter=10_000, random_state=1, tol=1.0)
    many = HistGradientBoostingClassifier(max_iter=3)
    for begins in (
        "zero",
        network,
        LogisticRegression(),
        many,
        RandomForestClassifier(5),
        DummyClassifier(),
    ):
        yield small(GradientBoostingClassifier, init=begins)
    for begins in ("zero", Ridge(), HistGradientBoostingRegressor(max_iter=3)):
        yield small(GradientBoostingRegressor, init=begins)
    yield small(GradientBoostingRegressor, loss="huber")
    for loss in ("poisson", "gamma", "absolute_error"):
        yield small(HistGradientBoostingRegressor, loss=loss)
    yield small(HistGradientBoostingClassifier, categorical_features=[3])
    yield small(HistGradientBoostingClassifier, class_weight="balanced", l2_regularization=0.5)
    yield small(RandomForestRegressor, criterion="poisson", monotonic_cst=[1, 0, 0, -1])
    yield small(RandomForestClassifier, warm_start=True, criterion="entropy")


def few_classes() -> Iterator[Any]:
    """Those that can only tell two classes from one another."""
    yield small(GradientBoostingClassifier, loss="exponential")
    yield small(RandomForestClassifier, monotonic_cst=[1, 0, 0, -1])
    yield small(HistGradientBoostingClassifier, monotonic_cst=[1, 0, 0, -1])


def cases() -> Iterator[Any]:
    for model in every_estimator():
        for classes in (2, 3, 8, 20) if is_classifier(model) else (0,):
            yield pytest.param(model, classes, id=shown(model, classes))
    for model in few_classes():
        yield pytest.param(model, 2, id=shown(model, 2))


def shown(model: Any, classes: int) -> str:
    given = {**model.get_params(deep=False)}
    usual = type(model)().get_params(deep=False)
    parts = [
        value if isinstance(value, str) else type(value).__name__
        for name, value in given.items()
        if name not in SMALL and not np.array_equal([str(value)], [str(usual[name])])
    ]
    return "-".join([type(model).__name__, *parts, *([str(classes)] if classes else [])])


@cache
def market(rows: int, seed: int) -> tuple[Floats, Floats]:
    """A matrix, whose last column has few values, and what follows from it, more than 0."""
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(rows, 4))
    matrix[:, 3] = draw.integers(0, 5, rows)
    return matrix, np.abs(matrix[:, 0] + 0.7 * draw.normal(size=rows)) + 0.1


def split(rows: int, seed: int) -> list[NDArray[np.intp]]:
    """The rows in another order, in parts of all sizes, many of them of one row."""
    draw = np.random.default_rng(seed)
    sizes = [1] * 12 + [2, 3, 7, 8, 9, 16, 31, 256, 257]
    order = draw.permutation(rows)
    return [part for part in np.split(order, np.cumsum(draw.permutation(sizes))) if len(part)]


def whole_answer(firing: Firing) -> NDArray[np.void]:
    score = np.zeros(len(firing.value)) if firing.score is None else firing.score
    return np.column_stack([firing.value, score]).view(np.int64)


@pytest.mark.parametrize(("model", "classes"), [*cases()])
def test_any_division_of_the_rows_gives_the_same(model: Any, classes: int, saved: Saved) -> None:
    matrix, follows = market(400, 1)
    if classes:
        borders = np.quantile(follows, np.arange(1, classes) / classes)
        follows = np.digitize(follows, borders).astype(np.float64)
    with threadpool_limits(1):
        model = clone(model).fit(matrix, follows)
    adapter = load(saved(model, "joblib"))
    asked, _ = market(ROWS, 2)
    expected = whole_answer(only(adapter.evaluate(table(asked))))

    for part in split(ROWS, 3):
        found = whole_answer(only(adapter.evaluate(table(asked[part]))))
        np.testing.assert_array_equal(found, expected[part])


def test_a_model_with_several_outputs_is_refused(saved: Saved) -> None:
    matrix, follows = market(400, 1)
    model = DecisionTreeRegressor(max_depth=2).fit(matrix, np.column_stack([follows, -follows]))
    with pytest.raises(ConfigError, match="has several outputs; one is needed"):
        load(saved(model))
    both = RandomForestClassifier(3).fit(matrix, matrix[:, :2] > 0)
    with pytest.raises(ConfigError, match="has several outputs; one is needed"):
        load(saved(both))
