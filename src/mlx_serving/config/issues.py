"""What is wrong with a configuration: every problem with its place, its origin and a fix; secrets never appear."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from mlx_serving.config.origin import DEFAULT, Origin, Path, dotted, spell
from mlx_serving.config.reference import Reference
from mlx_serving.config.tree import Leaf, Node, Table, nearest
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import InvalidConfig

MASK = str(SecretStr("masked"))

_UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}
_SECTION_EXPECTED = "must be a mapping of keys to values"
_MESSAGES = {
    "missing": "is required",
    "model_type": _SECTION_EXPECTED,
    "dataclass_type": _SECTION_EXPECTED,
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entry",
    "string_pattern_mismatch": "must match {pattern}",
}
_SUBJECT = re.compile(r"^(Input|String|Value) should ")


@dataclass(frozen=True, slots=True)
class Issue:
    """One problem. `value` is what was given, None where nothing was or where it must not be shown."""

    path: Path
    message: str
    origin: Origin = DEFAULT
    value: str | None = None
    suggestion: str | None = None

    def to_dict(self) -> dict[str, object]:
        fields: dict[str, str | None] = {
            "path": dotted(self.path),
            "message": self.message,
            "value": self.value,
            "origin": None if self.origin == DEFAULT else str(self.origin),
            "suggestion": self.suggestion,
        }
        return {name: _printable(value) for name, value in fields.items() if value is not None}


def invalid_config(issues: Sequence[Issue]) -> InvalidConfig:
    """The error that carries all of `issues`."""
    found = [issue.to_dict() for issue in issues]
    lines = [f"{issue['path']}: {issue['message']}" if issue["path"] else str(issue["message"]) for issue in found]
    count = "1 problem" if len(issues) == 1 else f"{len(issues)} problems"
    return InvalidConfig(f"{count} in the configuration: {'; '.join(lines)}", issues=found)


def _printable(text: str) -> str:
    """Given text comes from outside: it may hold control sequences for a terminal, or what UTF-8 cannot encode."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def issues_of(error: ValidationError, root: Table, reference: Reference) -> list[Issue]:
    """The problems that the schema found in the values of `root`."""
    found = error.errors(include_url=False)
    return [_issue(details, root, reference) for details in found if not _is_consequence(details, found)]


def _is_consequence(details: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Whether pydantic reports this only because of another problem that it reports, too."""
    match details["type"]:
        case "default_factory_not_called":  # the field that the factory reads is wrong
            return True
        case "too_short":  # entries that are wrong do not count
            place = details["loc"]
            return any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in found)
        case _:
            return False


def _issue(details: ErrorDetails, root: Table, reference: Reference) -> Issue:
    context: Mapping[str, object] = details.get("ctx", {})
    below = cast("Sequence[object]", context.get("at", ()))
    path = tuple(str(part) for part in (*details["loc"], *below))
    if details["type"] in _UNKNOWN_KEY:
        return unknown_key(path, nearest(root, path).origin, reference)
    node = nearest(root, path)
    return Issue(
        path=path,
        message=_message(details, context),
        origin=node.origin,
        value=_shown(path, node, reference),
        suggestion=_fix(details, path, context, node, reference),
    )


def unknown_key(path: Path, origin: Origin, reference: Reference) -> Issue:
    """Its value is never shown: the key may be a misspelled secret."""
    known = reference.keys_below(path[:-1])
    guess = did_you_mean(path[-1], known)
    namesakes = reference.namesakes(path)
    if namesakes:
        suggestion = f"did you mean {spell(namesakes[0], origin)}?"
    elif guess is not None:
        suggestion = f"did you mean {spell((*path[:-1], guess), origin)}?"
    else:
        suggestion = f"remove it; known here: {', '.join(known)}"
    return Issue(path, "unknown key", origin, suggestion=suggestion)


def _message(details: ErrorDetails, context: Mapping[str, object]) -> str:
    if str(context.get("pattern", "")).startswith("^[^"):  # which say what may not be there
        return "contains a space or a control character"
    if details["type"] in _MESSAGES:
        return _MESSAGES[details["type"]].format_map(context)
    if isinstance(context.get("error"), ValueError):
        return str(context["error"])
    return _SUBJECT.sub("must ", details["msg"])


def _shown(path: Path, node: Node, reference: Reference) -> str | None:
    if not isinstance(node, Leaf) or node.text is None:
        return None
    return MASK if reference.holds_secret(path) else node.text


def _fix(details: ErrorDetails, path: Path, context: Mapping[str, object], node: Node, reference: Reference) -> str:
    where = spell(path, node.origin)
    if details["type"] == "list_gap":
        return f"use the index {context['free']}"
    setting, keys = reference.find(path), reference.keys_below(path)
    if setting is None:
        wants_keys = bool(keys) and _MESSAGES.get(details["type"]) == _SECTION_EXPECTED
        return f"give it keys: {', '.join(keys)}" if wants_keys else f"change the values of {where} so that this holds"
    given = node.text if isinstance(node, Leaf) else None
    choices = [str(name) for name in cast("Sequence[object]", context.get("known", setting.choices))]
    guess = did_you_mean(given, choices) if given else None
    if guess is not None:
        return f"did you mean '{guess}'?"
    wanted = f"one of {', '.join(choices)}" if choices else setting.requirement
    default = f" (default: {setting.default_text})" if isinstance(setting.default, str | int | float) else ""
    return f"set {where} to {wanted}{default}"
