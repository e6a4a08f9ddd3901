"""What is taken out of texts, and what stays."""

from __future__ import annotations

import pytest

from market_data_core.redaction import redact, redact_value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("redis://:p@h:6379/0", "redis://:***@h:6379/0"),
        ("x postgresql://u:p@w/d@h/db y", "x postgresql://u:***@h/db y"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("host=h password=p@w dbname=d", "host=h password=*** dbname=d"),
        ('{"api_key": "abc"}', '{"api_key": "***"}'),
        ("wss://h/?auth_token=abc&x=1", "wss://h/?auth_token=***&x=1"),
        ("Authorization: Bearer abcdef123", "Authorization: Bearer ***"),
        ("partition=3 token=17 n=4", "partition=3 token=17 n=4"),
        ("token=abc", "token=***"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_values_at_any_depth() -> None:
    value = {"redis": {"password": "p", "uri": "redis://:p@h"}, "list": ["a://b:c@d"], "token": 5}
    assert redact_value("", value) == {
        "redis": {"password": "***", "uri": "redis://:***@h"},
        "list": ["a://b:***@d"],
        "token": 5,
    }
