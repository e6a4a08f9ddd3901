"""The settings of adapters, those of others included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import Field

from market_data_core import registry
from market_data_core._config_inference import AdapterSettings
from market_data_core.config import Settings, load_config
from market_data_core.contracts.inference import Firing
from market_data_core.errors import ConfigError
from market_data_pipeline.inference.rules_file import read_rules
from market_data_pipeline.signals.assembly import evaluator_of


class OtherSettings(AdapterSettings):
    """Of an adapter that somebody else has written."""

    depth: int = Field(default=3, ge=1)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ours, backends = registry.backend, registry.backends
    other = registry.Backend("other", "Another.", OtherSettings, lambda: None)
    more = {"inference": {"other"}}
    monkeypatch.setattr(
        registry, "backends", lambda stage: sorted({*backends(stage)} | more.get(stage, set()))
    )
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


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("{ model_path: models/up-1.2.onnx }", "up-1.2"),
        ("{ model_path: 'C:\\models\\up.onnx' }", "up"),
        ("{ model_path: 'my model.onnx', name: mine }", "mine"),
        ("{ enabled: false }", ""),
        ("{ enabled: false, model_path: 'models/my model.onnx' }", "my model"),
    ],
)
def test_a_model_s_signals_are_named_after_its_file(config: Path, adapter: str, name: str) -> None:
    assert load_config(write(config, f"onnx: {adapter}")).inference.adapters.onnx.name == name


@pytest.mark.parametrize("name", ["a b", "9", "-a", "n" * 65, "ü", "a\n"])
def test_rules_and_models_have_names_of_one_kind(config: Path, name: str) -> None:
    with pytest.raises(ConfigError) as of_model:
        load_config(write(config, f"onnx: {{ name: {json.dumps(name)} }}"))
    rule = f"- {{name: {json.dumps(name)}, condition: close > 0, signal: 1}}"
    with pytest.raises(ConfigError) as of_rule:
        read_rules(rule, "rules.yaml", ["close"], "2s", ["2s"])
    why = "is not valid: 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or '_'"
    assert str(of_model.value).endswith(f"onnx.name: {name!r} {why}")
    assert str(of_rule.value).endswith(f"name: {name!r} {why}")


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
        ("sklearn: { name: 'a b' }", r"sklearn\.name: 'a b' is not valid: 1 to 64 letters"),
        (
            "onnx: { enabled: true, model_path: 'm/my model.onnx' }",
            r"onnx\.name: is not given, .*'my model' is not",
        ),
        (
            "onnx: { enabled: true, model_path: .onnx }",
            r"onnx\.name: is not given, .*'\.onnx' is not valid",
        ),
        (
            "onnx: { enabled: true, model_path: 9.onnx }",
            r"line 3: .*'9' is not valid: .*'; give one",
        ),
        (
            f"onnx: {{ enabled: true, model_path: {'m' * 65}.onnx }}",
            r"onnx\.name: is not given, .* 1 to 64 letters",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(config: Path, adapters: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(config, adapters))


class Other:
    """An adapter that somebody else has written."""

    name, version, cooldown_ns = "other", "1", 0

    def __init__(self, *names: str) -> None:
        self.names = names

    def columns(self, _: str) -> dict[str, int]:
        return {"close": 0}

    def evaluate(self, _: object) -> list[Firing]:
        return []

    def close(self) -> None:
        """Nothing is held."""


def test_the_signals_of_others_have_names_like_ours(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "rules: { enabled: false }\n    other: { enabled: true }"
    settings, ours = load_config(write(config, text)), registry.backend
    names: tuple[str, ...] = ("fine", "my name")
    other = registry.Backend("other", "Another.", OtherSettings, lambda *_: Other(*names))
    monkeypatch.setattr(
        registry, "backend", lambda stage, name: other if name == "other" else ours(stage, name)
    )
    with pytest.raises(
        ConfigError, match=r"adapters\.other: a signal's name 'my name' is not valid"
    ):
        evaluator_of(settings)
    names = ("fine",)
    evaluator = evaluator_of(settings)
    assert evaluator is not None
    assert evaluator.names == names
    evaluator.close()
