"""A YAML file as plain data, with the line of every key and ``${VAR}`` expanded in its strings.

The node tree is walked instead of being loaded, because only nodes know their lines.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from market_data_core.errors import ConfigError

Path = tuple[str | int, ...]
"""Where a value stands: the keys and list positions that lead to it."""

_DEPTH_MAX = 32
_NODES_MAX = 100_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STR_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: the setting it concerns; empty for the file as a whole.
        text: what is wrong and what to write instead.
        line: 1-based line in the file; None for what stands in no file.
    """

    path: Path
    text: str
    line: int | None = None


@dataclass(slots=True)
class Document:
    """What a file says.

    Attributes:
        data: the settings; None where a key has no value or a value that cannot be read.
        items: likewise, of a file that is a list; what stands there if it is none.
        lines: 1-based line of every key and list item.
        problems: everything that was wrong, in the order of the file.
    """

    data: dict[str, object] = field(default_factory=dict)
    items: object = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """The line of `path`, or of the nearest setting around it that the file contains."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


def dotted(path: Path) -> str:
    """``("features", "windows", 0, "name")`` as ``features.windows[0].name``."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else ("." if i else "") + part
        for i, part in enumerate(path)
    )


def read_text(path: pathlib.Path) -> str:
    """What a file says, without the mark that some editors begin it with.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}"
        raise ConfigError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path}: is not UTF-8 text (byte {error.start})"
        raise ConfigError(msg) from error


def parse_yaml(text: str, env: Mapping[str, str] | None, *, listed: bool = False) -> Document:
    """The settings in `text`; problems are collected, none is raised.

    Only the parser's standard tags are understood: nothing in the file can run code.

    Args:
        text: YAML.
        env: what variables are filled in from; None to leave texts as they are.
        listed: whether it is a list of settings instead of a mapping.
    """
    document = Document()
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return document
        walker = _Walker(document, loader, env)
        if listed:
            document.items = walker.value(root, ())
        elif isinstance(root, yaml.MappingNode):
            document.data = walker.mapping(root, ())
        else:
            document.problems.append(Problem((), "must be a mapping of settings", _line(root)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        line = mark.line + 1 if mark else None
        document.problems.append(Problem((), f"not valid YAML: {what}", line))
    except yaml.YAMLError as error:
        document.problems.append(Problem((), f"not valid YAML: {error}"))
    return document


class _Walker:
    """Turns nodes into values."""

    def __init__(
        self, document: Document, loader: yaml.SafeLoader, env: Mapping[str, str] | None
    ) -> None:
        self._document = document
        self._loader = loader
        self._env = env
        self._nodes = 0

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        """The mapping's items; merged ones (``<<``) give way to its own."""
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, "a key must be a plain name", line)
                continue
            if key_node.tag == _MERGE_TAG:
                merged = {**self._merge(value_node, path), **merged}
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in seen:
                self._problem(here, f"given twice, first on line {seen[key]}; keep one", line)
                continue
            seen[key] = line
            self._document.lines[here] = line
            own[key] = self.value(value_node, here)
        return {**merged, **own}

    def _merge(self, node: yaml.Node, path: Path) -> dict[str, object]:
        """What ``<<: *anchor`` or ``<<: [*first, *second]`` brings in; the first goes before."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, object] = {}
        for source in sources:
            value = self.value(source, path)
            if not isinstance(value, dict):
                self._problem(path, "<< must be followed by mappings", _line(node))
                continue
            merged = {**value, **merged}
        return merged

    def value(self, node: yaml.Node, path: Path) -> object:
        """What a node says; None where it says nothing that can be read."""
        self._nodes += 1
        if self._nodes > _NODES_MAX or len(path) > _DEPTH_MAX:
            mark = node.start_mark  # aliases can make a short file endless
            raise yaml.MarkedYAMLError(problem="nested too deep or too long", problem_mark=mark)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self._document.lines[*path, index] = _line(child)
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        if node.tag != _STR_TAG:
            return self._scalar(node, path)
        if self._env is None:
            return str(node.value)
        try:
            return expand(str(node.value), self._env)
        except ConfigError as error:
            self._problem(path, str(error), _line(node))
            return None

    def _scalar(self, node: yaml.Node, path: Path) -> object:
        try:
            value: object = self._loader.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError) as error:
            self._problem(path, f"cannot be read: {error}".splitlines()[0], _line(node))
            return None
        return value

    def _problem(self, path: Path, text: str, line: int) -> None:
        self._document.problems.append(Problem(path, text, line))


def expand(text: str, env: Mapping[str, str]) -> str:
    """`text` with ``${VAR}``, ``${VAR:-default}`` and ``${VAR:?message}`` filled in from `env`.

    ``$$`` is a dollar sign; any other ``$`` stays as it is, so that passwords survive. With ``:-``
    and ``:?`` an empty variable counts as unset. A default may hold further variables; what a
    variable holds is never expanded again.

    Raises:
        ConfigError: a variable without default is not set, or a ``${`` is not closed.
    """
    out: list[str] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        out.append(text[at:dollar])
        following = text[dollar + 1 : dollar + 2]
        if following == "{":
            end = _closing_brace(text, dollar + 2)
            out.append(_lookup(text[dollar + 2 : end], env))
            at = end + 1
        else:
            out.append("$")
            at = dollar + (2 if following == "$" else 1)
    return "".join(out) + text[at:]


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    at = start
    while at < len(text):
        if text.startswith("${", at):
            depth += 1
            at += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    msg = "a ${ is not closed with }; write $${ for the characters themselves"
    raise ConfigError(msg)


def _lookup(inside: str, env: Mapping[str, str]) -> str:
    match = _NAME.match(inside)
    name = match[0] if match else ""
    rest = inside[len(name) :]
    if not name or (rest and rest[:2] not in (":-", ":?")):
        msg = (
            f"${{{inside}}} is not understood; write ${{VAR}}, ${{VAR:-default}} or ${{VAR:?text}}"
        )
        raise ConfigError(msg)
    value = env.get(name)
    if not rest:
        if value is None:
            msg = f"environment variable {name} is not set; set it or write ${{{name}:-default}}"
            raise ConfigError(msg)
        return value
    if value:
        return value
    if rest.startswith(":-"):
        return expand(rest[2:], env)
    msg = f"environment variable {name} is not set: {expand(rest[2:], env) or 'it is required'}"
    raise ConfigError(msg)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
