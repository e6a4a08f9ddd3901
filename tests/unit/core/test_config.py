"""What a configuration file may say, and what is said about one that is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from market_data_core import config, registry
from market_data_core._config_yaml import expand
from market_data_core.config import MicroBatchSettings, ProducerSettings, Settings, load_config
from market_data_core.errors import ConfigError, UsageError

Load = Callable[..., Settings]
SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "streaming.yaml"


class TickSettings(ProducerSettings):
    """A stand-in for a provider's own settings."""

    tick_rate: float = Field(default=1.0, gt=0, description="Ticks per second and symbol.")
    price_volatility: float = Field(default=0.02, ge=0, description="Daily deviation.")


@pytest.fixture(autouse=True)
def _providers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "synthetic": registry.Backend("synthetic", "", TickSettings, object),
        "mock": registry.Backend("mock", "", None, object),
    }

    def backend(stage: str, name: str) -> registry.Backend:
        assert stage == "provider"
        if name not in found:
            msg = f"unknown provider {name!r}; did you mean 'synthetic'?"
            raise UsageError(msg)
        return found[name]

    monkeypatch.setattr(registry, "backend", backend)
    monkeypatch.setattr(registry, "backends", lambda _stage: sorted(found))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)

    def write_and_load(text: str, **overrides: object) -> Settings:
        path = Path("streaming.yaml")
        path.write_text(text, encoding="utf-8")
        return load_config(path, {key.replace("__", "."): v for key, v in overrides.items()})

    return write_and_load


def refused(load: Load, text: str, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, **overrides)
    return str(caught.value)


def test_the_shipped_file_says_the_defaults() -> None:
    shipped = load_config(SHIPPED)
    assert set(shipped.producers) == {"synthetic"}
    assert shipped.producers["synthetic"].symbols == ("SPY", "AAPL", "MSFT")
    assert shipped.model_copy(update={"producers": {}}).model_dump() == Settings().model_dump()


def test_without_a_path_the_folder_is_searched(load: Load, tmp_path: Path) -> None:
    assert load_config(None).model_dump() == load("").model_dump()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/streaming.yaml").write_text("bus: {partitions: 3}")
    assert load_config(None).bus.partitions == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "bus: {type: redis}",
        "bus:\n",
        "store:\nbus:\n  partitions:\n",
        "version: 1",
    ],
)
def test_every_key_has_a_default(load: Load, text: str) -> None:
    settings = load(text)
    assert settings.bus.partitions == 8
    assert settings.store.uri == "sqlite:///.mdp/store.db"


def test_an_unknown_key_is_named_with_line_and_nearest(load: Load) -> None:
    message = refused(load, "version: 1\nmicro_batch:\n  # wrong:\n  windows_ms: 3\n")
    assert "streaming.yaml: line 4: micro_batch.windows_ms: unknown key" in message
    assert "did you mean 'window_ms'?" in message


def test_all_problems_are_named_at_once_in_order(load: Load) -> None:
    message = refused(
        load,
        """
bus:
  partitions: 2000
  type: redsi
  retention: {max_bytes: 20XB}
producers:
  synthetic: {tick_rat: 2, tick_rate: -1}
  syntetic: {}
features:
  windows: [{name: vwap_1m, horizon: 30s}]
telemetry: {metrics_prot: 1}
store: {uri: "${NOT_SET}/x"}
""",
    )
    lines = message.splitlines()
    assert lines[0] == "streaming.yaml: 9 problems"
    wanted = [
        r"line 3: bus.partitions: should be less than or equal to 1024, got 2000",
        r"line 4: bus.type: 'redsi' is not valid; did you mean 'redis'\? valid: embedded, redis",
        r"line 5: bus.retention.max_bytes: '20XB' is not a size",
        r"line 7: producers.synthetic.tick_rate: should be greater than 0, got -1",
        r"line 7: producers.synthetic.tick_rat: unknown key; did you mean 'tick_rate'",
        r"line 8: producers.syntetic: unknown provider 'syntetic'; did you mean 'synthetic'",
        r"line 10: features.windows\[0\]: name 'vwap_1m' is not a family and the horizon",
        r"line 11: telemetry.metrics_prot: unknown key; did you mean 'metrics_port'",
        r"line 12: store.uri: environment variable NOT_SET is not set",
    ]
    for line, pattern in zip(lines[1:], wanted, strict=True):
        assert re.match(rf"  {pattern}", line), (line, pattern)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bus: {partitions: 1}\nbus: {partitions: 2}", "line 2: bus: given twice, first on line 1"),
        ("- a\n- b", "line 1: must be a mapping of settings"),
        ("bus: [1, 2", "line 1: not valid YAML"),
        ("bus: redis", "line 1: bus: must be a group of settings (key: value), got 'redis'"),
        ("producers: [a]", "line 1: producers: must be a group of settings"),
        ("a: !!python/object/apply:os.system [id]", "line 1: a: unknown key"),
        ("bus: {partitions: !!python/name:os.system ''}", "line 1: bus.partitions: cannot be read"),
        ("producers: {synthetic: {symbols: [SPY, ON]}}", "symbols[1]: should be a valid string"),
        ("producers: {synthetic: {symbols: [SPY, spy]}}", "given twice: SPY"),
        ("producers: {synthetic: {name: 'a|b'}}", "provider name 'a|b' is not valid"),
        ("producers: {synthetic: {name: x:official}}", "not ending in ':official'"),
        ("producers: {synthetic: {tick_rate: .nan}}", "synthetic.tick_rate: should be a finite"),
        ("producers: {mock: {tick_rate: 1}}", "producers.mock.tick_rate: unknown key"),
        (
            "producers: {synthetic: {}, mock: {name: synthetic}}",
            "is also the name of producers.syn",
        ),
        ("bus: {partitions: 0}", "got 0"),
        ("bus: {redis: {stream: mdp.bars}}", "given twice: mdp.bars"),
        ("bus: {redis: {uri: 'no uri'}}", "line 1: bus.redis.uri: 'no uri' is not a URI"),
        ("micro_batch: {windows: [2s, 2000ms]}", "given twice: 2s"),
        ("micro_batch: {windows: [0s]}", "interval '0s' is not valid"),
        ("micro_batch: {windows: [8d]}", "longer than 7d"),
        ("micro_batch: {windows: [1s], window_ms: 1}", "window_ms and windows are both given"),
        ("micro_batch: {window_ms: 0.5}", "micro_batch.window_ms"),
        ("micro_batch: {revise_horizon_ms: 5500}", "max_future_ms + allow_late_ms (5500) must be"),
        ("micro_batch: {lease_ms: 500}", "commit_interval_ms (500) must be less than lease_ms"),
        ("version: 2", "version: 2 is not valid; valid: 1"),
        ("a: &x [*x]", "nested too deep"),
        ("? [1]\n: 2", "line 1: a key must be a plain name"),
        ("bus: {type: '\\x00'}\n\x00", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_said(load: Load, text: str, said: str) -> None:
    assert said in refused(load, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 3\)"):
        load_config(tmp_path / "latin.yaml")


def test_aliases_and_merged_mappings(load: Load) -> None:
    settings = load(
        "producers:\n"
        "  mock: &base {symbols: [spy], enabled: false}\n"
        "  synthetic: {<<: *base, enabled: true}\n"
    )
    assert settings.producers["synthetic"].symbols == ("SPY",)
    assert list(settings.enabled_producers()) == ["synthetic"]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}", "one"),
        ("x${A}y$${A}$A$", "xoney${A}$A$"),
        ("${NO:-d}", "d"),
        ("${NO:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${NO:-${A}/${NO:-z}}", "one/z"),
        ("${A:-x}", "one"),
        ("${A:?m}", "one"),
        ("${HAS}", "${A}"),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    assert expand(text, {"A": "one", "EMPTY": "", "HAS": "${A}"}) == expanded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${NO}", "NO is not set; set it or write"),
        ("${NO:?say where}", "NO is not set: say where"),
        ("${EMPTY:?}", "EMPTY is not set: it is required"),
        ("${A", "not closed"),
        ("${A-x}", "is not understood"),
        ("${}", "is not understood"),
    ],
)
def test_expansion_that_fails(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        expand(text, {"A": "one", "EMPTY": ""})


def test_variables_fill_in_numbers_too(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_PARTITIONS", "12")
    assert load("bus: {partitions: '${MDP_PARTITIONS}'}").bus.partitions == 12


def test_where_the_store_is(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    given = 'store: {uri: "${MDP_STORE_URI:-}"}'
    assert load(given).store.uri == "sqlite:///.mdp/store.db"
    monkeypatch.setenv("MDP_HOME", "/data")
    assert load(given).store.uri == "sqlite:////data/store.db"
    assert load(given).bus.embedded.path == Path("/data/bus")
    monkeypatch.setenv("MDS_DSN", "postgresql://db/mds")
    assert load(given).store.uri == "postgresql://db/mds"
    monkeypatch.setenv("MDP_STORE_URI", "sqlite:///own.db")
    assert load(given).store.uri == "sqlite:///own.db"
    assert load("").store.uri == "sqlite:///own.db"


def test_overrides_go_over_the_file(load: Load) -> None:
    text = "bus: {partitions: 4}\nmicro_batch: {window_ms: 500}\n"
    settings = load(text, bus__partitions=2, bus__type=None, micro_batch__windows=["1m", "1500ms"])
    assert settings.bus.partitions == 2
    assert settings.bus.type == "embedded"
    assert settings.micro_batch.windows_ns == (1_500_000_000, 60_000_000_000)
    assert (
        load("micro_batch: {windows: [1s]}", micro_batch__window_ms=7).micro_batch.base_ns
        == 7_000_000
    )
    message = refused(load, text, bus__partitions=0, producers__synthetic__tick_rate=-1)
    assert "on the command line: bus.partitions: should be greater" in message
    assert "on the command line: producers.synthetic.tick_rate" in message


def test_windows_and_their_base() -> None:
    assert MicroBatchSettings().windows_ns == (2_000_000_000,)
    several = MicroBatchSettings(windows=("90s", "60s", "1h"))
    assert several.windows == ("90s", "1m", "1h")
    assert several.base_ns == 30_000_000_000
    with pytest.raises(ValidationError):
        several.window_ms = 5


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 kb", 1500),
        ("7", 7),
        (7, 7),
        ("2G", 2 * 10**9),
    ],
)
def test_sizes(load: Load, text: object, size: int) -> None:
    assert load(f"bus: {{retention: {{max_bytes: {text}}}}}").bus.retention.max_bytes == size


def test_producers_bear_their_kind_as_name(load: Load) -> None:
    settings = load("producers: {synthetic: {tick_rate: 5}, mock: {name: m1, enabled: false}}")
    synthetic = settings.producers["synthetic"]
    assert isinstance(synthetic, TickSettings)
    assert (synthetic.name, synthetic.tick_rate) == ("synthetic", 5.0)
    assert settings.producer("mock").name == "m1"
    assert Settings().producer("synthetic") == TickSettings(name="synthetic")
    assert settings.model_dump()["producers"]["synthetic"]["tick_rate"] == 5.0


def test_a_producer_that_is_only_named_runs(load: Load) -> None:
    settings = load("producers:\n  synthetic:\n  mock: {symbols: }\n")
    assert list(settings.enabled_producers()) == ["synthetic", "mock"]
    assert settings.producers["mock"].symbols == ()


def test_secrets_are_not_shown(load: Load) -> None:
    settings = load(
        "store: {uri: 'postgresql://me:p@ss/w@db/x'}\nbus: {redis: {uri: 'redis://:s3cret@h'}}"
    )
    shown = json.dumps(settings.redacted())
    assert "postgresql://me:***@db/x" in shown
    assert "redis://:***@h" in shown
    assert "s3cret" not in shown
    assert "w@db" not in shown
    assert "s3cret" not in refused(load, "store: {uri: 'me:s3cret@h'}\nbus: 'redis://a:s3cret@h'")


def test_every_setting_is_documented() -> None:
    docs = {doc.key: doc for doc in config.document()}
    assert all(doc.description and doc.type and doc.default for doc in docs.values())
    assert docs["bus.type"].type == "embedded | redis | kafka"
    assert docs["bus.retention.max_bytes"].default == "20GB"
    assert docs["bus.embedded.path"].default == "${MDP_HOME:-.mdp}/bus"
    assert docs["micro_batch.window_ms"].default == "2000"
    assert docs["features.windows[].name"].default == "required"
    assert docs["producers.synthetic.tick_rate"].type == "float"
    assert _keys(Settings().model_dump(), "") - {"producers"} <= set(docs)


def _keys(data: dict[str, Any], prefix: str) -> set[str]:
    keys: set[str] = set()
    for key, value in data.items():
        below = isinstance(value, dict) and value
        keys |= _keys(value, f"{prefix}{key}.") if below else {f"{prefix}{key}"}
    return keys


def test_the_readers_copy_can_be_changed(tmp_path: Path) -> None:
    copy = tmp_path / "own.yaml"
    shutil.copy(SHIPPED, copy)
    text = copy.read_text(encoding="utf-8")
    copy.write_text(text.replace("type: embedded  ", "type: redis  "), encoding="utf-8")
    assert load_config(copy).bus.type == "redis"
