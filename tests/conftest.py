"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("market_data_core.testing")  # failures of the suites show values

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT.parent / "shared" / "data"

# A machine that is shared with other work makes single examples slow now and then.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")

_OURS = ("MDP_", "MDS_", "REDIS_URI", "KAFKA_BOOTSTRAP")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the developer's shell has set; MDP_FAULT_RUNS is ours."""
    for name in os.environ:
        if name.startswith(_OURS) and name != "MDP_FAULT_RUNS":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def recorded_data() -> Path:
    """The folder of recorded market data; absent outside CI: skipped, absent in CI: failed."""
    if not RECORDED.is_dir():
        reason = f"recorded market data is not in {RECORDED}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return RECORDED
