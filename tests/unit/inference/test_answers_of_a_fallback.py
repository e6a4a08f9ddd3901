"""What a fallback's answer says of the model's signals, and who hears that it has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from structlog.testing import capture_logs
from tests.unit.features._walks import INTERVAL_NS, prices
from tests.unit.inference.stub_adapter import Stub, firing, raises

from market_data_core.config import FeaturesSettings
from market_data_pipeline.features.catalog import catalog
from market_data_pipeline.features.panel import Panel
from market_data_pipeline.inference.guard import Guarded
from market_data_pipeline.signals.evaluator import Evaluator
from market_data_pipeline.signals.renewal import Renewal
from market_data_store.coordinator.policy import CircuitBreaker


class Looking(Stub):
    """Looks at the close."""

    def columns(self, _: str) -> dict[str, int]:
        return {"close": 0}


def evaluator(model: Stub, fallback: Stub | None) -> Evaluator:
    breaker = CircuitBreaker()
    held = Guarded(model, deadline_s=5, workers=1, breaker=breaker, fallback=fallback)
    return Evaluator(lambda ns: catalog(FeaturesSettings(windows=()), ns), [held], 0, "")


async def test_of_the_models_signals_nobody_has_said_anything() -> None:
    """So that those it gave are not taken back while it is silent."""
    stands_in = Looking(lambda _: [firing(name="rsi_low")], "rules")
    made = evaluator(Looking(raises), stands_in)
    panel = Panel(INTERVAL_NS, prices([1.0, 2.0, 3.0]), 0)
    found = await made.evaluate("feed", panel.select(np.arange(3)))
    assert found.names == set(stands_in.names)
    assert found.unanswered == {"sklearn_up", "up"}
    assert {signal.name for signal, _ in found.signals} == {"rsi_low"}
    made.close()


def test_another_fallback_is_another_evaluation() -> None:
    other = Looking(raises, "rules")
    other.version = "another"
    made = [
        evaluator(Looking(raises), fallback)
        for fallback in (None, Looking(raises, "rules"), Looking(raises, "rules"), other)
    ]
    assert made[1].version == made[2].version
    assert len({one.version for one in made}) == 3
    for one in made:
        one.close()


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    """An editor that puts a new file in its place may be caught in between."""
    file = tmp_path / "rules.yaml"
    file.write_text("1")
    made = evaluator(Looking(raises), None)
    renewal = Renewal([file], lambda: made, "before")
    file.unlink()
    with capture_logs() as lines:
        assert await renewal() is None
        assert await renewal() is None
    assert [(line["log_level"], line["file"]) for line in lines] == [("warning", str(file))]
    file.write_text("22")
    assert await renewal() is None
    assert await renewal() is made
    made.close()
