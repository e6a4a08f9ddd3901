"""Models in the ONNX format, evaluated by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core._config_inference import OnnxAdapterSettings
from market_data_core.contracts.feature import Floats
from market_data_core.errors import ConfigError
from market_data_core.registry import Backend
from market_data_pipeline.inference._model_adapter import ModelAdapter
from market_data_pipeline.inference._model_answers import (
    BLOCK_ROWS,
    Answer,
    class_numbers,
    in_blocks,
    numbers,
    of_classes,
    probability,
)
from market_data_pipeline.inference._model_file import ModelFile, features_of, read_model
from market_data_pipeline.inference._model_onnx_classes import classes_of
from market_data_pipeline.inference.expression import Known

_WHERE = "inference.adapters.onnx"
_INPUTS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
_LABELS = ("tensor(int64)", "tensor(string)")
_FATAL = 4


class OnnxModel:
    """Implements :class:`market_data_pipeline.inference._model_answers.Model`.

    Args:
        file: the model.
        settings: how it is asked.

    Raises:
        ConfigError: it is no such model, or does not fit the settings.
    """

    def __init__(self, file: ModelFile, settings: OnnxAdapterSettings) -> None:
        import onnxruntime

        self.sha256 = file.sha256
        self.library = f"onnxruntime {onnxruntime.__version__}"
        self._where = f"{_WHERE}.model_path: {file.path}"
        self._session = _session(file.data, self._where)
        self._input, self._type, width = self._the_input()
        self.features = features_of(settings, "onnx", (), width)
        label, chances, number = self._outputs()
        self._chances = chances if settings.output != "predict" else None
        if settings.output == "proba" and not (label and chances):
            msg = f"{_WHERE}.output: {file.path} gives no probabilities of classes; write predict"
            raise ConfigError(msg)
        self.scored = bool(label and self._chances)
        self._asked = [label.name] if label else [number.name]
        self._classes = _classes(file, settings, label, chances)
        if self._chances and label:
            self._asked.append(self._chances.name)

    def answer(self, matrix: Floats) -> Answer:
        """What the model says about a matrix of shape (n, features).

        Raises:
            ModelError: the answer has not the shape or type it should have.
        """
        rows = len(matrix)
        first, *more = in_blocks(self._ask, matrix)
        score = probability(more[0]) if more else None
        if self._classes is None:
            return Answer(numbers(first, rows), score)
        return of_classes(first, rows, self._classes, score)

    def _ask(self, block: Floats) -> list[NDArray[Any]]:
        first, *more = self._session.run(
            self._asked, {self._input: block.astype(self._type, copy=False)}
        )
        return [np.asarray(first), *(_greatest(chances) for chances in more)]

    def _the_input(self) -> tuple[str, type[Any], int | None]:
        """Name, type and number of columns of what the model takes."""
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _INPUTS or len(inputs[0].shape) != 2:
            found = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
            msg = (
                f"{self._where} takes [{found}]; it must take one matrix of float or double, a row "
                "for each bar and a column for each feature"
            )
            raise ConfigError(msg)
        rows, columns = inputs[0].shape
        if isinstance(rows, int) and rows not in {0, BLOCK_ROWS}:
            msg = f"{self._where} takes exactly {rows} rows; export it with any number of rows"
            raise ConfigError(msg)
        width = columns if isinstance(columns, int) else None
        return inputs[0].name, _INPUTS[inputs[0].type], width

    def _outputs(self) -> tuple[Any, Any, Any]:
        """The outputs that are a class, its probabilities, and a number; None where there is none.

        Raises:
            ConfigError: there is neither a class nor one number.
        """
        outputs = self._session.get_outputs()
        label = next((one for one in outputs if one.type in _LABELS), None)
        chances = next((one for one in outputs if _is_chances(one)), None)
        number = next((one for one in outputs if one.type in _INPUTS and not _is_wide(one)), None)
        if label is None and number is None:
            found = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in outputs)
            msg = f"{self._where} gives [{found}]; it must give a class or one number for each row"
            raise ConfigError(msg)
        return label, chances, number


def _session(data: bytes, where: str) -> Any:
    """A session on the model, on the processor, with one thread.

    Raises:
        ConfigError: it is no model that ONNX Runtime can evaluate by itself.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _FATAL  # what goes wrong is raised, and told once
    try:
        # From bytes, so that weights in further files, which no checksum covers, are refused.
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        shown = " ".join(str(error).split())[:300]
        msg = (
            f"{where} cannot be loaded: {shown}; the model must be one file, without operators of "
            "its own"
        )
        raise ConfigError(msg) from error


def _is_wide(output: Any) -> bool:
    """Whether it has several numbers for each row, as far as the model says."""
    return any(isinstance(size, int) and size != 1 for size in output.shape[1:])


def _is_chances(output: Any) -> bool:
    maps = output.type.startswith("seq(map(") and output.type.endswith("tensor(float)))")
    return maps or (output.type in _INPUTS and len(output.shape) == 2 and output.shape[1] != 1)


def _greatest(chances: Any) -> NDArray[Any]:
    """Of each row, the greatest of its classes' probabilities."""
    if isinstance(chances, list):
        return np.array([max(row.values()) for row in chances], np.float64)
    found: NDArray[Any] = np.max(chances, axis=1)
    return found


def _classes(
    file: ModelFile, settings: OnnxAdapterSettings, label: Any, chances: Any
) -> dict[Any, float] | None:
    """The number of each class by label; None where the answer is a number already.

    Raises:
        ConfigError: a class that the model can give has no number, or a number has no class.
    """
    where, values = f"{_WHERE}.values", settings.values
    if label is None:
        if values:
            msg = f"{where}: {settings.model_path} gives no classes; leave it empty"
            raise ConfigError(msg)
        return None
    texts = label.type == "tensor(string)"
    if not values and not texts:
        return None
    known = classes_of(file.data, label.name, chances.name if chances else "", texts=texts)
    if known is not None:
        return class_numbers(known, values, where)
    if not values:
        msg = (
            f"{where}: {settings.model_path} gives classes that are texts; write a number for "
            "each: {up: 1}"
        )
        raise ConfigError(msg)
    if texts:
        return dict(values)
    try:
        return {int(text): number for text, number in values.items()}
    except ValueError as error:
        msg = f"{where}: the classes of {settings.model_path} are whole numbers: {error}"
        raise ConfigError(msg) from error


def open_onnx(
    settings: OnnxAdapterSettings,
    known: Known,
    default_interval: str,
    intervals: Collection[str],
) -> ModelAdapter:
    """The adapter that `settings` describe.

    Args:
        settings: ``inference.adapters.onnx``.
        known: the columns that there are.
        default_interval: of the smallest window, canonical.
        intervals: all windows.

    Raises:
        ConfigError: the model cannot be loaded, or does not fit the settings.
    """
    model = OnnxModel(read_model(settings, "onnx", {".onnx": "onnx"}), settings)
    return ModelAdapter("onnx", model, settings, known, default_interval, intervals)


BACKEND = Backend("onnx", "A model in the ONNX format.", OnnxAdapterSettings, open_onnx, "onnx")
