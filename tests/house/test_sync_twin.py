"""The synchronous client is what the generator makes of the asynchronous one."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

from market_data_store import AsyncStoreClient, StoreClient

GENERATOR = Path(__file__).resolve().parents[2] / "tools" / "sync_twin.py"


def test_the_twin_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("sync_twin", GENERATOR)
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    stale = generator.TWIN.read_text(encoding="utf-8") != generator.twin()
    assert not stale, "run: python tools/sync_twin.py"


def test_the_twin_has_every_method() -> None:
    def public(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind, callable) if name[0] != "_"}

    assert public(StoreClient) == public(AsyncStoreClient)
