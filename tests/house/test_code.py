"""House rules for code: size, safety, nothing left over."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.house.conftest import Tree

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
# Put together here, so that this file does not hold the words it looks for.
LEFT_OVER = re.compile(
    r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b"
)
UNSAFE_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "yaml.load"}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
# A dotted name that stands alone in a string is imported lazily.
LAZY = re.compile(r"(market_data|mds)_\w+(\.\w+)+")
BROAD = {"Exception", "BaseException"}


def test_files_are_short(tree: Tree) -> None:
    lengths = {str(path): len(tree.text(path).splitlines()) for path in tree.python}
    assert {path: n for path, n in lengths.items() if n > FILE_LINES_MAX} == {}


def test_functions_are_short(tree: Tree) -> None:
    long = {}
    for path, module in tree.python.items():
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long[f"{path}:{node.lineno} {node.name}"] = lines
    assert long == {}


def test_nothing_is_left_for_later(tree: Tree) -> None:
    found = [
        f"{path}:{number}"
        for path, text in tree.texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if LEFT_OVER.search(line)
    ]
    assert found == []


def test_data_is_never_run_as_code(tree: Tree) -> None:
    found = [
        f"{path}:{line} {name}"
        for path, module in tree.python.items()
        for line, name in (*_calls(module), *_imports(module, path))
        if name in UNSAFE_CALLS or name.split(".")[0] in UNSAFE_MODULES
    ]
    assert found == []


def _calls(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node.func)


def test_no_error_is_swallowed_whole(tree: Tree) -> None:
    found = []
    for path, module in tree.python.items():
        for node in ast.walk(module):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or ast.unparse(node.type) in BROAD
            if broad and all(isinstance(body, ast.Pass | ast.Continue) for body in node.body):
                found.append(f"{path}:{node.lineno}")
    assert found == []


def test_every_package_is_typed(tree: Tree) -> None:
    packages = {path.parts[1] for path in tree.under("src")}
    assert {p for p in packages if not (ROOT / "src" / p / "py.typed").is_file()} == set()
    built = tomllib.loads(tree.text(Path("pyproject.toml")))["tool"]["hatch"]["build"]["targets"]
    assert set(built["wheel"]["packages"]) == {f"src/{package}" for package in packages}


def test_every_module_is_used(tree: Tree) -> None:
    """A module is imported by another one of ours, is a backend, a command, or meant for tests."""
    used = set()
    for path, module in tree.python.items():
        own = _module_name(path)
        from_tests = path.parts[0] != "src"
        for _, name in _imports(module, path):
            if name != own and not (from_tests and ".testing" not in name):
                used.add(name)
    project = tomllib.loads(tree.text(Path("pyproject.toml")))["project"]
    used |= {target.partition(":")[0] for target in project["scripts"].values()}
    dead = [
        str(path)
        for path, module in tree.under("src").items()
        if path.name not in {"__init__.py", "__main__.py"}
        and _module_name(path) not in used
        and not _defines_backend(module)
    ]
    assert dead == []


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """Every module that may be imported; ``from a import b`` can mean ``a.b`` as well."""
    package = _module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and LAZY.fullmatch(str(node.value)):
            yield node.lineno, str(node.value)


def _defines_backend(module: ast.Module) -> bool:
    return any(
        isinstance(target, ast.Name) and target.id == "BACKEND"
        for node in module.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )


@pytest.mark.timeout(60)
def test_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    command = [str(linter), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
