"""Single values set from outside the file: environment variables, `--set a.b=c`, and flags that stand for a setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_serving.config.issues import Issue
from mlx_serving.config.origin import InFlag, InVariable, Origin, Path, dotted, variable_name, variable_path
from mlx_serving.config.tree import Leaf, Node, Table, at
from mlx_serving.config.yaml_text import is_null, parse

_PART = re.compile(r"[A-Za-z0-9_-]+")
# What Kubernetes tells every container of a service that is called mlx-serving; its MLX_SERVING_PORT is a URL.
_KUBERNETES = re.compile(r"MLX_SERVING_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)")


@dataclass(frozen=True, slots=True)
class Assignment:
    """One setting that is given a value; `text` is the value as it was typed."""

    path: Path
    text: str
    origin: Origin

    def read(self) -> tuple[Table | None, list[Issue]]:
        """The tree in which only this is set.

        What begins with a bracket, a brace or a quote is YAML. Anything else is taken literally, because a secret may
        hold what YAML would read as a comment or an alias.
        """
        node: Node | None
        if self.text.lstrip()[:1] in ("[", "{", '"', "'"):
            node, issues = parse(self.text, self.path, lambda _line: self.origin)
        else:
            node, issues = Leaf(None if is_null(self.text.strip()) else self.text, self.origin), []
        return (None if node is None else at(self.path, node, self.origin)), issues


def from_flag(flag: str, path: str, value: str) -> Assignment:
    """What a flag of its own (`--port`) sets; `path` is dotted."""
    return Assignment(tuple(path.split(".")), value, InFlag(flag))


def from_variables(environ: Mapping[str, str]) -> tuple[list[Assignment], list[Issue]]:
    """The settings among the environment variables, in the order of their names."""
    assignments: list[Assignment] = []
    issues: list[Issue] = []
    spelled: dict[Path, str] = {}
    for name in sorted(environ):
        path = variable_path(name)
        if path is None or _KUBERNETES.fullmatch(name) or (path == ("port",) and "://" in environ[name]):
            continue
        origin = InVariable(name)
        if not all(path):
            message = f"{name} is no name of a setting: a part of it is empty"
            issues.append(Issue((), message, origin, suggestion="write MLX_SERVING_SECTION__KEY"))
        elif path in spelled:
            message = f"is set twice, by {spelled[path]} and {name}"
            issues.append(Issue(path, message, origin, suggestion=f"keep {variable_name(path)} only"))
        else:
            spelled[path] = name
            assignments.append(Assignment(path, environ[name], origin))
    return assignments, issues


def from_set_flags(arguments: Sequence[str]) -> tuple[list[Assignment], list[Issue]]:
    """What was given to `--set`, in order. A malformed argument is not quoted beyond its key: it may hold a secret."""
    assignments: list[Assignment] = []
    issues: list[Issue] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        path = tuple(key.strip().split("."))
        if equals and all(_PART.fullmatch(part) for part in path):
            assignments.append(Assignment(path, value, InFlag(f"--set {dotted(path)}=…")))
            continue
        if not equals:
            problem = "has no '='"
        elif not key.strip():
            problem = "has no key before the '='"
        else:
            problem = f"has a malformed key '{key.strip()}'"
        message = f"an argument of --set {problem}"
        issues.append(Issue((), message, InFlag("--set"), suggestion="write --set section.key=value"))
    return assignments, issues
