"""The configuration file: sections, and overlays of them by name under `environments`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlx_serving.config.issues import Issue
from mlx_serving.config.origin import DEFAULT, InFile, Origin, Path
from mlx_serving.config.tree import Leaf, Node, Table, map_leaves
from mlx_serving.config.yaml_text import parse
from mlx_serving.core.suggest import did_you_mean

OVERLAYS_KEY = "environments"

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read: its sections, and its overlays by name."""

    file: str
    root: Table
    overlays: Mapping[str, Table]


def parse_document(text: str, file: str) -> tuple[Document | None, list[Issue]]:
    """The content of a configuration file, which is called `file` in origins; None where it cannot be read at all."""
    node, issues = parse(text, (), lambda line: InFile(file, line))
    if node is None:
        return (None if issues else Document(file, Table({}, InFile(file, 1)), {})), issues
    root = _table(node)
    if root is None:
        return None, [Issue((), "the file must be a mapping of sections", node.origin)]
    sections = {key: child for key, child in root.entries.items() if key != OVERLAYS_KEY}
    overlays, overlay_issues = _overlays(root.entries.get(OVERLAYS_KEY))
    return Document(file, _without_empty_sections(Table(sections, root.origin)), overlays), issues + overlay_issues


def _overlays(node: Node | None) -> tuple[dict[str, Table], list[Issue]]:
    overlays: dict[str, Table] = {}
    issues: list[Issue] = []
    environments = _table(node) if node is not None else Table({}, DEFAULT)
    if node is not None and environments is None:
        issues.append(Issue((OVERLAYS_KEY,), "must be a mapping of names to sections", node.origin))
    for name, child in environments.entries.items() if environments is not None else ():
        overlay = _table(child)
        if overlay is None:
            issues.append(Issue((OVERLAYS_KEY, name), "must be a mapping of sections", child.origin))
        else:
            overlays[name] = _without_empty_sections(_in_overlay(overlay, name))
    return overlays, issues


def _table(node: Node) -> Table | None:
    """The mapping that `node` is. One of which every line is a comment is empty, which YAML reads as null."""
    match node:
        case Table():
            return node
        case Leaf(text=None):
            return Table({}, node.origin)
        case _:
            return None


def _without_empty_sections(root: Table) -> Table:
    kept = {key: child for key, child in root.entries.items() if not (isinstance(child, Leaf) and child.text is None)}
    return Table(kept, root.origin)


def _in_overlay(node: Table, name: str) -> Table:
    def moved(origin: Origin) -> Origin:
        return replace(origin, overlay=name) if isinstance(origin, InFile) else origin

    def move(child: Node) -> Node:
        if isinstance(child, Leaf):
            return Leaf(child.text, moved(child.origin))
        return replace(
            child, entries={key: move(value) for key, value in child.entries.items()}, origin=moved(child.origin)
        )

    return Table({key: move(child) for key, child in node.entries.items()}, moved(node.origin))


def choose_overlay(document: Document | None, name: str, asked_by: Origin) -> tuple[Table | None, list[Issue]]:
    """The overlay called `name`, or the issue that there is none."""
    names = sorted(document.overlays) if document is not None else []
    if document is not None and name in document.overlays:
        return document.overlays[name], []
    guess = did_you_mean(name, names)
    if guess is not None:
        suggestion = f"did you mean '{guess}'?"
    elif names:
        suggestion = f"choose one of: {', '.join(names)}"
    else:
        place = document.file if document is not None else "a configuration file"
        suggestion = f"add it to {place} under `{OVERLAYS_KEY}`, or choose none"
    return None, [Issue((OVERLAYS_KEY, name), "there is no overlay of this name", asked_by, suggestion=suggestion)]


def with_variables(root: Table, environ: Mapping[str, str]) -> tuple[Table, list[Issue]]:
    """`root` with every value in a file that is exactly `${NAME}` replaced by that environment variable.

    Done when all layers are merged: a reference that another layer overrides need not be set.
    """
    issues: list[Issue] = []

    def change(path: Path, leaf: Leaf) -> Leaf:
        found = _REFERENCE.fullmatch(leaf.text or "")
        if found is None or not isinstance(leaf.origin, InFile):
            return leaf
        name = found[1]
        if name not in environ:
            message = f"the environment variable {name} is not set"
            issues.append(Issue(path, message, leaf.origin, suggestion=f"set {name}, or give the value itself"))
            return leaf
        return Leaf(environ[name], replace(leaf.origin, variable=name))

    changed = map_leaves(root, change)
    return (changed if isinstance(changed, Table) else root), issues
