"""The classes of ONNX models: known when a model is loaded, or met while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import REGISTRY
from skl2onnx import to_onnx
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from structlog.testing import capture_logs
from tests.unit.inference.sklearn_models import NAMES, only, table
from threadpoolctl import threadpool_limits

from market_data_core import registry
from market_data_core._config_inference import OnnxAdapterSettings
from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Adapter
from market_data_core.errors import ConfigError, ModelError
from market_data_pipeline.inference._model_onnx_classes import classes_of

WHOLE = [-1, 0, 1_000_000_007]
TEXTS = ["down", "flat", "up"]


def data() -> tuple[Floats, NDArray[np.intp]]:
    matrix = np.random.default_rng(5).normal(size=(200, len(NAMES)))
    return matrix, np.digitize(matrix[:, 0], [-0.5, 0.5])


def load(content: bytes, folder: Path, **settings: Any) -> Adapter:
    path = folder / "trend.onnx"
    path.write_bytes(content)
    given = OnnxAdapterSettings(model_path=str(path), features=NAMES, **settings)
    made: Adapter = registry.backend("inference", "onnx").create(given, NAMES, "2s", ("2s",))
    return made


def converted(model: Any, texts: bool) -> bytes:
    matrix, number = data()
    labels: NDArray[Any] = np.array(TEXTS if texts else WHOLE)
    with threadpool_limits(1):
        model.fit(matrix, labels[number])
    given, options = matrix[:1].astype(np.float32), {id(model): {"zipmap": False}}
    content: bytes = to_onnx(model, given, options=options).SerializeToString()
    return content


def made(
    nodes: Sequence[Any],
    outputs: Sequence[tuple[str, int, list[Any]]],
    constants: Sequence[Any] = (),
) -> bytes:
    """A model made by hand: nodes, (name, type, shape) of what it gives, and constants."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(NAMES)])],
        [helper.make_tensor_value_info(*one) for one in outputs],
        list(constants),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=8
    ).SerializeToString()
    return content


def constant(name: str, values: Any) -> Any:
    return numpy_helper.from_array(np.asarray(values), name)


FIRST = helper.make_node("ArgMax", ["x"], ["place"], axis=1, keepdims=0)


@pytest.mark.parametrize("texts", [True, False], ids=["texts", "numbers"])
@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(3, random_state=1),
        LogisticRegression(),
        make_pipeline(StandardScaler(), LogisticRegression()),
        KNeighborsClassifier(3),
        GaussianNB(),
        BaggingClassifier(GaussianNB(), 2, random_state=1),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_class_without_a_number_is_told_when_the_model_is_loaded(
    model: Any, texts: bool, tmp_path: Path
) -> None:
    content = converted(model, texts)
    labels = [*map(str, TEXTS if texts else WHOLE)]
    values = dict(zip(labels, (-1.0, 0.0, 1.0), strict=True))

    assert load(content, tmp_path, values=values).names == ("trend",)
    for missing in labels:
        few = {label: number for label, number in values.items() if label != missing}
        message = rf"values: say no number for the class {missing}; add .* such as {missing}: 0"
        with pytest.raises(ConfigError, match=message):
            load(content, tmp_path, values=few)
    with pytest.raises(ConfigError, match=r"values: 'Up' is not a class of the model"):
        load(content, tmp_path, values={**values, "Up": 1})


def encoded(labels: list[Any]) -> Any:
    """A class for each place; for others its default, which need not be among the classes."""
    texts = isinstance(labels[0], str)
    values: dict[str, Any] = {f"values_{'strings' if texts else 'int64s'}": labels}
    values |= {"default_string": "other"} if texts else {"default_int64": 99}
    return helper.make_node(
        "LabelEncoder", ["place"], ["label"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2], **values
    )


@pytest.mark.parametrize("texts", [True, False], ids=["texts", "numbers"])
def test_the_names_of_probabilities_tell_the_classes_too(texts: bool, tmp_path: Path) -> None:
    labels: list[Any] = [*(TEXTS if texts else WHOLE)]
    kind = TensorProto.STRING if texts else TensorProto.INT64
    names: dict[str, Any] = {f"classlabels_{'strings' if texts else 'int64s'}": labels}
    nodes = [
        FIRST,
        encoded(labels),
        helper.make_node("Slice", ["x", "begin", "end", "axis"], ["three"]),
        helper.make_node("Softmax", ["three"], ["chances"], axis=1),
        helper.make_node("ZipMap", ["chances"], ["named"], None, None, "ai.onnx.ml", **names),
    ]
    constants = [constant("begin", [0]), constant("end", [3]), constant("axis", [1])]
    content = made(nodes, [("label", kind, [None])], constants)
    assert classes_of(content, "label", "", texts=texts) is None
    assert classes_of(content, "label", "named", texts=texts) == labels
    assert classes_of(content, "label", "named", texts=not texts) is None


def test_classes_are_found_where_they_are_chosen() -> None:
    choose = helper.make_node("ArrayFeatureExtractor", ["all", "place"], ["label"], domain="ml")
    gather = helper.make_node("Gather", ["all", "place"], ["label"])
    wide = helper.make_node("Cast", ["short"], ["label"], to=TensorProto.INT64)
    narrow = helper.make_node("Gather", ["all", "place"], ["short"])
    listed = helper.make_tensor("all", TensorProto.INT64, [3], [-5, 0, 2**40])
    for nodes, values, expected in (
        ([FIRST, choose], constant("all", np.array([-5, 7], np.int64)), [-5, 7]),
        ([FIRST, gather], listed, [-5, 0, 2**40]),
        ([FIRST, narrow, wide], constant("all", np.array([-5, 7], np.int32)), [-5, 7]),
        ([FIRST, narrow, wide], constant("all", np.array([-5, 7], np.float32)), None),
        ([FIRST, gather], constant("other", np.array([1], np.int64)), None),
        ([FIRST], constant("all", np.array([1], np.int64)), None),
    ):
        content = made(nodes, [("label", TensorProto.INT64, [None])], [values])
        assert classes_of(content, "label", "", texts=False) == expected
    words: list[Any] = [b"up", "tief\u00ebr".encode()]
    texts = helper.make_tensor("all", TensorProto.STRING, [2], words)
    content = made([FIRST, gather], [("label", TensorProto.STRING, [None])], [texts])
    assert classes_of(content, "label", "", texts=True) == ["up", "tief\u00ebr"]
    assert classes_of(content, "label", "", texts=False) is None


def unknown_until_it_runs(texts: bool) -> bytes:
    """Gives the place of each row's greatest value, as a number or as a text."""
    if not texts:
        return made([FIRST], [("place", TensorProto.INT64, [None])])
    return made([FIRST, encoded(TEXTS)], [("label", TensorProto.STRING, [None])])


@pytest.mark.parametrize("texts", [True, False], ids=["texts", "numbers"])
def test_a_row_of_a_class_without_a_number_gives_no_signal_and_the_others_do(
    texts: bool, tmp_path: Path
) -> None:
    def counted() -> float:
        labels = {"component": "inference", "reason": "class"}
        return REGISTRY.get_sample_value("errors_total", labels) or 0

    values = {"down": -1, "flat": 0} if texts else {"0": -1, "1": 0}
    adapter = load(unknown_until_it_runs(texts), tmp_path, values=values)
    matrix = np.eye(4)[[0, 1, 2, 0, 3, 2, 1]].copy()
    before = counted()

    with capture_logs() as logs:
        found = only(adapter.evaluate(table(matrix)))
        again = only(adapter.evaluate(table(matrix[::-1])))
        assert adapter.evaluate(table(np.eye(4)[2:3].copy())) == []

    assert found.rows.tolist() == [0, 1, 3, 6]
    assert found.value.tolist() == [-1, 0, -1, 0]
    assert again.rows.tolist() == [0, 3, 5, 6]
    assert counted() == before + 3 + 3 + 1
    told = [one for one in logs if one["log_level"] == "warning"]
    assert len(told) == 1
    assert told[0]["classes"] == (["other", "up"] if texts else ["2", "3"])
    assert told[0]["setting"] == "inference.adapters.onnx.values"


def test_a_missing_number_hides_no_answer_that_is_none(tmp_path: Path) -> None:
    roots = helper.make_node("Sqrt", ["x"], ["chances"])
    label, chances = ("place", TensorProto.INT64, [None]), ("chances", TensorProto.FLOAT, [None, 4])
    adapter = load(made([FIRST, roots], [label, chances]), tmp_path, values={"0": 1})
    matrix = np.eye(4)[[0, 1]].copy()
    assert only(adapter.evaluate(table(matrix))).rows.tolist() == [0]
    matrix[1, 0] = -1
    with pytest.raises(ModelError, match="1 of 2 rows") as caught:
        adapter.evaluate(table(matrix))
    assert caught.value.reason == "not_finite"


def test_numbers_for_what_cannot_be_a_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"values: the classes of .* are whole numbers"):
        load(unknown_until_it_runs(texts=False), tmp_path, values={"up": 1})
    with pytest.raises(ConfigError, match=r"classes that are texts; write a number for each"):
        load(unknown_until_it_runs(texts=True), tmp_path)


@pytest.mark.parametrize("content", [b"\x3a\x05\x0a", b"\x3a", b"\x3b", b"\x80" * 3])
def test_what_is_no_graph_tells_no_classes(content: bytes) -> None:
    assert classes_of(content, "label", "", texts=True) is None
