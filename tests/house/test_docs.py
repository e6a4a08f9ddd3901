"""The documentation agrees with the code: generated pages, commands, and what is typed in it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from market_data_core import registry
from market_data_core.clock import ManualClock
from market_data_core.config import document, load_config
from market_data_core.contracts.provider import Subscription
from market_data_core.wire import decode_event
from market_data_pipeline import providers

if TYPE_CHECKING:
    from tests.house.conftest import Tree

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "tutorial.md")
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z \[\w+ *\]")
ANY = "…"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "_generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generator: ModuleType) -> None:
    stale = [
        path.name
        for path, text in generator.pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: python docs/_generate.py"


def test_every_command_is_documented(generator: ModuleType) -> None:
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    prose = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        if path.name != "cli.md"
    )
    commands = generator.commands()
    assert len(commands) >= 10
    assert [name for name in commands if f"## {name}\n" not in reference] == []
    assert [name for name in commands if name not in prose] == []


def test_every_page_is_in_the_index() -> None:
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text(encoding="utf-8")
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_the_documented_event_can_be_read() -> None:
    page = (ROOT / "docs" / "reference" / "bus-format.md").read_text(encoding="utf-8")
    found = re.search(r"^```json\n(.*?)^```$", page, re.M | re.S)
    assert found
    event = decode_event(found[1].encode())
    assert event.event_id == f"{event.provider}|{event.symbol}|{event.src_ts}|{event.seq}"


def test_files_that_are_named_exist(tree: Tree) -> None:
    names = {str(path) for path in tree.files}
    text = tree.text(Path("ARCHITECTURE.md"))
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert named
    missing = [name for name in named if not any(f"/{name}" in f"/{known}" for known in names)]
    assert missing == []


async def test_the_provider_to_add_works(tmp_path: Path) -> None:
    """The example of CONTRIBUTING, put among the providers, is found, set up and streams."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(# src/\S+/(\w+)\.py\n.*?)^```$", text, re.M | re.S)
    assert found
    source, name = found[1], found[2]
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    providers.__path__.append(str(tmp_path))
    try:
        assert name in registry.backends("provider")
        assert f"producers.{name}.beat_ms" in {item.key for item in document()}
        settings = load_config(overrides={f"producers.{name}.beat_ms": 1}).producer(name)
        clock = ManualClock(10**18)
        feed = registry.backend("provider", name).create(settings, limit_s=0.05, clock=clock)
        ticks = []
        async for tick in feed.stream(Subscription(("A", "B"))):
            ticks.append((tick.symbol, tick.seq))
            clock.advance(10**7)
    finally:
        providers.__path__.remove(str(tmp_path))
    assert feed.name == name
    assert ticks == [("A", 1), ("B", 1), ("A", 2), ("B", 2), ("A", 3), ("B", 3)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_typed_prints_what_is_shown(page: Path, tmp_path: Path) -> None:
    """Every command of the page's console blocks, in order, in an empty folder."""
    typed = list(_typed(page.read_text(encoding="utf-8")))
    assert typed
    for command, shown in typed:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        printed = "\n".join(line for line in _plain(done.stdout) if not LOG_LINE.match(line))
        told = f"$ {command}\n{done.stdout}\nshown in {page.name}:\n{shown}"
        if not re.fullmatch(_pattern(shown), printed, re.S):
            pytest.fail(told, pytrace=False)
        assert bool(done.returncode) == shown.startswith("error:"), told


def _typed(text: str) -> Iterator[tuple[str, str]]:
    """Each command with what is shown below it."""
    for block in CONSOLE.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = part.splitlines()
            command = [lines.pop(0)]
            while lines and lines[0].startswith("> "):
                command.append(lines.pop(0)[2:])
            yield "\n".join(command), "\n".join(lines)


def _plain(text: str) -> list[str]:
    """Lines without blank ones, rules, and the width of columns."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line.strip("─ ")]


def _pattern(shown: str) -> str:
    return r".*".join(re.escape(part) for part in "\n".join(_plain(shown)).split(ANY))
