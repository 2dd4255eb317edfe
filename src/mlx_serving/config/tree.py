"""Values before the schema gives them types: trees of text that know where each part was set, and how they merge.

An empty layer changes nothing, and layers that agree on what is a scalar, a list or a mapping can be merged in any
grouping. Where they disagree the upper one wins, and the schema says whether that is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never, cast

from mlx_serving.config.origin import Origin, Path


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar as it was written; None for YAML's null."""

    text: str | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class Items:
    """A list, keyed by index. Merging may leave gaps or keys that are no index; then the schema refuses it."""

    entries: Mapping[str, Node]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping. Over a list it changes the entries that its keys name by index."""

    entries: Mapping[str, Node]
    origin: Origin


Node: TypeAlias = Leaf | Items | Table


def merge(lower: Node, upper: Node) -> Node:
    """`upper` over `lower`: tables merge key by key, a table changes the entries of a list, all else replaces."""
    match lower, upper:
        case Table(), Table():
            return merge_tables(lower, upper)
        case Items(), Table():
            return Items(_merged_entries(lower.entries, upper.entries), upper.origin)
        case _:
            return upper


def merge_tables(lower: Table, upper: Table) -> Table:
    return Table(_merged_entries(lower.entries, upper.entries), upper.origin)


def _merged_entries(lower: Mapping[str, Node], upper: Mapping[str, Node]) -> dict[str, Node]:
    changed = {key: merge(lower[key], node) if key in lower else node for key, node in upper.items()}
    return {**lower, **changed}


def at(path: Path, node: Node, origin: Origin) -> Table:
    """The table in which only `path`, which has at least one part, is set."""
    for key in reversed(path[1:]):
        node = Table({key: node}, origin)
    return Table({path[0]: node}, origin)


def find(root: Node, path: Path) -> Node | None:
    """What was set at exactly `path`."""
    node = root
    for key in path:
        child = None if isinstance(node, Leaf) else node.entries.get(key)
        if child is None:
            return None
        node = child
    return node


def nearest(root: Node, path: Path) -> Node:
    """What was set at `path`, else at the longest part of it at which anything was set."""
    for length in range(len(path), 0, -1):
        node = find(root, path[:length])
        if node is not None:
            return node
    return root


def plain(node: Node) -> object:
    """The tree as dicts, lists, text and None. A list with a gap becomes a dict, which the schema reports."""
    match node:
        case Leaf():
            return node.text
        case Items():
            indices = [str(index) for index in range(len(node.entries))]
            if set(node.entries) == set(indices):
                return [plain(node.entries[index]) for index in indices]
            return {key: plain(child) for key, child in node.entries.items()}
        case Table():
            return {key: plain(child) for key, child in node.entries.items()}
        case _:
            assert_never(node)


def map_leaves(node: Node, change: Callable[[Path, Leaf], Leaf], path: Path = ()) -> Node:
    """The same tree with every leaf replaced by what `change` makes of it."""
    match node:
        case Leaf():
            return change(path, node)
        case Items():
            return Items(_map_entries(node, change, path), node.origin)
        case Table():
            return Table(_map_entries(node, change, path), node.origin)
        case _:
            assert_never(node)


def _map_entries(node: Items | Table, change: Callable[[Path, Leaf], Leaf], path: Path) -> dict[str, Node]:
    return {key: map_leaves(child, change, (*path, key)) for key, child in node.entries.items()}


def leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """The parts of a plain value that have no parts: scalars, and containers that are empty."""
    if isinstance(value, Mapping) and value:
        parts = list(cast("Mapping[str, object]", value).items())
    elif isinstance(value, list | tuple) and value:
        parts = [(str(index), child) for index, child in enumerate(cast("Sequence[object]", value))]
    else:
        yield path, value
        return
    for key, child in parts:
        yield from leaves(child, (*path, key))
