"""A file of rules: a list, checked as a whole, its faults told with their lines."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from market_data_core._config_inference import ProviderPattern, SymbolPattern
from market_data_core._config_problems import problems_of, shorten
from market_data_core._config_types import check_signal_name
from market_data_core._config_yaml import Document, Problem, dotted, parse_yaml
from market_data_core._suggest import did_you_mean
from market_data_core.config import (
    Interval,
    SettingsModel,
    check_distinct,
    problems_text,
)
from market_data_core.errors import ConfigError
from market_data_core.intervals import canonical_interval, parse_interval
from market_data_pipeline.inference.expression import (
    Condition,
    ConditionError,
    Known,
    compile_condition,
    unknown_column,
)
from market_data_pipeline.inference.scope import FeedScope

RULES_MAX = 1_000
"""Most rules in one file."""


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        msg = f"must be a number, got {str(value).lower()}"
        raise ValueError(msg)  # noqa: TRY004 - other errors are not gathered
    return value


def _list(value: Any) -> Any:
    if isinstance(value, str):
        msg = f"must be a list, such as [{value}]"
        raise ValueError(msg)  # noqa: TRY004 - likewise
    return value


def _literal(value: Any) -> Any:
    if isinstance(value, str) and "${" in value:
        msg = f"{value!r}: variables are not filled in here, so that the file alone decides"
        raise ValueError(msg)
    return value


_Symbol = Annotated[SymbolPattern, BeforeValidator(_literal)]
_LISTED = (BeforeValidator(_list), AfterValidator(check_distinct))


class RuleSettings(SettingsModel):
    """One rule, as it is written."""

    name: Annotated[str, AfterValidator(check_signal_name)] = Field(
        description="The name of its signals."
    )
    condition: str = Field(description="When it fires.")
    signal: Annotated[float, BeforeValidator(_number)] = Field(
        description="The value of its signals."
    )
    score: Annotated[float | None, BeforeValidator(_number)] = Field(
        default=None, ge=0, le=1, description="The score of its signals."
    )
    interval: Interval | None = Field(
        default=None, description="Bars it looks at; none: those of the smallest window."
    )
    cooldown: Interval | None = Field(
        default=None, description="After a signal, none for the same symbol within this time."
    )
    symbols: Annotated[tuple[_Symbol, ...], *_LISTED] = Field(
        default=(), description="Symbols it is for; none: all."
    )
    providers: Annotated[tuple[ProviderPattern, ...], *_LISTED] = Field(
        default=(), description="Feeds it is for; none: all, but not vendors' own bars."
    )
    meta: Annotated[tuple[str, ...], *_LISTED] | None = Field(
        default=None, description="Columns told in the metadata; none: the condition's."
    )
    enabled: bool = Field(default=True, description="Whether it is evaluated.")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule that is evaluated.

    Attributes:
        name: of its signals.
        condition: when it fires.
        value: of its signals.
        score: of its signals; None if they have none.
        interval: of the bars it looks at, canonical.
        cooldown_ns: after a signal, none for the same symbol within this event time.
        scope: whose bars it looks at.
        meta: columns told in the metadata.
    """

    name: str
    condition: Condition
    value: float
    score: float | None
    interval: str
    cooldown_ns: int
    scope: FeedScope
    meta: tuple[str, ...]


def read_rules(
    text: str, source: str, columns: Known, default_interval: str, intervals: Collection[str]
) -> tuple[Rule, ...]:
    """The rules that `text` lists and that are enabled; all are checked.

    Args:
        text: YAML; empty for no rules. No variables are filled in.
        source: what messages call it, such as the file's path.
        columns: those that conditions may name.
        default_interval: of the rules that name none.
        intervals: of the bars that there are.

    Raises:
        ConfigError: the message names of every fault the line, the rule, the key, in conditions
            the position, and what to write instead.
    """
    document = parse_yaml(text, None, listed=True)  # the same text is the same rules anywhere
    reader = _Reader(document, columns, default_interval, intervals)
    rules = reader.read()
    if reader.problems:
        raise ConfigError(problems_text(Path(source), document, reader.problems))
    return tuple(rule for rule in rules if rule)


class _Reader:
    """Goes through the list, and gathers what is wrong."""

    def __init__(
        self,
        document: Document,
        columns: Known,
        default_interval: str,
        intervals: Collection[str],
    ) -> None:
        self.problems: list[Problem] = []
        self._document, self._columns = document, columns
        self._default = canonical_interval(default_interval)
        self._intervals = [canonical_interval(interval) for interval in intervals]
        self._lines: dict[str, int | None] = {}

    def read(self) -> list[Rule | None]:
        """Every rule; None in place of those that are disabled or wrong."""
        for problem in self._document.problems:
            self._add(problem.path, problem.text, problem.line)
        listed = self._document.items
        if listed is None:
            return []
        if not isinstance(listed, list):
            self._add((), "must be a list of rules, each beginning with '- name:'", 1)
            return []
        if len(listed) > RULES_MAX:
            self._add((RULES_MAX,), f"there are more than {RULES_MAX} rules")
            return []
        return [self._rule(index, given) for index, given in enumerate(listed)]

    def _add(self, path: tuple[str | int, ...], text: str, line: int | None = None) -> None:
        """Note a problem of what stands at `path`, which begins with the number of a rule."""
        line = line or self._document.line_of(path)
        if path:
            number, below = path[0], path[1:]
            rule = f"rule {self._called(number)}" if isinstance(number, int) else number
            text = ": ".join([rule, *([dotted(below)] if below else []), text])
        self.problems.append(Problem((), text, line))

    def _called(self, number: int) -> str:
        listed = self._document.items
        given = listed[number] if isinstance(listed, list) and number < len(listed) else None
        name = given.get("name") if isinstance(given, dict) else None
        return shorten(name) if isinstance(name, str) else f"number {number + 1}"

    def _rule(self, number: int, given: object) -> Rule | None:
        if not isinstance(given, dict):
            self._add((number,), f"must be a group of settings (key: value), got {shorten(given)}")
            return None
        values = {key: value for key, value in given.items() if value is not None}
        condition = self._condition(number, values.get("condition"))
        try:
            settings = RuleSettings.model_validate(values)
        except ValidationError as error:
            for problem in problems_of(error, RuleSettings, (number,)):
                self._add(problem.path, problem.text)
            return None
        for text, key in self._mistakes(settings, number):
            self._add((number, key), text)
        if condition is None or not settings.enabled:
            return None
        return self._made(settings, condition)

    def _condition(self, number: int, text: object) -> Condition | None:
        if not isinstance(text, str):
            return None
        try:
            return compile_condition(text, self._columns)
        except ConditionError as error:
            self._add((number, "condition"), str(error))
            return None

    def _mistakes(self, settings: RuleSettings, number: int) -> Iterator[tuple[str, str]]:
        """What is wrong with a rule's settings, seen with the rest, and under which key."""
        line = self._document.line_of((number, "name"))
        if settings.name in self._lines:
            first = self._lines[settings.name]
            yield f"is also the name of a rule on line {first}; give each its own", "name"
        self._lines.setdefault(settings.name, line)
        computed = FeedScope.of(settings.providers, settings.symbols).computed
        if settings.interval and computed and settings.interval not in self._intervals:
            meant = did_you_mean(settings.interval, self._intervals)
            yield f"there is no window of {settings.interval}; {meant}", "interval"
        for name in settings.meta or ():
            if unknown := unknown_column(name, self._columns):
                yield unknown, "meta"

    def _made(self, settings: RuleSettings, condition: Condition) -> Rule:
        return Rule(
            name=settings.name,
            condition=condition,
            value=settings.signal,
            score=settings.score,
            interval=settings.interval or self._default,
            cooldown_ns=parse_interval(settings.cooldown) if settings.cooldown else 0,
            scope=FeedScope.of(settings.providers, settings.symbols),
            meta=tuple(condition.columns) if settings.meta is None else settings.meta,
        )
