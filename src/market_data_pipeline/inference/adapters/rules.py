"""Rules over feature columns, from a file: see ``docs/reference/rules.md``."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from market_data_core._config_inference import RulesAdapterSettings
from market_data_core._config_yaml import read_text
from market_data_core.contracts.inference import Firing, Rows
from market_data_core.registry import Backend
from market_data_pipeline.inference.expression import Known
from market_data_pipeline.inference.expression_values import Frame
from market_data_pipeline.inference.rules_file import Rule, read_rules

BUILT_IN = "built-in rules"
"""What messages call the rules that are used where there is no file."""

_DEFAULT_PATH: Path = RulesAdapterSettings.model_fields["file"].default


class RulesAdapter:
    """Implements :class:`market_data_core.contracts.inference.Adapter`.

    Args:
        rules: those that are evaluated.
        text: what they were read from.
        source: where that stands.

    Attributes:
        version: SHA-256 of the text, in hex.
        names: of the rules.
        cooldown_ns: the longest of the rules' cooldowns.
        text: what they were read from.
        source: where that stands: the file's path, or ``built-in rules``.
    """

    name = "rules"

    def __init__(self, rules: Sequence[Rule], text: str, source: str) -> None:
        self.version = hashlib.sha256(text.encode()).hexdigest()
        self.names = tuple(rule.name for rule in rules)
        self.cooldown_ns = max((rule.cooldown_ns for rule in rules), default=0)
        self.text, self.source = text, source
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self._rules.setdefault(rule.interval, []).append(rule)

    @classmethod
    def of_text(
        cls,
        text: str,
        source: str,
        known: Known,
        default_interval: str,
        intervals: Collection[str],
    ) -> RulesAdapter:
        """The rules that a YAML text lists.

        Args:
            text: a list of rules; empty for none.
            source: what messages call it.
            known: the columns that there are.
            default_interval: of the rules that name none: the smallest window.
            intervals: all windows.

        Raises:
            ConfigError: a rule is wrong; the message names every fault and its line.
        """
        rules = read_rules(text, source, known, default_interval, intervals)
        return cls(rules, text, source)

    def columns(self, interval: str) -> Mapping[str, int]:
        """Column -> how many bars back it is looked at, for bars of `interval`."""
        backs: dict[str, int] = {}
        for rule in self._rules.get(interval, ()):
            for column, back in {**dict.fromkeys(rule.meta, 0), **rule.condition.columns}.items():
                backs[column] = max(back, backs.get(column, 0))
        return backs

    def evaluate(self, rows: Rows) -> list[Firing]:
        """What fires; a rule that fires for no row is left out."""
        frame = Frame(rows)
        firings = []
        for rule in self._rules.get(rows.interval, ()):
            if not rule.scope.is_for(rows.provider):
                continue
            fired = rule.scope.within(rows, np.flatnonzero(rule.condition.fires(frame)))
            if len(fired):
                firings.append(_firing(rule, frame, fired))
        return firings

    def close(self) -> None:
        """Nothing is held."""


def _firing(rule: Rule, frame: Frame, fired: NDArray[np.intp]) -> Firing:
    return Firing(
        name=rule.name,
        rows=fired,
        value=np.full(len(fired), rule.value),
        score=None if rule.score is None else np.full(len(fired), rule.score),
        meta={column: frame.column(column)[fired] for column in rule.meta},
        cooldown_ns=rule.cooldown_ns,
    )


def load_rules(
    path: Path, known: Known, default_interval: str, intervals: Collection[str]
) -> RulesAdapter:
    """The rules of a file; those built in if it is ``configs/rules.yaml`` and there is none.

    Args:
        path: the file.
        known: the columns that there are.
        default_interval: of the rules that name none: the smallest window.
        intervals: all windows.

    Raises:
        ConfigError: the file cannot be read, or a rule is wrong; the message names the file and of
            every fault the line, the rule, and what to write instead.
    """
    if path == _DEFAULT_PATH and not path.exists():
        text = resources.files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8")
        return RulesAdapter.of_text(text, BUILT_IN, known, default_interval, intervals)
    return RulesAdapter.of_text(read_text(path), str(path), known, default_interval, intervals)


def _open(
    settings: RulesAdapterSettings,
    known: Known,
    default_interval: str,
    intervals: Collection[str],
) -> RulesAdapter:
    return load_rules(settings.file, known, default_interval, intervals)


BACKEND = Backend("rules", "Rules over feature columns.", RulesAdapterSettings, _open)
