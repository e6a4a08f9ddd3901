"""The settings of adapters, those of others included."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from market_data_core import registry
from market_data_core._config_inference import AdapterSettings
from market_data_core.config import Settings, load_config
from market_data_core.errors import ConfigError


class OtherSettings(AdapterSettings):
    """Of an adapter that somebody else has written."""

    depth: int = Field(default=3, ge=1)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ours, backends = registry.backend, registry.backends
    other = registry.Backend("other", "Another.", OtherSettings, lambda: None)
    monkeypatch.setattr(registry, "backends", lambda stage: sorted({*backends(stage), "other"}))
    monkeypatch.setattr(
        registry, "backend", lambda stage, name: other if name == "other" else ours(stage, name)
    )
    return tmp_path / "streaming.yaml"


def write(path: Path, adapters: str) -> Path:
    path.write_text(f"inference:\n  adapters:\n    {adapters}\n")
    return path


def test_an_adapter_of_others_has_its_own_settings(config: Path) -> None:
    settings = load_config(write(config, "other: { enabled: true, depth: 4 }"))
    found = settings.inference.adapters.by_name()
    assert list(found) == ["rules", "sklearn", "onnx", "other"]
    assert found["other"] == OtherSettings(enabled=True, depth=4)
    assert [name for name, each in found.items() if each.enabled] == ["rules", "other"]
    assert settings.redacted()["inference"]["adapters"]["other"] == {"enabled": True, "depth": 4}
    assert Settings.model_validate(settings.model_dump()) == settings


def test_an_adapter_is_enabled_from_the_command_line(config: Path) -> None:
    overrides = {"inference.adapters.other.enabled": True}
    settings = load_config(write(config, "rules: { enabled: false }"), overrides)
    found = settings.inference.adapters.by_name()
    assert [name for name, each in found.items() if each.enabled] == ["other"]


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("other: { depth: 0 }", r"line 3: .*\.other\.depth: should be greater than or equal to 1"),
        ("other: { dept: 1 }", r"\.other\.dept: unknown key; did you mean 'depth'\?"),
        ("othre: { depth: 1 }", r"adapters\.othre: unknown key; did you mean 'other'\?"),
        ("other: 3", r"adapters\.other: must be a group of settings"),
        ("sklearn: { symbols: [A*B] }", r"symbols\[0\]: 'A\*B': a \* may only stand at the end"),
        ("onnx: { providers: ['a b'] }", r"providers\[0\]: provider name 'a b' is not valid"),
        ("sklearn: { cooldown: 5 }", r"cooldown: should be a valid string"),
        ("sklearn: { name: 'a b' }", r"name: string should match pattern"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(config: Path, adapters: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(config, adapters))
