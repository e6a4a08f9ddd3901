"""Settings of a coordinator from the environment."""

from __future__ import annotations

import pytest

from market_data_core.errors import ConfigError
from market_data_store.coordinator import CoordinatorRuntimeSettings


def test_defaults() -> None:
    settings = CoordinatorRuntimeSettings()
    assert settings.coordinator_capacity == 10_000
    assert settings.coordinator_workers == 4


def test_the_environment_comes_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDS_COORDINATOR_CAPACITY", " 500 ")
    monkeypatch.setenv("MDS_COORDINATOR_FLUSH_INTERVAL", "0.5")
    monkeypatch.setenv("MDS_COORDINATOR_WORKERS", "")
    settings = CoordinatorRuntimeSettings(coordinator_overflow="error")
    assert settings.coordinator_capacity == 500
    assert settings.coordinator_flush_interval == 0.5
    assert settings.coordinator_workers == 4
    assert settings.coordinator_overflow == "error"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MDS_COORDINATOR_CAPACITY", "many", "MDS_COORDINATOR_CAPACITY: .*got 'many'"),
        ("MDS_COORDINATOR_CAPACITY", "0", "MDS_COORDINATOR_CAPACITY: .*greater than or equal"),
        ("MDS_COORDINATOR_CAPACTY", "5", "did you mean 'MDS_COORDINATOR_CAPACITY'"),
        ("MDS_COORDINATOR_LOW_WATERMARK", "0.9", "has to be below coordinator_high_watermark"),
        ("MDS_COORDINATOR_OVERFLOW", "panic", "MDS_COORDINATOR_OVERFLOW: 'panic' is not valid"),
    ],
)
def test_errors_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        CoordinatorRuntimeSettings()
