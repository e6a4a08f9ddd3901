"""Backends are found by name, and only the one that is asked for is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from market_data_core import registry
from market_data_core._suggest import did_you_mean
from market_data_core.errors import UsageError

PACKAGE = "mdp_test_backends"
GOOD = """
from market_data_core.registry import Backend

def make(path, size=1):
    return (path, size)

BACKEND = Backend({name!r}, "Does it.", None, make)
"""
FILES = {
    "good": GOOD.format(name="good"),
    "loud": 'raise AssertionError("imported")\nBACKEND = None\n',
    "driven": "import mdp_driver_that_is_absent\nBACKEND = None\n",
    "broken": "import market_data_core.absent\nBACKEND = None\n",
    "wrong": "BACKEND = 5\n",
    "lazy": (
        "from market_data_core.registry import Backend\n"
        "def make():\n"
        "    import mdp_driver_that_is_absent\n"
        'BACKEND = Backend("lazy", "Later.", None, make, extra="lazy-extra")\n'
    ),
    "codec": "def encode():\n    BACKEND = 1\n    return BACKEND\n",
    "_private": "BACKEND = None\n",
}


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    for name, source in {"__init__": "", **FILES}.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "PACKAGES", {"bus": PACKAGE, "store": f"{PACKAGE}.absent"})
    yield
    for module in [m for m in sys.modules if m.startswith(PACKAGE)]:
        del sys.modules[module]


def test_listing_imports_nothing() -> None:
    assert registry.backends("bus") == ["broken", "driven", "good", "lazy", "loud", "wrong"]
    assert [m for m in sys.modules if m.startswith(f"{PACKAGE}.")] == []


def test_a_backend_makes_what_it_is_for() -> None:
    found = registry.backend("bus", "good")
    assert (found.name, found.summary, found.extra) == ("good", "Does it.", None)
    assert found.create("p", size=2) == ("p", 2)


@pytest.mark.parametrize("name", ["goood", "codec", "_private", "", "os", "../good"])
def test_an_unknown_name_is_answered_with_the_valid_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown bus .*valid: broken, driven, good") as caught:
        registry.backend("bus", name)
    assert ("did you mean 'good'?" in str(caught.value)) == (name in {"goood", "../good"})


def test_an_unknown_stage() -> None:
    with pytest.raises(UsageError, match="unknown stage 'buss'; did you mean 'bus'"):
        registry.backends("buss")


def test_a_stage_without_a_package_has_no_backends() -> None:
    assert registry.backends("store") == []
    with pytest.raises(UsageError, match="there are none to choose from"):
        registry.backend("store", "sqlite")


@pytest.mark.parametrize(("name", "extra"), [("driven", "driven"), ("lazy", "lazy-extra")])
def test_a_missing_driver_names_the_extra(name: str, extra: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.backend("bus", name).create()
    assert f"pip install 'market-data-platform[{extra}]'" in str(caught.value)
    assert "'mdp_driver_that_is_absent'" in str(caught.value)


def test_our_own_faults_are_not_blamed_on_drivers() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"market_data_core\.absent"):
        registry.backend("bus", "broken")
    with pytest.raises(TypeError, match="BACKEND is a int"):
        registry.backend("bus", "wrong")


def test_entry_points_add_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("extra", f"{PACKAGE}.good:BACKEND", "market_data_platform.bus")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: EntryPoints(points))
    assert "extra" in registry.backends("bus")
    assert registry.backend("bus", "extra").name == "good"
    points.append(EntryPoint("extra", f"{PACKAGE}.lazy:BACKEND", "market_data_platform.bus"))
    with pytest.raises(UsageError, match="provided twice"):
        registry.backend("bus", "extra")


def test_the_registry_is_cheap_and_the_core_stands_alone() -> None:
    code = (
        "import sys, market_data_core.registry\n"
        "heavy = {'pydantic', 'numpy', 'yaml', 'importlib.metadata', 'market_data_pipeline'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Redis", "did you mean 'redis'? valid: embedded, redis"),
        ("zzz", "valid: embedded, redis"),
    ],
)
def test_suggestions(name: str, said: str) -> None:
    assert did_you_mean(name, ["embedded", "redis"]) == said
