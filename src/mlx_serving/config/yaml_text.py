"""YAML to trees of text: the failsafe schema of YAML 1.2 plus null, so that `no`, `010` and `1e5` stay what was typed.

The settings' own types say later what a text means. Nothing but mappings, lists and scalars exists here: tags that
would construct anything are refused, and so are merge keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, assert_never

import yaml

from mlx_serving.config.issues import Issue
from mlx_serving.config.origin import Origin, Path
from mlx_serving.config.tree import Items, Leaf, Node, Table

OriginOfLine: TypeAlias = Callable[[int], Origin]
"""The origin of what stands on a line, counted from 1."""

MAX_NODES = 10_000

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "seq", "map")
)
_MERGE_TAG = "tag:yaml.org,2002:merge"


class _Refused(Exception):
    """Content that is YAML but no configuration; the rest of the text is not worth reading."""

    def __init__(self, message: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.line: int = node.start_mark.line + 1
        self.column: int = node.start_mark.column + 1


def parse(text: str, path: Path, origin_of_line: OriginOfLine) -> tuple[Node | None, list[Issue]]:
    """The tree of a YAML text that belongs at `path`; None if there is none, because it is empty or wrong.

    Errors quote no part of the text: it may hold secrets.
    """
    reader = _Reader(origin_of_line)
    try:
        root = yaml.SafeLoader(text).get_single_node()
        return (None if root is None else reader.node(root, path)), reader.issues
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return None, [_syntax_issue(str(error.problem or error.context), path, origin_of_line, line, column)]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        return None, [_syntax_issue("a character that YAML does not allow", path, origin_of_line, line, column)]
    except _Refused as error:
        return None, [_syntax_issue(str(error), path, origin_of_line, error.line, error.column)]
    except RecursionError:
        return None, [_syntax_issue("nested too deeply", path, origin_of_line, 1, 1)]


def is_null(text: str) -> bool:
    """Whether an unquoted scalar means none."""
    return text in _NULLS


def _syntax_issue(problem: str, path: Path, origin_of_line: OriginOfLine, line: int, column: int) -> Issue:
    return Issue(
        path,
        f"invalid YAML: {problem} (line {line}, column {column})",
        origin_of_line(line),
        suggestion="check the indentation there, and put quotes around values with any of { } [ ] , : # & * ! | > @ `",
    )


class _Reader:
    def __init__(self, origin_of_line: OriginOfLine) -> None:
        self.issues: list[Issue] = []
        self._origin_of_line = origin_of_line
        self._count = 0

    def node(self, node: yaml.Node, path: Path) -> Node:
        # An alias is the same node again, so a short text can stand for an endless tree.
        self._count += 1
        if self._count > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} values", node)
        if node.tag not in _PLAIN_TAGS:
            raise _Refused(f"the tag {node.tag} is not allowed", node)
        origin = self._origin(node)
        if isinstance(node, yaml.MappingNode):
            return Table(self._entries(node, path), origin)
        if isinstance(node, yaml.SequenceNode):
            children = [self.node(child, (*path, str(index))) for index, child in enumerate(node.value)]
            return Items({str(index): child for index, child in enumerate(children)}, origin)
        if not isinstance(node, yaml.ScalarNode):
            raise _Refused("neither a mapping, a list nor a scalar", node)
        is_none = node.style is None and is_null(node.value)
        return Leaf(None if is_none else node.value, origin)

    def _entries(self, node: yaml.MappingNode, path: Path) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused("a key must be text", key)
            if key.tag == _MERGE_TAG:
                raise _Refused("merge keys (<<) are not supported; overlays in `environments` do the same", key)
            name = key.value
            child = self.node(value, (*path, name))
            if name in entries:
                message = f"is set twice, first on line {lines[name]}"
                self.issues.append(Issue((*path, name), message, self._origin(key), suggestion="remove one of them"))
                continue
            lines[name] = key.start_mark.line + 1
            # A value is looked for where its key is, even if it begins on a later line.
            entries[name] = _moved(child, self._origin(key))
        return entries

    def _origin(self, node: yaml.Node) -> Origin:
        return self._origin_of_line(node.start_mark.line + 1)


def _moved(node: Node, origin: Origin) -> Node:
    match node:
        case Leaf():
            return Leaf(node.text, origin)
        case Items():
            return Items(node.entries, origin)
        case Table():
            return Table(node.entries, origin)
        case _:
            assert_never(node)
