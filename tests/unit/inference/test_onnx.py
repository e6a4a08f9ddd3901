"""The ONNX adapter, with models converted from scikit-learn's and with odd ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from market_data_core import registry
from market_data_core._config_inference import OnnxAdapterSettings
from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Adapter, Firing
from market_data_core.errors import ConfigError, ModelError

NAMES = ("ret", "vol", "rsi")


class Table:
    """Rows of one symbol, made of a matrix."""

    provider, interval = "feed", "2s"
    symbols: Sequence[str] = ("SPY",)

    def __init__(self, matrix: Floats) -> None:
        self.matrix = matrix
        self.codes = np.zeros(len(matrix), np.intp)
        self.ts = np.arange(len(matrix), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.matrix)

    def value(self, column: str, back: int = 0) -> Floats:
        assert not back
        return self.matrix[:, NAMES.index(column)]


def data(rows: int = 300, seed: int = 7) -> tuple[Floats, NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    # Values that float32 holds exactly, so that both libraries see the same.
    matrix = draw.normal(size=(rows, len(NAMES))).astype(np.float32).astype(np.float64)
    return matrix, np.where(matrix[:, 0] + draw.normal(size=rows) > 0, 1, -1)


def converted(model: Any, *, dtype: Any = np.float32, **options: Any) -> bytes:
    matrix, _ = data()
    chosen = {id(model): options} if options else None
    found = to_onnx(model, matrix[:1].astype(dtype), options=chosen)
    content: bytes = found.SerializeToString()
    return content


Saved = Callable[..., OnnxAdapterSettings]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(content: bytes, **settings: Any) -> OnnxAdapterSettings:
        path = tmp_path / "trend.onnx"
        path.write_bytes(content)
        return OnnxAdapterSettings(model_path=str(path), **{"features": NAMES, **settings})

    return save


def load(settings: OnnxAdapterSettings) -> Adapter:
    found: Adapter = registry.backend("inference", "onnx").create(settings, NAMES, "2s", ("2s",))
    return found


def only(firings: Sequence[Firing]) -> Firing:
    assert len(firings) == 1
    return firings[0]


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("texts", [True, False])
def test_a_classifier_gives_a_class_with_its_probability(
    zipmap: bool, texts: bool, saved: Saved
) -> None:
    matrix, labels = data()
    said = np.where(labels > 0, "up", "down") if texts else labels
    model = RandomForestClassifier(21, random_state=1).fit(matrix, said)
    values = {"up": 2, "down": -2} if texts else {"1": 2, "-1": -2}
    adapter = load(saved(converted(model, zipmap=zipmap), values=values))
    found = only(adapter.evaluate(Table(matrix)))
    up = model.predict(matrix) == ("up" if texts else 1)
    assert found.value.tolist() == np.where(up, 2, -2).tolist()
    assert found.score is not None
    np.testing.assert_allclose(found.score, model.predict_proba(matrix).max(axis=1), atol=1e-5)
    assert found.score.max() <= 1
    assert found.notes["library"].startswith("onnxruntime ")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_regressor_gives_a_number(dtype: Any, saved: Saved) -> None:
    matrix, _ = data()
    model = Ridge().fit(matrix, matrix @ [1.0, 2.0, 3.0])
    found = only(load(saved(converted(model, dtype=dtype))).evaluate(Table(matrix)))
    assert found.score is None
    np.testing.assert_allclose(found.value, model.predict(matrix), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(30, random_state=1),
        make_pipeline(StandardScaler(), LogisticRegression()),
        MLPClassifier((8,), solver="lbfgs", max_iter=5000, random_state=1),
    ],
    ids=["forest", "logistic", "network"],
)
def test_a_row_is_answered_alike_whatever_rows_are_with_it(model: Any, saved: Saved) -> None:
    adapter = load(saved(converted(model.fit(*data()))))
    matrix, _ = data(600, seed=2)
    whole = only(adapter.evaluate(Table(matrix)))
    assert whole.score is not None
    draw = np.random.default_rng(3)
    for size in (1, 2, 7, 255, 256, 257, 600):
        chosen = draw.permutation(600)[:size]
        found = only(adapter.evaluate(Table(matrix[chosen])))
        assert found.score is not None
        assert found.value.tobytes() == whole.value[chosen].tobytes()
        assert found.score.tobytes() == whole.score[chosen].tobytes()


def test_the_class_alone_where_that_is_asked_for(saved: Saved) -> None:
    model = LogisticRegression().fit(*data())
    matrix, _ = data()
    settings = saved(converted(model), output="predict", when="prediction > 0")
    found = only(load(settings).evaluate(Table(matrix)))
    assert found.rows.tolist() == np.flatnonzero(model.predict(matrix) > 0).tolist()
    assert found.score is None


def graph(
    inputs: Sequence[tuple[str, int, list[Any]]],
    outputs: Sequence[tuple[str, int, list[Any]]],
    nodes: Sequence[Any],
    weights: Sequence[Any] = (),
) -> Any:
    """A model made by hand: (name, type, shape) of what goes in and out."""
    made = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
SAME = helper.make_node("Identity", ["x"], ["y"])
SUM = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph([("x", INT, [None, 3])], [("y", INT, [None, 3])], [SAME]), r"takes \[x: tensor\(i"),
        (graph([("x", FLOAT, [3])], [("y", FLOAT, [3])], [SAME]), "must take one matrix"),
        (graph([("x", FLOAT, [7, 3])], [("y", FLOAT, [7, 1])], [SUM]), "takes exactly 7 rows"),
        (
            graph([("x", FLOAT, [None, 4])], [("y", FLOAT, [None, 1])], [SUM]),
            r"features: are 3 \(\[ret, vol, rsi\]\), but .* takes 4",
        ),
        (
            graph([("x", FLOAT, [None, 3])], [("y", FLOAT, [None, 3])], [SAME]),
            "must give a class or one number for each row",
        ),
        (
            graph(
                [("x", FLOAT, [None, 3])],
                [("y", FLOAT, [None, 3])],
                [helper.make_node("Own", ["x"], ["y"], domain="mine")],
            ),
            "without operators of its own",
        ),
    ],
    ids=["type", "vector", "batch", "width", "outputs", "operator"],
)
def test_a_model_of_another_kind_is_refused(model: Any, message: str, saved: Saved) -> None:
    with pytest.raises(ConfigError, match=message):
        load(saved(model.SerializeToString()))


def test_settings_that_do_not_fit_are_refused(saved: Saved) -> None:
    matrix, labels = data()
    number = converted(Ridge().fit(matrix, matrix[:, 0]))
    texts = converted(LogisticRegression().fit(matrix, np.where(labels > 0, "up", "down")))
    cases: list[tuple[bytes, dict[str, Any], str]] = [
        (number, {"features": ()}, r"features: is empty, and .* it takes 3"),
        (number, {"sha256": "0" * 64}, "sha256: .* another file than the one that was pinned"),
        (number, {"output": "proba"}, "output: .* gives no probabilities of classes"),
        (number, {"values": {"up": 1}}, "values: .* gives no classes"),
        (number, {"when": "score > 0"}, "this model gives no score"),
        (texts, {}, "values: say no number for the classes down, up; add one for each"),
        (b"not a model", {}, r"trend\.onnx cannot be loaded"),
    ]
    for content, settings, message in cases:
        with pytest.raises(ConfigError, match=message):
            load(saved(content, **settings))


def test_weights_in_another_file_are_refused(
    tmp_path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = numpy_helper.from_array(np.ones((3, 1), np.float32), "w")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph([("x", FLOAT, [None, 3])], [("y", FLOAT, [None, 1])], [product], [weights])
    path = tmp_path / "split.onnx"
    onnx.save_model(
        model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the model must be one file"):
        load(saved(path.read_bytes()))


def test_numbers_that_are_none_are_no_answer(saved: Saved) -> None:
    root = graph(
        [("x", FLOAT, [None, 3])],
        [("y", FLOAT, [None, 1])],
        [helper.make_node("Sqrt", ["x"], ["s"]), SUM_OF_ROOTS],
    )
    adapter = load(saved(root.SerializeToString()))
    matrix = np.ones((5, 3))
    assert only(adapter.evaluate(Table(matrix))).value.tolist() == [1.0] * 5
    matrix[1] = -1.0
    with pytest.raises(ModelError, match="1 of 5 rows") as caught:
        adapter.evaluate(Table(matrix))
    assert caught.value.reason == "not_finite"


SUM_OF_ROOTS = helper.make_node("ReduceMean", ["s"], ["y"], axes=[1], keepdims=1)


def test_the_version_tells_the_file(saved: Saved) -> None:
    first = saved(converted(LogisticRegression().fit(*data())))
    version = load(first).version
    content = Path(first.model_path).read_bytes()
    pinned = saved(content, sha256=hashlib.sha256(content).hexdigest())
    assert load(pinned).version == version
    assert load(saved(converted(LogisticRegression(C=0.1).fit(*data())))).version != version
