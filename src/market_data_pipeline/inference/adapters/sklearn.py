"""Models of scikit-learn, from files that run no code when they are loaded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import polars
import structlog
from numpy.typing import NDArray

from market_data_core._config_inference import SklearnAdapterSettings
from market_data_core.contracts.feature import Floats
from market_data_core.errors import ConfigError
from market_data_core.registry import Backend
from market_data_pipeline.inference._model_adapter import ModelAdapter
from market_data_pipeline.inference._model_answers import (
    Answer,
    class_numbers,
    in_blocks,
    likeliest,
    numbers,
    of_classes,
)
from market_data_pipeline.inference._model_file import ModelFile, features_of, read_model
from market_data_pipeline.inference._model_objects import damage, one_thread
from market_data_pipeline.inference.expression import Known

log = structlog.get_logger("inference")

_WHERE = "inference.adapters.sklearn"
_FORMATS = {".skops": "skops", ".joblib": "pickle", ".pickle": "pickle", ".pkl": "pickle"}
_TREES = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)
"""Types that skops does not trust for what damaged ones do; :func:`damage` looks for that."""
_DATA = (
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.utils._bunch.Bunch",
)
"""Types that only hold values."""
_TREES_ALONE = ("sklearn.tree.", "sklearn.ensemble._forest.")
_BOOSTED = ("sklearn.ensemble._gb.", "sklearn.ensemble._hist_gradient_boosting.")


class SklearnModel:
    """Implements :class:`market_data_pipeline.inference._model_answers.Model`.

    Args:
        estimator: a fitted estimator; it is changed to work in one thread.
        settings: how it is asked.
        sha256: of the file it comes from, in hex.

    Raises:
        ConfigError: settings and estimator do not agree.
    """

    def __init__(self, estimator: Any, settings: SklearnAdapterSettings, sha256: str) -> None:
        import sklearn
        from threadpoolctl import ThreadpoolController

        if not hasattr(estimator, "predict"):
            kind = type(estimator).__name__
            msg = (
                f"{_WHERE}.model_path: {settings.model_path} holds a {kind}, which predicts nothing"
            )
            raise ConfigError(msg)
        self.sha256 = sha256
        self.library = f"scikit-learn {sklearn.__version__}, numpy {np.__version__}"
        named = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
        width = getattr(estimator, "n_features_in_", None)
        self.features = features_of(settings, "sklearn", named, width)
        self._classes = _classes(estimator, settings)
        self.scored = _is_scored(estimator, settings)
        one_thread(estimator)
        self._named = named
        self._call: Callable[[Any], Any] = (
            estimator.predict_proba if self.scored else estimator.predict
        )
        self._row_by_row = _is_row_by_row(estimator)
        self._threads = ThreadpoolController()
        # For good: a limit around each call would be lifted by one thread under another's call.
        self._threads.limit(limits=1, user_api="blas")

    def answer(self, matrix: Floats) -> Answer:
        """What the estimator says about a matrix of shape (n, features).

        Raises:
            ModelError: the answer has not the shape or type it should have.
        """
        # OpenMP keeps this limit for each thread by itself.
        with self._threads.limit(limits=1, user_api="openmp"):
            if self._row_by_row:
                found = self._ask(matrix)
            else:
                found = in_blocks(lambda block: [self._ask(block)], matrix)[0]
        rows = len(matrix)
        if self._classes is None:
            return Answer(numbers(found, rows), None)
        if self.scored:
            return likeliest(found, rows, self._classes)
        return of_classes(found, rows, self._classes)

    def _ask(self, matrix: Floats) -> NDArray[Any]:
        """What the estimator says, given a frame if it was trained on one."""
        given = polars.DataFrame(matrix, schema=self._named) if self._named else matrix
        return np.asarray(self._call(given))


def load_estimator(file: ModelFile, settings: SklearnAdapterSettings) -> Any:
    """The estimator in a file.

    Raises:
        ConfigError: it is not trusted, or there is none in it.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            estimator = _skops(file, settings) if file.format == "skops" else _pickle(file)
        except ConfigError:
            raise
        except ModuleNotFoundError as error:
            msg = f"{_WHERE}.model_path: {file.path} needs the module {error.name!r}; install it"
            raise ConfigError(msg) from error
        except Exception as error:
            shown = f"{type(error).__name__}: {error}"[:300]
            msg = f"{_WHERE}.model_path: {file.path} cannot be loaded as {file.format}: {shown}"
            raise ConfigError(msg) from error
    for text in sorted({str(one.message) for one in told}):
        log.warning("the model was loaded with a warning", file=str(file.path), warning=text)
    return estimator


def _skops(file: ModelFile, settings: SklearnAdapterSettings) -> Any:
    from skops.io import get_untrusted_types, loads

    trusted = {*_TREES, *_DATA, *settings.trusted}
    found = get_untrusted_types(data=file.data)
    unknown = sorted(set(found) - trusted)
    if unknown:
        msg = (
            f"{_WHERE}.trusted: {file.path} holds types that are not known to be safe: "
            f"{', '.join(unknown)}; if you trust them, name them here and pin the file: sha256: "
            f'"{file.sha256}"'
        )
        raise ConfigError(msg)
    estimator = loads(file.data, trusted=found)
    if harm := damage(estimator):
        msg = f"{_WHERE}.model_path: {file.path} is damaged: it holds {harm}"
        raise ConfigError(msg)
    return estimator


def _pickle(file: ModelFile) -> Any:
    import joblib

    return joblib.load(io.BytesIO(file.data))


def _check_pinned(file: ModelFile, settings: SklearnAdapterSettings) -> None:
    """Refuse a file that may run code unless the settings say that it is this very one.

    Raises:
        ConfigError: they do not.
    """
    if settings.sha256:
        return
    if file.format == "pickle":
        why = f"{file.path} is a pickle, which can run any code when it is loaded"
        instead = "save the model with skops"
    elif settings.trusted:
        why = (
            f"{_WHERE}.trusted names {', '.join(settings.trusted)}: whoever writes {file.path} "
            "says what these types do when it is loaded"
        )
        instead = "leave trusted empty"
    else:
        return
    msg = (
        f"{_WHERE}.sha256: is empty, and {why}; {instead}, or, if this file is yours, pin it: "
        f'sha256: "{file.sha256}"'
    )
    raise ConfigError(msg)


def _classes(estimator: Any, settings: SklearnAdapterSettings) -> dict[Any, float] | None:
    """The number of each class; None for models without classes.

    Raises:
        ConfigError: a class has no number, or a row would have several answers.
    """
    labels = getattr(estimator, "classes_", None)
    if labels is None and settings.values:
        msg = f"{_WHERE}.values: {settings.model_path} has no classes"
        raise ConfigError(msg)
    # A classifier's n_outputs_ may count its classes.
    outputs = getattr(estimator, "n_outputs_", 1) if labels is None else 1
    if outputs != 1 or not (labels is None or isinstance(labels, np.ndarray)):
        msg = f"{_WHERE}.model_path: {settings.model_path} has several outputs; one is needed"
        raise ConfigError(msg)
    if labels is None:
        return None
    return class_numbers(labels.tolist(), settings.values, f"{_WHERE}.values")


def _is_row_by_row(estimator: Any) -> bool:
    """Whether it looks at each row by itself, to the last bit, however many there are.

    Trees look values up. What boosting adds up for each row has one order, but the probabilities
    of more than two classes are divided by their sum, and NumPy adds up a single row in another
    order than several; an estimator that boosting begins with may be of any kind.
    """
    kind = f"{type(estimator).__module__}."
    if not kind.startswith(_BOOSTED):
        return kind.startswith(_TREES_ALONE)
    begins = getattr(estimator, "init_", "zero")
    constant = isinstance(begins, str) or type(begins).__module__ == "sklearn.dummy"
    return constant and len(getattr(estimator, "classes_", ())) <= 2


def _is_scored(estimator: Any, settings: SklearnAdapterSettings) -> bool:
    has = hasattr(estimator, "predict_proba") and hasattr(estimator, "classes_")
    if settings.output == "proba" and not has:
        msg = f"{_WHERE}.output: {settings.model_path} gives no probabilities; write predict"
        raise ConfigError(msg)
    return has and settings.output != "predict"


def open_sklearn(
    settings: SklearnAdapterSettings,
    known: Known,
    default_interval: str,
    intervals: Collection[str],
) -> ModelAdapter:
    """The adapter that `settings` describe.

    Args:
        settings: ``inference.adapters.sklearn``.
        known: the columns that there are.
        default_interval: of the smallest window, canonical.
        intervals: all windows.

    Raises:
        ConfigError: the model cannot or must not be loaded, or does not fit the settings.
    """
    file = read_model(settings, "sklearn", _FORMATS)
    _check_pinned(file, settings)
    model = SklearnModel(load_estimator(file, settings), settings, file.sha256)
    return ModelAdapter("sklearn", model, settings, known, default_interval, intervals)


BACKEND = Backend(
    "sklearn", "A scikit-learn model.", SklearnAdapterSettings, open_sklearn, extra="sklearn"
)
