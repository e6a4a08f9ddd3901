"""House rules for everything that is not code: links, sizes, packaging."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from tests.house.conftest import Tree

ROOT = Path(__file__).resolve().parents[2]
BLOB_BYTES_MAX = 1_000_000
README_LINES_MAX = 149
OTHER_LOCK = "uv" + ".lock"

_LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|^\[[^\]]+\]:\s*(\S+)", re.M)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.M)
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.M)


def test_no_large_blobs(tree: Tree) -> None:
    sizes = {str(path): (ROOT / path).stat().st_size for path in tree.files}
    assert {path: size for path, size in sizes.items() if size > BLOB_BYTES_MAX} == {}


def test_the_readme_is_short(tree: Tree) -> None:
    assert len(tree.text(Path("README.md")).splitlines()) <= README_LINES_MAX


def test_links_lead_somewhere(tree: Tree) -> None:
    broken = []
    for path in tree.files:
        if path.suffix != ".md":
            continue
        for first, second in _LINK.findall(_FENCE.sub("", tree.text(path))):
            target, _, anchor = (first or second).partition("#")
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            file = (ROOT / path.parent / target).resolve() if target else ROOT / path
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{path}: {first or second}")
    assert broken == []


def _anchors(file: Path) -> set[str]:
    """The anchors that a Markdown file's headings get; of other files every anchor is trusted."""
    headings = _HEADING.findall(_FENCE.sub("", file.read_text(encoding="utf-8")))
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings]
    return {re.sub(r"\s", "-", heading) for heading in plain}


def test_there_is_one_lock(tree: Tree) -> None:
    assert not (ROOT / OTHER_LOCK).exists()
    assert [str(path) for path, text in tree.texts().items() if OTHER_LOCK in text] == []


def test_the_lock_is_whole(tree: Tree) -> None:
    """Every requirement of the project is pinned within its bounds, hashed, from no named index."""
    lock = tree.text(Path("requirements.lock"))
    assert "://" not in lock
    assert [line for line in lock.splitlines() if line.startswith("-")] == []
    entries = re.split(r"\n(?=[a-z0-9])", lock)
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    pinned: dict[str, set[str]] = {}
    for name, version in _PINNED.findall(lock):
        pinned.setdefault(canonicalize_name(name), set()).add(version)
    pyproject = tomllib.loads(tree.text(Path("pyproject.toml")))
    wanted = list(pyproject["project"]["dependencies"])
    for group in pyproject["dependency-groups"].values():
        wanted += [entry for entry in group if isinstance(entry, str)]
    outside = []
    for text in wanted:
        requirement = Requirement(text)
        versions = pinned.get(canonicalize_name(requirement.name), set())
        if not versions or any(v not in requirement.specifier for v in versions):
            outside.append(f"{text}: {sorted(versions)}")
    assert outside == []


def test_make_help_names_every_target(tree: Tree) -> None:
    makefile = tree.text(Path("Makefile"))
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.M)
    assert targets is not None
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sorted(re.findall(r"^  make (\w+)", shown, re.M)) == sorted(targets[1].split())


def test_scripts_can_be_run(tree: Tree) -> None:
    scripts = [path for path in tree.files if (ROOT / path).read_bytes()[:2] == b"#!"]
    assert Path(".ci/run") in scripts
    assert [str(path) for path in scripts if not (ROOT / path).stat().st_mode & 0o100] == []
