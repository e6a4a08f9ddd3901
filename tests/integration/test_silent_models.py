"""What becomes of bars whose model did not answer, or whose feed has stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.faults.recordings import trades, write_recording
from tests.integration.signals_place import Place, use

from market_data_core.config import Settings
from market_data_core.contracts.inference import Firing
from market_data_core.contracts.provider import Item, Subscription
from market_data_core.errors import ModelError
from market_data_core.events import Tick
from market_data_core.intervals import NS_PER_S
from market_data_pipeline.assembly import Summary
from market_data_pipeline.backends import Backends
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.flow import Flow
from market_data_pipeline.inference.guard import Said
from market_data_pipeline.providers.recording import RecordingOptions, open_recording
from market_data_pipeline.signals.assembly import evaluator_of
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.rows import SelectedRows

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return use(monkeypatch, tmp_path / "place")


class Moody:
    """A model that answers when it likes to."""

    name, version, cooldown_ns = "moody", "v", 0
    standby = ""
    names: tuple[str, ...] = ("guess",)

    def __init__(self) -> None:
        self.answers = False

    def columns(self, interval: str) -> dict[str, int]:
        return {"close": 0} if interval == "2s" else {}

    async def evaluate(self, rows: SelectedRows) -> Said:
        if not self.answers:
            raise ModelError("error", "it is in a bad mood")
        return Said([Firing("guess", np.arange(len(rows)), np.ones(len(rows)), None)], self.names)

    def close(self) -> None:
        """Nothing is held."""


def test_a_recording_is_not_done_while_a_model_is_silent(place: Place) -> None:
    write_recording(Path("rec.ndjson"), 7, trades(7, 500, 60))
    model = Moody()

    async def run(backends: Backends, settings: Settings) -> Summary:
        features = settings.features
        evaluator = Evaluator(partial(catalog, features), [model], 0, "")
        options = RecordingOptions()
        recording = open_recording(
            ["rec.ndjson"], name="rec", options=options, spool_dir=Path(), disorder_ns=NS_PER_S
        )
        return await Flow(settings, backends).record(
            recording, asyncio.Event(), evaluator=evaluator
        )

    with pytest.raises(
        ModelError, match="no answer for some bars of the recording: guess; run it again"
    ):
        place.work(run)
    bars = place.store("SELECT count(*) FROM bars_ohlcv WHERE interval = '2s'")[0][0]
    assert bars > 50
    assert place.store("SELECT count(*) FROM signals")[0][0] == 0
    model.answers = True
    first, again = place.work(run).signalled, place.work(run).signalled
    assert first is not None
    assert again is not None
    assert (first.bars, first.signals.inserted) == (bars, bars)
    assert (again.bars, again.signals.inserted) == (0, 0)


class Feed:
    """Ten ticks a second of event time, for so long; then it is silent for ever, or ends."""

    def __init__(self, name: str, seconds: int, stop: asyncio.Event | None = None) -> None:
        self.name, self._seconds, self._stop = name, seconds, stop

    async def stream(self, _: Subscription) -> AsyncIterator[Item]:
        start = 1_761_314_400 * NS_PER_S
        for n in range(self._seconds * 10):
            yield Tick("SPY", start + n * NS_PER_S // 10, 100.0 + n % 7, 1.0, n)
            if n % 100 == 99:
                await asyncio.sleep(0.05)
        if self._stop is None:
            await asyncio.Event().wait()
        else:
            self._stop.set()


def test_a_feed_that_falls_silent(place: Place) -> None:
    """Its last bars are finished and evaluated, and the other feed's go on meanwhile."""
    Path("rules.yaml").write_text("- {name: all, condition: 'close > 0', signal: 1}")

    async def run(backends: Backends, settings: Settings) -> None:
        stop = asyncio.Event()
        feeds = {"a": Feed("a", 21), "b": Feed("b", 600, stop)}
        evaluator = evaluator_of(settings)
        done = await Flow(settings, backends).live(feeds, (), stop, evaluator)
        assert done.counts.holds()
        assert done.signalled is not None
        assert done.signalled.signals.inserted == len(await backends.store.bars(interval="2s"))

    place.work(run)
    ends = dict(place.store("SELECT provider, count(*) FROM signals GROUP BY provider"))
    assert ends["a"] == 11  # also that of the second that its last window did not get
    assert ends["b"] > 200
    assert place.agree() == sum(ends.values())
