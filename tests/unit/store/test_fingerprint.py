from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from market_data_core.config import load_config
from market_data_core.errors import UsageError
from market_data_store import compute_config_fingerprint


def test_the_fingerprint_is_of_what_is_set() -> None:
    one = compute_config_fingerprint({"a": 1, "b": [1.5, None, {"c": Path("x")}], "d": {3, 1}})
    same = {"d": {1, 3}, "b": (1.5, None, {"c": "x"}), "a": 1}
    assert compute_config_fingerprint(same) == one
    assert one == "330dc869d13ce94a"
    assert compute_config_fingerprint(same | {"a": 2}) != one
    assert compute_config_fingerprint({"day": date(2025, 1, 2)}) == compute_config_fingerprint(
        {"day": "2025-01-02"}
    )
    with pytest.raises(UsageError, match=r"settings\.a\[1\] is a object"):
        compute_config_fingerprint({"a": [1, object()]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"password": "x"}, {"password": "y"}),
        ({"password": "x"}, {"password": ""}),
        ({"password": "x"}, {}),
        ({"a": {"api_key": 12}}, {"a": {"api_key": None}}),
        ({"uri": "postgresql://me:x@h/d"}, {"uri": "postgresql://me:y@h/d"}),
        ({"uri": "postgresql://me:x@h/d"}, {"uri": "postgresql://me@h/d"}),
        ({"uri": "pg://h/d?password=x&sslmode=require"}, {"uri": "pg://h/d?sslmode=require"}),
        ({"uri": "pg://h/d?sslmode=require&password=x"}, {"uri": "pg://h/d?sslmode=require"}),
        ({"uri": "pg://h/d?password=x"}, {"uri": "pg://h/d"}),
    ],
)
def test_secrets_are_not_in_the_fingerprint(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert compute_config_fingerprint(one) == compute_config_fingerprint(other)


def test_settings_have_a_fingerprint() -> None:
    def made(**overrides: object) -> str:
        return compute_config_fingerprint(load_config(None, overrides))

    plain = made(**{"store.uri": "postgresql://me@h/d"})
    assert made(**{"store.uri": "postgresql://me:secret@h/d"}) == plain
    assert made(**{"store.uri": "postgresql://me@h/other"}) != plain
    assert len(plain) == 16
    assert int(plain, 16) > 0
