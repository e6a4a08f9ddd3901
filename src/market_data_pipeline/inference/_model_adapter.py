"""Any loaded model as an adapter: which rows it sees, and what becomes of its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from market_data_core._config_features import ANSWER_COLUMNS
from market_data_core._config_inference import ModelAdapterSettings
from market_data_core._suggest import did_you_mean
from market_data_core.contracts.feature import Floats
from market_data_core.contracts.inference import Firing, Rows
from market_data_core.errors import ConfigError, ModelError
from market_data_core.intervals import parse_interval
from market_data_pipeline import metrics
from market_data_pipeline.inference._model_answers import NOT_FINITE, Answer, Model
from market_data_pipeline.inference.expression import (
    Condition,
    Known,
    compile_condition,
    unknown_column,
)
from market_data_pipeline.inference.expression_values import Frame
from market_data_pipeline.inference.scope import FeedScope

log = structlog.get_logger("inference")

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SHOWN = 10

UNNUMBERED = "class"
"""Reason of errors: a row's class has no number."""

_NOT_IN_VERSION = {"enabled", "model_path", "sha256", "fallback"}
"""Settings that do not decide about the model's own signals."""


class ModelAdapter:
    """Implements :class:`market_data_core.contracts.inference.Adapter`.

    Args:
        kind: the adapter's name.
        model: what is asked.
        settings: how it is asked.
        known: the columns that there are.
        default_interval: of the bars it is given, unless the settings say so.
        intervals: all windows.

    Attributes:
        name: `kind`.
        version: SHA-256 of the model's file, the settings and the library's version.
        names: the signals' one name.
        cooldown_ns: after a signal, none for the same symbol within this event time.

    Raises:
        ConfigError: a column that there is not, or a condition that is not one.
    """

    def __init__(
        self,
        kind: str,
        model: Model,
        settings: ModelAdapterSettings,
        known: Known,
        default_interval: str,
        intervals: Collection[str],
    ) -> None:
        self.name = kind
        self._unknown = metrics.INFERENCE_ROWS_UNKNOWN.labels(kind)
        self._unnumbered = metrics.ERRORS.labels("inference", UNNUMBERED)
        self._warned = False
        self._model, self._settings = model, settings
        self._signal = settings.name
        self.names = (settings.name,)
        self._interval = settings.interval or default_interval
        self._scope = FeedScope.of(settings.providers, settings.symbols)
        self._meta = model.features if settings.meta is None else settings.meta
        where = f"inference.adapters.{kind}"
        if self._interval not in intervals and self._scope.computed:
            meant = did_you_mean(self._interval, intervals)
            msg = f"{where}.interval: there is no window of {self._interval}; {meant}"
            raise ConfigError(msg)
        for key, names in (("features", model.features), ("meta", self._meta)):
            for name in names:
                if unknown := unknown_column(name, known):
                    msg = f"{where}.{key}: {unknown}"
                    raise ConfigError(msg)
        self._when = _condition(settings.when, known, scored=model.scored, where=f"{where}.when")
        self.cooldown_ns = parse_interval(settings.cooldown) if settings.cooldown else 0
        self.version = self._fingerprint()

    def columns(self, interval: str) -> Mapping[str, int]:
        """Column -> how many bars back it is looked at; empty for other bars than the model's."""
        if interval != self._interval:
            return {}
        found = dict.fromkeys((*self._model.features, *self._meta), 0)
        if self._when is not None:
            for column, back in self._when.columns.items():
                if column not in ANSWER_COLUMNS:
                    found[column] = max(back, found.get(column, 0))
        return found

    def evaluate(self, rows: Rows) -> Sequence[Firing]:
        """What the model says about all rows that are for it.

        Raises:
            ModelError: its answer is not what it should be (reasons ``shape``, ``not_finite``).
        """
        if rows.interval != self._interval or not self._scope.is_for(rows.provider):
            return []
        index = self._scope.within(rows, np.arange(len(rows), dtype=np.intp))
        matrix = np.column_stack([rows.value(name)[index] for name in self._model.features])
        # Models read float32 or refuse what does not fit it, and one such row must not spoil all.
        fits = np.less_equal(np.abs(matrix), _FLOAT32_MAX)
        whole = np.all(fits, axis=1)
        shown = whole
        if self._settings.nan == "pass":
            shown = np.all(fits | np.isnan(matrix), axis=1)
        unknown = len(shown) - int(np.count_nonzero(shown))
        self._unknown.inc(unknown)
        index, matrix, whole = index[shown], np.ascontiguousarray(matrix[shown]), whole[shown]
        if not len(index):
            return []
        answer = self._model.answer(matrix)
        good = self._finite(answer, whole)
        if not good.all():
            index = index[good]
            score = None if answer.score is None else answer.score[good]
            answer = Answer(answer.prediction[good], score)
        return self._firings(rows, index, answer)

    def close(self) -> None:
        """Nothing is held that has to be released."""

    def _finite(self, answer: Answer, whole: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows have an answer; all that were whole must have one, or a class.

        Raises:
            ModelError: a row has none.
        """
        numbered: NDArray[np.bool_] = np.isfinite(answer.prediction)
        found = numbered.copy()
        found[list(answer.unnumbered)] = True
        if answer.score is not None:
            found &= np.isfinite(answer.score)
        bad = int(np.count_nonzero(whole & ~found))
        if bad:
            msg = f"answered {bad} of {len(found)} rows with numbers that are not finite"
            raise ModelError(NOT_FINITE, msg)
        if answer.unnumbered:
            self._tell(answer.unnumbered)
        return found & numbered

    def _tell(self, unnumbered: Mapping[int, str]) -> None:
        """Count rows whose class has no number, and log the first of them."""
        self._unnumbered.inc(len(unnumbered))
        if not self._warned:
            self._warned = True
            log.warning(
                "the model gave a class that has no number; such rows give no signal",
                adapter=self.name,
                classes=sorted(set(unnumbered.values()))[:_SHOWN],
                setting=f"inference.adapters.{self.name}.values",
            )

    def _firings(self, rows: Rows, index: NDArray[np.intp], answer: Answer) -> list[Firing]:
        value, score = answer.prediction, answer.score
        if self._when is not None:
            fires = self._when.fires(Frame(_Answered(rows, index, answer)))[index]
            index, value = index[fires], value[fires]
            score = None if score is None else score[fires]
        if not len(index):
            return []
        meta = {name: rows.value(name)[index] for name in self._meta}
        notes = {"model_sha256": self._model.sha256, "library": self._model.library}
        return [Firing(self._signal, index, value, score, meta, self.cooldown_ns, notes)]

    def _fingerprint(self) -> str:
        """SHA-256 of all that decides about the signals."""
        said = self._settings.model_dump(mode="json", exclude=_NOT_IN_VERSION)
        said |= {"name": self._signal, "interval": self._interval, "features": self._model.features}
        said |= {"meta": self._meta}
        text = json.dumps([self._model.sha256, self._model.library, said], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class _Answered:
    """Rows with the model's answers as two more columns."""

    def __init__(self, rows: Rows, index: NDArray[np.intp], answer: Answer) -> None:
        self.provider, self.interval, self.symbols = rows.provider, rows.interval, rows.symbols
        self.codes, self.ts = rows.codes, rows.ts
        self._rows, self._index, self._answer = rows, index, answer

    def __len__(self) -> int:
        return len(self._rows)

    def value(self, column: str, back: int = 0) -> Floats:
        """As the rows have it; answers are NaN where the model was not asked."""
        if column not in ANSWER_COLUMNS:
            return self._rows.value(column, back)
        found = self._answer.prediction if column == "prediction" else self._answer.score
        values = np.full(len(self._rows), np.nan)
        if found is not None:
            values[self._index] = found
        return values


def _condition(text: str, known: Known, *, scored: bool, where: str) -> Condition | None:
    """The condition for a signal; None if there is none.

    Raises:
        ConfigError: it is not one, asks for an earlier answer, or for a score that there is not.
    """
    if not text.strip():
        return None
    answers = ANSWER_COLUMNS if scored else ANSWER_COLUMNS[:1]
    if isinstance(known, Collection):
        named: Known = {*known, *answers}
    else:
        is_column = known
        named = lambda name: name in answers or is_column(name)  # noqa: E731
    try:
        condition = compile_condition(text, named)
    except ConfigError as error:
        hint = "" if scored or "'score'" not in str(error) else "; this model gives no score"
        msg = f"{where}: {error}{hint}"
        raise ConfigError(msg) from error
    for name in answers:
        if condition.columns.get(name):
            msg = f"{where}: {name} is known for the row's own bar alone, not for bars before it"
            raise ConfigError(msg)
    return condition
