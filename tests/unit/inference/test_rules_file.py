"""A file of rules: how it may be written, and what is said where it is wrong."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import ConfigError
from market_data_pipeline.inference.adapters.rules import RulesAdapter
from market_data_pipeline.inference.rules_file import RULES_MAX

COLUMNS = ("close", "rsi", "vwap")


def rules(text: str) -> RulesAdapter:
    return RulesAdapter.of_text(text, "rules.yaml", COLUMNS, "2s", ["2s", "60s"])


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        rules(text)
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n", "[]"])
def test_a_file_may_be_empty(text: str) -> None:
    adapter = rules(text)
    assert adapter.names == ()
    assert adapter.columns("2s") == {}


def test_the_version_is_that_of_the_text() -> None:
    text = "- {name: a, condition: close > 0, signal: 1}\n"
    assert rules(text).version == hashlib.sha256(text.encode()).hexdigest()
    assert rules(text).text == text
    assert rules(text + "# more").version != rules(text).version


@pytest.mark.parametrize(
    "text",
    [
        "[{name: a, condition: close > 0,\n signal: 1}]",
        "# first\n--- # begins\n- name: a\n  condition: >\n    close\n    > 0\n  signal: 1\n",
        "  - name: a\n    condition: |\n      close > 0\n    signal: 1\n    score:\n",
        "- &a {name: a, condition: close > 0, signal: 1}\n- {<<: *a, name: b, enabled: false}",
    ],
)
def test_lists_in_any_notation(text: str) -> None:
    adapter = rules(text)
    assert adapter.names == ("a",)
    assert adapter.columns("2s") == {"close": 0}


GOOD = "- {name: good, condition: close > 0, signal: 1}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "- {name: a, condition: rsi > 1 or rsj > 1, signal: 1}",
            "line 2: rule 'a': condition: position 12 (near 'rsj > 1'): unknown column 'rsj'; "
            "did you mean 'rsi'?",
        ),
        (
            "- name: a\n  signal: 1\n  condition: >\n    rsi > 1 or\n    rsi + 1",
            "line 4: rule 'a': condition: position 12 (near 'rsi + 1'): a condition is needed",
        ),
        ("- name: a\n  condition: rsi > 1", "line 2: rule 'a': signal: is required"),
        (
            "- name: a\n  condition: rsi > 1\n  signal: 1\n  scroe: 1",
            "line 5: rule 'a': scroe: unknown key; did you mean 'score'?",
        ),
        ("- {name: a b, condition: rsi > 1, signal: 1}", "'a b' is not valid: 1 to 64 letters"),
        ("- {name: 3, condition: rsi > 1, signal: 1}", "rule number 2: name: should be a valid"),
        ("- {condition: rsi > 1, signal: 1}", "line 2: rule number 2: name: is required"),
        ("- {name: good, condition: rsi > 1, signal: 1}", "line 2: rule 'good': name: is also"),
        ("- {name: a, condition: 70, signal: 1}", "condition: should be a valid string, got 70"),
        ("- {name: a, condition: rsi > 1, signal: yes}", "signal: must be a number, got true"),
        ("- {name: a, condition: rsi > 1, signal: .inf}", "signal: should be a finite number"),
        ("- {name: a, condition: rsi > 1, signal: up}", "signal: should be a valid number"),
        ("- {name: a, condition: rsi > 1, signal: 1, score: 2}", "score: should be less than"),
        ("- {name: a, condition: rsi > 1, signal: 1, score: no}", "score: must be a number"),
        (
            "- name: a\n  condition: rsi > 1\n  signal: 1\n  interval: 5m",
            "line 5: rule 'a': interval: there is no window of 5m; ",
        ),
        (
            "- {name: a, condition: rsi > 1, signal: 1, interval: 1x}",
            "interval: interval '1x' is not valid",
        ),
        (
            "- {name: a, condition: rsi > 1, signal: 1, cooldown: -5m}",
            "cooldown: interval '-5m' is not valid",
        ),
        ("- {name: a, condition: rsi > 1, signal: 1, meta: [rsj]}", "meta: unknown column 'rsj'"),
        ("- {name: a, condition: rsi > 1, signal: 1, meta: rsi}", "must be a list, such as [rsi]"),
        ("- {name: a, condition: rsi > 1, signal: 1, meta: [rsi, rsi]}", "given twice: rsi"),
        ("- {name: a, condition: rsi > 1, signal: 1, symbols: [A*B]}", "may only stand at the end"),
        ("- {name: a, condition: rsi > 1, signal: 1, symbols: ['']}", "'' is not a symbol"),
        ("- {name: a, condition: rsi > 1, signal: 1, symbols: ['${X}']}", "are not filled in"),
        ("- {name: a, condition: rsi > 1, signal: 1, providers: [a b]}", "'a b' is not valid"),
        ("- {name: a, condition: rsi > 1, signal: 1, providers: [':official']}", "is not a pro"),
        ("- {name: a, condition: rsj > 1, signal: 1, enabled: false}", "unknown column 'rsj'"),
        ("- just text", "line 2: rule number 2: must be a group of settings (key: value)"),
        ("-", "line 2: rule number 2: must be a group of settings (key: value)"),
        ("- {name: a, condition: 'rsi > ${X}', signal: 1}", "not filled in here"),
        ("- {name: a, name: b}", "line 2: rule 'a': name: given twice, first on line 2; keep one"),
        ("- [a, b", "line 2: not valid YAML"),
        ("---\n- a", "not valid YAML"),
        ("a: 1", "not valid YAML"),
    ],
)
def test_errors_name_line_rule_and_key(text: str, told: str) -> None:
    message = refusal(GOOD + text)
    assert message.startswith("rules.yaml: ")
    assert told in message


@pytest.mark.parametrize("text", ["a: 1", "rules:\n- {name: a}", "text", "a: 1\na: 2"])
def test_the_file_must_be_a_list(text: str) -> None:
    assert "line 1: must be a list of rules, each beginning with '- name:'" in refusal(text)


@given(st.text("-{}[]:,#&*'\"|> \nab$!", max_size=40))
def test_any_text_is_a_list_of_rules_or_refused(text: str) -> None:
    try:
        names = rules(text).names
    except ConfigError as error:
        names = (str(error),)
    assert not names or names[0].startswith("rules.yaml: ")


def test_all_faults_are_told_at_once() -> None:
    lines = refusal(GOOD + "- {name: a, condition: rsi >, signal: x}\n" + GOOD).splitlines()
    assert lines[0] == "rules.yaml: 3 problems"
    assert [re.sub(r":.*", "", line).strip() for line in lines[1:]] == [
        "line 2",
        "line 2",
        "line 3",
    ]


def test_the_number_of_rules_is_bounded() -> None:
    many = "".join(
        f"- {{name: r{i}, condition: close > {i}, signal: 1}}\n" for i in range(RULES_MAX + 1)
    )
    assert f"there are more than {RULES_MAX} rules" in refusal(many)


def test_the_secrets_of_nobody_are_in_messages() -> None:
    message = refusal("- {name: a, condition: rsi > 1, signal: 'postgresql://u:hidden@h/d'}")
    assert "hidden" not in message
