"""What models answer: numbers, checked, and the same for a row whatever rows are beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from market_data_core._suggest import did_you_mean
from market_data_core.contracts.feature import Floats
from market_data_core.errors import ConfigError, ModelError

SHAPE, NOT_FINITE = "shape", "not_finite"
"""Reasons of errors: an array of another shape or type, and numbers that are none."""

BLOCK_ROWS = 256
"""Rows of every call of a model whose arithmetic depends on the number of rows."""

_ROUNDING = 1e-3
"""How far float32 sums over thousands of trees may miss 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says about n rows.

    Attributes:
        prediction: shape (n,): the class's number, or the regression's.
        score: shape (n,): the probability of that class; None where the model has none.
        unnumbered: row -> its class, for rows of a class that has no number; their prediction is
            NaN.
    """

    prediction: Floats
    score: Floats | None
    unnumbered: Mapping[int, str] = field(default_factory=dict)


class Model(Protocol):
    """A loaded model.

    Attributes:
        features: the columns it is given, in its order.
        sha256: of its file, in hex.
        library: what computes its answers, with versions.
        scored: whether its answers have scores.
    """

    features: tuple[str, ...]
    sha256: str
    library: str
    scored: bool

    def answer(self, matrix: Floats) -> Answer:
        """What it says about a matrix of shape (n, features), n at least 1; may block.

        Raises:
            ModelError: the answer has not the shape or type it should have.
        """
        ...


def in_blocks(
    ask: Callable[[Floats], Sequence[NDArray[Any]]], matrix: Floats
) -> list[NDArray[Any]]:
    """What `ask` says about `matrix`, asked in blocks of exactly :data:`BLOCK_ROWS` rows.

    Matrix products choose their order of summation by the matrix's shape, so that a row's last bits
    would depend on how many rows it came with. The last block is filled up with its first row.

    Args:
        ask: gives one or more arrays, each with as many rows as it was given.
        matrix: shape (n, features), n at least 1.

    Raises:
        ModelError: an array has another number of rows.
    """
    parts: list[list[NDArray[Any]]] = []
    for begin in range(0, len(matrix), BLOCK_ROWS):
        block = matrix[begin : begin + BLOCK_ROWS]
        missing = BLOCK_ROWS - len(block)
        if missing:
            block = np.concatenate([block, np.repeat(block[:1], missing, axis=0)])
        found = ask(np.ascontiguousarray(block))
        for array in found:
            if array.shape[:1] != (BLOCK_ROWS,):
                raise wrong_shape(array, f"({BLOCK_ROWS}, …)")
        parts.append([array[: BLOCK_ROWS - missing] for array in found])
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def wrong_shape(found: NDArray[Any], expected: str) -> ModelError:
    """The error for an array that is not what was asked for."""
    text = f"answered an array of shape {found.shape} and type {found.dtype}, not {expected}"
    return ModelError(SHAPE, text)


def numbers(found: NDArray[Any], rows: int) -> Floats:
    """Predictions as float64.

    Raises:
        ModelError: not one number for each row.
    """
    if found.shape not in {(rows,), (rows, 1)} or found.dtype.kind not in "fiub":
        raise wrong_shape(found, f"({rows},) of numbers")
    return found.reshape(rows).astype(np.float64)


def of_classes(
    found: NDArray[Any], rows: int, classes: Mapping[Any, float], score: Floats | None = None
) -> Answer:
    """The numbers of predicted classes.

    Args:
        found: the classes, one for each row.
        rows: how many there must be.
        classes: the number of each class, by label.
        score: shape (n,): their probabilities; None where there are none.

    Raises:
        ModelError: not one class for each row.
    """
    if found.shape not in {(rows,), (rows, 1)}:
        raise wrong_shape(found, f"({rows},) of classes")
    labels = found.reshape(rows).tolist()
    try:
        said = [classes.get(label) for label in labels]
    except TypeError as error:
        msg = f"answered something that is no class: {error}"
        raise ModelError(SHAPE, msg) from error
    prediction = np.array([np.nan if one is None else one for one in said], np.float64)
    return Answer(
        prediction, score, {row: str(labels[row]) for row, one in enumerate(said) if one is None}
    )


def likeliest(found: NDArray[Any], rows: int, classes: Mapping[Any, float]) -> Answer:
    """The likeliest class of each row, the first of several, with its probability.

    Raises:
        ModelError: not a probability for each row and class.
    """
    expected = (rows, len(classes))
    if found.shape != expected or found.dtype.kind != "f":
        raise wrong_shape(found, f"{expected} of probabilities")
    best = np.argmax(found, axis=1)
    # Where one of them is NaN, argmax finds that, and so the score is NaN.
    score = probability(found[np.arange(rows), best])
    return Answer(np.array(list(classes.values()), np.float64)[best], score)


def probability(found: NDArray[Any]) -> Floats:
    """Probabilities as float64, without what rounding put outside of 0 to 1.

    Raises:
        ModelError: they are none.
    """
    if np.any((found < -_ROUNDING) | (found > 1 + _ROUNDING)):
        msg = "answered numbers outside of 0 to 1 as probabilities; set output: predict"
        raise ModelError(SHAPE, msg)
    return np.clip(found.astype(np.float64), 0.0, 1.0)


def class_numbers(labels: list[Any], values: Mapping[str, float], where: str) -> dict[Any, float]:
    """Label -> number, in the order of `labels`.

    Args:
        labels: the model's classes.
        values: what is set for them, by label as text.
        where: the setting of `values`.

    Raises:
        ConfigError: a class that is no number has none, or a label is not the model's.
    """
    texts = [_text(label) for label in labels]
    unknown = [text for text in values if text not in texts]
    if unknown:
        meant = did_you_mean(unknown[0], texts)
        msg = f"{where}: {unknown[0]!r} is not a class of the model; {meant}"
        raise ConfigError(msg)
    if not values and not any(isinstance(label, str) for label in labels):
        return {label: float(label) for label in labels}
    missing = [text for text in texts if text not in values]
    if missing:
        msg = (
            f"{where}: say no number for the class{'es' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}; add one for each, such as {missing[0]}: 0"
        )
        raise ConfigError(msg)
    return {label: float(values[text]) for label, text in zip(labels, texts, strict=True)}


def _text(label: Any) -> str:
    """A class as it is written in the settings: all digits, but ``1`` for 1.0."""
    if isinstance(label, bool):
        return str(int(label))
    return str(label).removesuffix(".0") if isinstance(label, float) else str(label)
