"""The guard: deadlines, threads that hang, the breaker, and what answers instead."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from tests.unit.inference import stub_adapter
from tests.unit.inference.stub_adapter import ROWS, Gate, Stub, answers, firing, raises

from market_data_core._config_inference import (
    BreakerSettings,
    InferenceSettings,
    SklearnAdapterSettings,
)
from market_data_core.contracts.inference import Adapter, Firing, Rows
from market_data_core.errors import ConfigError, ModelError
from market_data_pipeline.inference.guard import REASONS, Guarded, guard, load_fallback
from market_data_store.coordinator.policy import CircuitBreaker

SHORT = 0.3
"""A deadline that nothing that hangs can keep, and in which any thread has begun its call."""


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    yield gate
    gate.release()
    await until(lambda: gate.waiting == 0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


Made = Callable[..., Guarded]


@pytest.fixture
def counted() -> list[str]:
    return []


@pytest.fixture
def guarded(counted: list[str]) -> Iterator[Made]:
    made: list[Guarded] = []

    def make(adapter: Adapter, *, deadline_s: float = 30.0, failures: int = 99, **more: Any) -> Any:
        more.setdefault("breaker", CircuitBreaker(failures, 30.0))
        more = {"workers": 2, "on_failure": counted.append, **more}
        made.append(Guarded(adapter, deadline_s=deadline_s, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def failure(guarded: Guarded) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await guarded.evaluate(ROWS)
    return caught.value


async def test_an_answer_comes_through_unchanged(guarded: Made, counted: list[str]) -> None:
    said = firing(meta={"rsi": np.array([70.0, np.nan])}, notes={"model_sha256": "ab"})
    thread: list[str] = []

    def answer(_: Rows) -> Sequence[Firing]:
        thread.append(threading.current_thread().name)
        assert threading.current_thread().daemon
        return [said]

    assert (await guarded(Stub(answer)).evaluate(ROWS)).firings == [said]
    assert thread == ["inference-sklearn-0"]
    assert counted == []


async def test_a_call_that_hangs_is_given_up(guarded: Made, gate: Gate, counted: list[str]) -> None:
    adapter = Stub(gate.hang)
    held = guarded(adapter, deadline_s=SHORT)
    assert (await failure(held)).reason == "timeout"
    adapter.said = answers
    assert len((await held.evaluate(ROWS)).firings) == 1  # by the other thread
    assert counted == ["timeout"]


async def test_threads_that_hang_never_become_more(
    guarded: Made, gate: Gate, counted: list[str]
) -> None:
    before = set(threading.enumerate())  # some of another test's may end meanwhile
    adapter = Stub(gate.hang)
    held = guarded(adapter, deadline_s=SHORT)
    reasons = [(await failure(held)).reason for _ in range(6)]
    assert reasons == ["timeout", "timeout", "busy", "busy", "busy", "busy"] == counted
    assert len(set(threading.enumerate()) - before) == 2
    assert adapter.calls == 2
    held._deadline_s = 3600.0
    assert (await failure(held)).reason == "busy"  # without waiting, where that is hopeless

    gate.release()
    await until(lambda: gate.waiting == 0)
    adapter.said = answers
    held._deadline_s = 30.0
    await until(lambda: held._pool.hung == 0)
    assert len((await held.evaluate(ROWS)).firings) == 1
    assert len(set(threading.enumerate()) - before) == 2


async def test_calls_that_find_no_thread_in_time_are_dropped(guarded: Made, gate: Gate) -> None:
    adapter = Stub(gate.hang)
    held = guarded(adapter, deadline_s=30.0, workers=1)
    first = asyncio.create_task(held.evaluate(ROWS))
    await until(lambda: gate.waiting == 1)
    held._deadline_s = SHORT
    assert (await failure(held)).reason == "busy"
    gate.release()
    assert len((await first).firings) == 1
    assert adapter.calls == 1


async def test_a_cancelled_call_counts_neither_way(guarded: Made, gate: Gate) -> None:
    breaker = CircuitBreaker(1, 0.0)
    held = guarded(Stub(gate.hang), breaker=breaker)
    breaker.trip()
    task = asyncio.create_task(held.evaluate(ROWS))  # the one that a half-open breaker lets pass
    await until(lambda: gate.waiting == 1)
    assert not breaker.allow()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert breaker.allow()


BAD = [
    pytest.param({"rows": np.array([2, 0], np.intp)}, "shape", "not ascending", id="order"),
    pytest.param({"rows": np.array([1, 1], np.intp)}, "shape", "not ascending", id="twice"),
    pytest.param({"rows": np.array([0.0, 1.0])}, "shape", "not ascending", id="type"),
    pytest.param({"rows": np.array([0, 3], np.intp)}, "shape", "not among the 3", id="beyond"),
    pytest.param({"rows": np.array([-1, 0], np.intp)}, "shape", "not among the 3", id="before"),
    pytest.param({"value": np.ones(3)}, "shape", "value is not one", id="length"),
    pytest.param({"value": np.ones(2, np.float32)}, "shape", "value is not one", id="float32"),
    pytest.param({"value": [1.0, 1.0]}, "shape", "value is not one", id="list"),
    pytest.param({"score": np.ones((2, 1))}, "shape", "score is not one", id="score"),
    pytest.param({"meta": {"rsi": np.ones(1)}}, "shape", "rsi is not one", id="meta"),
    pytest.param({"value": np.array([1, np.nan])}, "not_finite", "a value", id="nan"),
    pytest.param({"score": np.array([1, np.inf])}, "not_finite", "a score", id="inf"),
]


@pytest.mark.parametrize(("changed", "reason", "message"), BAD)
async def test_nonsense_is_no_answer(
    changed: dict[str, Any], reason: str, message: str, guarded: Made, counted: list[str]
) -> None:
    error = await failure(guarded(Stub(lambda _: [firing(**changed)])))
    assert error.reason == reason
    assert message in str(error)
    assert counted == [reason]
    assert reason in REASONS


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), StopIteration(), MemoryError()])
async def test_whatever_is_raised_ends_neither_thread_nor_loop(
    error: BaseException, guarded: Made
) -> None:
    def fail(_: Rows) -> Sequence[Firing]:
        raise error

    adapter = Stub(fail)
    held = guarded(adapter, workers=1)
    caught = await failure(held)
    assert caught.reason == "error"
    assert str(caught).startswith(type(error).__name__)
    adapter.said = lambda _: None  # type: ignore[assignment, return-value]
    assert (await failure(held)).reason == "error"
    adapter.said = answers
    assert len((await held.evaluate(ROWS)).firings) == 1


async def test_a_model_that_keeps_failing_is_left_alone_then_tried_once(
    guarded: Made, counted: list[str]
) -> None:
    clock, adapter = Clock(), Stub(raises)
    held = guarded(adapter, breaker=CircuitBreaker(3, 30.0, monotonic=clock))
    reasons = [(await failure(held)).reason for _ in range(6)]
    assert reasons == ["error"] * 3 + ["open"] * 3 == counted
    assert adapter.calls == 3

    clock.now = 31.0
    reasons = [(await failure(held)).reason for _ in range(3)]
    assert reasons == ["error", "open", "open"]  # one call tried

    clock.now, adapter.said = 62.0, answers
    for _ in range(3):
        assert len((await held.evaluate(ROWS)).firings) == 1


async def test_a_success_begins_the_count_anew(guarded: Made) -> None:
    adapter = Stub(raises)
    held = guarded(adapter, failures=3)
    for _ in range(4):
        adapter.said = raises
        assert [(await failure(held)).reason for _ in range(2)] == ["error"] * 2
        adapter.said = answers
        await held.evaluate(ROWS)


async def test_the_fallback_answers_whenever_the_model_does_not(
    guarded: Made, gate: Gate, counted: list[str]
) -> None:
    clock, adapter = Clock(), Stub(gate.hang)
    fallback = Stub(lambda _: [firing(name="rsi_low", notes={"why": "so"})], "rules")
    breaker = CircuitBreaker(2, 30.0, monotonic=clock)
    held = guarded(adapter, breaker=breaker, fallback=fallback, deadline_s=SHORT, workers=1)
    for reason in ("timeout", "busy", "open", "open"):
        found, names = await held.evaluate(ROWS)
        assert names == fallback.names  # of the model's own nobody knows whether they hold
        assert [one.name for one in found] == ["rsi_low"]
        assert found[0].notes == {
            "why": "so",
            "fallback_for": "sklearn",
            "fallback_version": "version of rules",
        }
        assert counted[-1] == reason

    gate.release()
    await until(lambda: held._pool.hung == 0)
    adapter.said, clock.now, held._deadline_s = answers, 31.0, 30.0
    firings, names = await held.evaluate(ROWS)
    assert [one.name for one in firings] == ["up"]
    assert names == held.names  # what the fallback said of these rows does not hold any more
    assert fallback.calls == 4


async def test_a_fallback_that_fails_is_an_error_too(guarded: Made, counted: list[str]) -> None:
    held = guarded(Stub(raises), fallback=Stub(raises, "rules"))
    with capture_logs() as lines:
        assert str(await failure(held)) == "ValueError: no such layer"
    assert lines[-1]["event"] == "nor did the fallback answer"
    assert counted == ["error", "fallback"]


async def test_a_signal_that_was_not_declared_is_no_answer(guarded: Made) -> None:
    """It could never be taken back."""
    held = guarded(Stub(lambda _: [firing(name="other")]))
    assert "other: it is not among the names of sklearn" in str(await failure(held))


def test_it_stands_for_both() -> None:
    adapter, fallback = Stub(answers), Stub(answers, "rules")
    breaker = CircuitBreaker()
    held = Guarded(adapter, deadline_s=1, workers=1, breaker=breaker, fallback=fallback)
    assert (held.name, held.version) == ("sklearn", "version of sklearn")
    assert held.names == ("sklearn_up", "up", "rules_up", "rsi_low")
    assert held.standby == "version of rules"
    assert held.cooldown_ns == 7
    assert held.columns("2s") == {"rsi": 7, "sklearn": 0, "rules": 0}
    assert held.columns("1m") == {}
    held.close()
    assert adapter.closed
    assert fallback.closed


async def test_the_log_tells_changes_not_calls(guarded: Made) -> None:
    clock, adapter = Clock(), Stub(raises)
    held = guarded(adapter, breaker=CircuitBreaker(3, 30.0, monotonic=clock))
    with capture_logs() as lines:
        for _ in range(10):
            await failure(held)
        adapter.said, clock.now = answers, 31.0
        for _ in range(10):
            await held.evaluate(ROWS)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("the model gave no answer", "warning"),
        ("the model is not asked for a while, since it fails", "warning"),
        ("the model answers again", "info"),
    ]
    assert lines[0]["error"] == "ValueError: no such layer"
    assert lines[1]["instead"] == "nothing"


async def test_the_settings_decide(counted: list[str]) -> None:
    settings = InferenceSettings(
        deadline_ms=300, workers=1, breaker=BreakerSettings(failures=2, open_s=1000)
    )
    gate = Gate()
    held = guard(Stub(gate.hang), settings, on_failure=counted.append)
    for _ in range(4):
        await failure(held)
    assert counted == ["timeout", "busy", "open", "open"]
    gate.release()
    held.close()


def test_the_fallback_is_a_file_of_rules(tmp_path: Path) -> None:
    none = load_fallback(SklearnAdapterSettings(), ("rsi",), "2s", ("2s",))
    assert none is None
    path = tmp_path / "rules.yaml"
    path.write_text('- { name: low, condition: "rsi < 2.5", signal: 1.0 }\n')
    settings = SklearnAdapterSettings(fallback=str(path))
    rules = load_fallback(settings, ("rsi",), "2s", ("2s",))
    assert rules is not None
    assert rules.evaluate(ROWS)[0].rows.tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"rules\.yaml"):
        load_fallback(settings, ("vwap",), "2s", ("2s",))


_HANGING = """
import asyncio, threading
from stub_adapter import ROWS, Stub
from market_data_core.errors import ModelError
from market_data_pipeline.inference.guard import Guarded
from market_data_store.coordinator.policy import CircuitBreaker

async def main():
    adapter = Stub(lambda rows: threading.Event().wait())
    held = Guarded(adapter, deadline_s=0.05, workers=2, breaker=CircuitBreaker())
    try:
        await held.evaluate(ROWS)
    except ModelError as error:
        print(error.reason, flush=True)
    held.close()

asyncio.run(main())
"""


def test_a_thread_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    shutil.copy(stub_adapter.__file__, tmp_path)
    (tmp_path / "hanging.py").write_text(_HANGING)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "hanging.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.stdout.splitlines()[-1:], done.returncode) == (["timeout"], 0), done.stderr
    assert time.monotonic() - began < 50
