"""``mdp verify --signals``: what live workers and recordings gave, worked out once more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.integration.signals_place import (
    CLOSING,
    END,
    LATE,
    RULES,
    START,
    SYMBOLS,
    TICKS,
    Place,
    number,
    use,
)
from typer.testing import CliRunner

from market_data_core.config import Settings
from market_data_core.errors import MdpError, ModelError, UsageError
from market_data_core.events import Tick, format_ts
from market_data_core.intervals import NS_PER_S
from market_data_pipeline import _verify_signals_bars
from market_data_pipeline._verify_signals import Reached, verify_signals
from market_data_pipeline.backends import Backends
from market_data_pipeline.cli import app
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.inference.guard import Said
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.rows import SelectedRows
from market_data_pipeline.verification import Scope


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a live run with bars that came late, and were restated."""
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = use(monkeypatch, folder)
        place.live(TICKS[:480], LATE, TICKS[480:], CLOSING)
    return folder


@pytest.fixture
def live(lived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(lived, tmp_path / "live")
    return use(monkeypatch, tmp_path / "live")


def test_live_and_recorded_signals_are_the_same(
    live: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late event has restated bars of the live run, which took some signals back."""
    assert live.store("SELECT count(*) FROM signals WHERE state = 'retracted'")[0][0] > 0
    assert {key[3] for key in live.active()} == {"up", "down", "seldom", "wide"}
    assert live.agree() == len(live.active())

    recorded = use(monkeypatch, tmp_path / "recorded")
    lines = [
        json.dumps(
            {"ver": 1, "provider": "feed", "symbol": t.symbol, "src_ts": format_ts(t.src_ts)}
            | dict.fromkeys("ohlc", t.price) | {"v": t.size, "seq": t.seq}
        )
        for t in (*TICKS[:480], *LATE, *TICKS[480:], *CLOSING)
    ]  # fmt: skip
    Path("ticks.ndjson").write_text("\n".join(lines), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", "ticks.ndjson", "--config", "config.yaml"])
    assert done.exit_code == 0, done.output
    assert recorded.active() == live.active()
    assert recorded.store("SELECT count(*) FROM signals WHERE state = 'retracted'") == [(0,)]
    assert recorded.agree("--to", format_ts(END + 1)) == len(recorded.active())


def pick(live: Place, name: str) -> tuple[str, int, float]:
    """Symbol, time and value of some signal of a name."""
    rows = live.store(
        "SELECT symbol, ts, value FROM signals WHERE name = ? AND state = 'active' ORDER BY 1, 2",
        [name],
    )
    found: tuple[str, int, float] = rows[len(rows) // 2]
    return found


@pytest.mark.parametrize(
    ("change", "problem", "column"),
    [
        ("UPDATE signals SET value = value + 1e-9", "differs", "value"),
        ("UPDATE signals SET score = 0.25", "differs", "score"),
        (
            "UPDATE signals SET metadata = json_set(metadata, '$.features.rsi', 30.000000000004)",
            "differs",
            "features.rsi",
        ),
        (
            "UPDATE signals SET metadata = json_remove(metadata, '$.features.ret')",
            "differs",
            "features.ret",
        ),
        ("UPDATE signals SET state = 'retracted'", "missing", "state"),
        ("DELETE FROM signals", "missing", "state"),
        ("UPDATE signals SET ts = ts + 1", "missing", "state"),
    ],
)
def test_one_signal_that_was_altered_is_named(
    live: Place, change: str, problem: str, column: str
) -> None:
    symbol, ts, _ = pick(live, "down")
    live.store(f"{change} WHERE name = 'down' AND symbol = ? AND ts = ?", [symbol, ts])
    first, *more = live.differences()
    assert first[0] == problem
    assert first[1:4] == ["feed", symbol, "2s"]
    assert first[4:7] == [format_ts(ts), "down", column]
    if "ts + 1" in change:
        assert [row[:1] + row[2:3] for row in more] == [["unexpected", symbol]]
    else:
        assert not more


def test_signals_that_do_not_hold_should_be_retracted(live: Place) -> None:
    ((symbol, ts),) = live.store(
        "SELECT symbol, ts FROM signals WHERE name = 'down' AND state = 'retracted' LIMIT 1"
    )
    live.store("UPDATE signals SET state = 'active' WHERE name = 'down' AND ts = ?", [ts])
    rows = live.differences()
    assert {" ".join(row[:3]) for row in rows} == {"should be retracted"}
    assert [symbol, format_ts(ts)] in [[row[4], row[6]] for row in rows]


def test_many_differences_are_counted_and_some_of_them_shown(live: Place) -> None:
    found = len(live.active())
    live.store("UPDATE signals SET value = 0.5")
    result = live.verify()
    assert result.exit_code == 1
    assert f"{found} differences, of which these are the first 20" in result.output
    assert number(result.output, "signals") == 0


def test_blocks_do_not_change_the_result(live: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does where a series is cut: look-back and cooldowns reach over it."""
    symbol, ts, _ = pick(live, "up")
    live.store("UPDATE signals SET ts = ts + 1 WHERE name = 'up' AND ts = ?", [ts])
    whole = live.differences()
    kept = number(live.verify().output, "signals")
    monkeypatch.setattr(_verify_signals_bars, "BLOCK_BARS", 7)
    cut = live.differences()
    assert sorted(cut) == sorted(whole)
    assert any(row[0] == "unexpected" and symbol in row for row in cut)
    assert number(live.verify().output, "signals") == kept


def test_a_part_is_verified_alone(live: Place) -> None:
    begin, end = START + 41 * NS_PER_S, START + 80 * NS_PER_S
    wanted = [key for key in live.active() if begin <= key[2] < end and key[1] in SYMBOLS[1:]]
    span = ("--from", format_ts(begin), "--to", format_ts(end))
    assert live.agree(*span, "--symbols", "spy, msft", "--provider", "feed") == len(wanted) > 20
    assert "nothing to compare" in live.verify("--provider", "nobody").output


def test_signals_of_other_versions_are_counted_apart(live: Place) -> None:
    """Rules that were changed in the middle of the day, and hold one another off."""
    before = len(live.active())
    Path("rules.yaml").write_text(
        RULES.replace("0.002", "0.001").replace("7s", "9s"), encoding="utf-8"
    )
    output = live.verify().output
    assert "nothing to compare" in output
    assert f"{before}: they were given by rules " in output
    assert "missing, but rules " in output
    versions = live.differences("--strict")
    assert {(row[0], row[6]) for row in versions} == {("differs", "version")}

    later = [
        Tick(t.symbol, t.src_ts + 404 * NS_PER_S, t.price, t.size, t.seq + 10**8) for t in TICKS
    ]
    live.live(later, [Tick(s, later[-1].src_ts + 60 * NS_PER_S, 1, 1, 10**9) for s in SYMBOLS])
    output = live.verify().output
    assert output.endswith("no difference\n")
    assert number(output, "signals") > 100
    assert f"{before}: they were given by rules " in output


def test_signals_of_other_versions_hold_others_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules are changed, and changed back, between two bars."""
    place = use(monkeypatch, tmp_path / "changed")
    for rules, part in (
        (RULES, TICKS[:240]),
        (RULES.replace("7s", "9s"), TICKS[240:420]),
        (RULES, [*TICKS[420:], *CLOSING]),
    ):
        Path("rules.yaml").write_text(rules, encoding="utf-8")
        place.live(part)
    output = place.verify().output
    assert output.endswith("no difference\n")
    assert "they were given by rules " in output
    assert number(output, "signals") > 80
    Path("rules.yaml").write_text(RULES.replace("7s", "9s"), encoding="utf-8")
    output = place.verify().output
    assert output.endswith("no difference\n")
    assert number(output, "signals") > 20


def test_what_rules_and_models_did_not_give_is_counted_apart(live: Place) -> None:
    compared = live.agree()
    for name, metadata in (
        ("mine", "{}"),
        ("m", '{"adapter": "sklearn", "version": "1", "interval": "2s"}'),
        ("f", '{"adapter": "rules", "version": "1", "interval": "2s", "fallback_for": "sklearn"}'),
    ):
        live.store(
            "INSERT INTO signals (provider, symbol, ts, name, value, state, metadata, created_at) "
            "VALUES ('feed', 'SPY', ?, ?, 1, 'active', ?, 0)",
            [END, name, metadata],
        )
    live.store(
        "INSERT INTO signals SELECT 'gone', symbol, ts, name, value, score, state, metadata, "
        "created_at FROM signals WHERE name = 'up' AND state = 'active' LIMIT 1"
    )
    output = live.verify().output
    assert number(output, "signals") == compared
    for line in (
        "1: they were not given by inference",
        "1: sklearn is not enabled",
        "1: they were given by the fallback of sklearn",
        "1: their bars are not stored",
    ):
        assert line in output


def test_bars_that_wait_to_be_evaluated_owe_nothing(live: Place) -> None:
    compared = live.agree()
    more = [
        Tick(t.symbol, t.src_ts + 404 * NS_PER_S, t.price, t.size, t.seq + 10**8) for t in TICKS
    ]
    live.feed(more)
    live.batch()
    output = live.verify().output
    assert output.endswith("no difference\n")
    assert number(output, "signals") == compared
    assert "missing, but their bars are not evaluated yet" in output
    live.infer()
    assert live.agree() > compared


class Mute:
    """A model that never answers."""

    name, version, cooldown_ns = "onnx", "v", 0
    standby = ""
    names: tuple[str, ...] = ("guess",)

    def columns(self, interval: str) -> dict[str, int]:  # noqa: ARG002
        return {"close": 0}

    async def evaluate(self, rows: SelectedRows) -> Said:  # noqa: ARG002
        raise ModelError("error", "it is broken")

    def close(self) -> None:
        """Nothing is held."""


def test_a_model_without_an_answer_is_no_agreement(live: Place) -> None:
    live.store(
        "UPDATE signals SET name = 'guess', metadata = "
        "json_set(metadata, '$.adapter', 'onnx', '$.version', 'v') WHERE name = 'up'"
    )

    async def verify(backends: Backends, settings: Settings) -> None:
        features = settings.features
        evaluator = Evaluator(lambda length: catalog(features, length), [Mute()], 0, "")
        windows = settings.micro_batch.windows_ns
        report = await verify_signals(backends.store, evaluator, Scope(), windows, Reached((), 1))
        assert report.unanswered == {"onnx": report.bars}
        assert (report.agree, report.differences) == (0, 0)
        assert not any("bars are not stored" in why for why in report.apart)

    live.work(verify)


def test_nothing_is_written_where_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = use(monkeypatch, tmp_path / "empty")
    empty = CliRunner().invoke(app, ["verify", "--signals", "--config", "config.yaml"])
    assert isinstance(empty.exception, MdpError)
    assert not place.home.exists()
    Path("config.yaml").write_text("inference: {adapters: {rules: {enabled: false}}}\n")
    off = CliRunner().invoke(app, ["verify", "--signals", "--config", "config.yaml"])
    assert "no adapter is enabled" in str(off.exception)
    for wrong in (["--strict"], ["--signals", "--archive", "x"]):
        assert isinstance(CliRunner().invoke(app, ["verify", *wrong]).exception, UsageError)
