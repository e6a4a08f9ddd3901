"""The project's own files, read once."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".json", ".html", ".js", ".css", ".sql", ""}


@dataclass(frozen=True)
class Tree:
    """What version control holds, and what it would take in.

    Attributes:
        files: paths relative to the root.
        python: the syntax tree of each Python file.
    """

    files: tuple[Path, ...]
    python: dict[Path, ast.Module]

    def text(self, path: Path) -> str:
        return (ROOT / path).read_text(encoding="utf-8")

    def texts(self) -> dict[Path, str]:
        return {path: self.text(path) for path in self.files if path.suffix in TEXTS}

    def under(self, folder: str) -> dict[Path, ast.Module]:
        return {path: tree for path, tree in self.python.items() if path.parts[0] == folder}


@pytest.fixture(scope="session")
def tree() -> Tree:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    files = tuple(sorted({Path(name) for name in listed if name and (ROOT / name).is_file()}))
    assert Path("pyproject.toml") in files
    python = {
        path: ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))
        for path in files
        if path.suffix == ".py"
    }
    return Tree(files, python)
