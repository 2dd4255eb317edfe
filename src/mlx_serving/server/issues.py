"""What is wrong with a request, collected: everything is reported at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import msgspec
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.sampling_defaults import validate
from mlx_serving.core.suggest import unknown_key_message
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.server.json_values import as_array, as_object
from mlx_serving.server.unsupported import INSTEAD, NeutralValues, is_neutral

_ISSUES_IN_MESSAGE = 5
_MAX_SHOWN_CHARS = 80
MAX_ISSUES = 50
"""Of one kind in one request. Who makes more mistakes than that does not read the list; and each takes its time to
tell, which others wait for."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One problem. `field` is the path of the parameter, `code` one of the codes of OpenAI's error object."""

    field: str
    message: str
    code: str = "invalid_value"
    limit: object = None

    def to_object(self) -> dict[str, object]:
        known = {"field": self.field, "message": self.message, "code": self.code, "limit": self.limit}
        return {name: value for name, value in known.items() if value is not None}


def refuse(issues: Collection[Issue]) -> None:
    """Raise one `InvalidRequest` that tells all of them, if there are any."""
    if not issues:
        return
    told = list(issues)
    message = "; ".join(issue.message for issue in told[:_ISSUES_IN_MESSAGE])
    if len(told) > _ISSUES_IN_MESSAGE:
        message += f"; and {len(told) - _ISSUES_IN_MESSAGE} more"
    unsupported = all(issue.code == "unsupported_parameter" for issue in told)
    cls = UnsupportedParameter if unsupported else InvalidRequest
    raise cls(message, field=told[0].field, issues=[issue.to_object() for issue in told])


def screen(
    given: Mapping[str, object], known: Collection[str], unsupported: NeutralValues, path: str = ""
) -> tuple[dict[str, object], list[Issue]]:
    """Split an object into the parameters that are served and the issues with all others. Raises `InvalidRequest` at
    once when there are `MAX_ISSUES`."""
    served: dict[str, object] = {}
    issues: list[Issue] = []
    for name, value in given.items():
        field = f"{path}.{name}" if path else name
        if name in known:
            served[name] = value
        elif name in unsupported:
            if not is_neutral(value, unsupported[name]):
                instead = f": {INSTEAD[field]}" if field in INSTEAD else ""
                text = f"{field} is not supported by this server{instead}"
                issues.append(Issue(field, text, "unsupported_parameter"))
        else:
            kind = f"{path} parameter" if path else "parameter"
            reason = unknown_key_message(name[:_MAX_SHOWN_CHARS], known, kind)
            issues.append(Issue(field[: _MAX_SHOWN_CHARS * 2], reason, "unknown_parameter"))
        if len(issues) == MAX_ISSUES:
            refuse(issues)
    return served, issues


def shown(value: object) -> str:
    """A value as a person wrote it, cut to a bearable length."""
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"


_KIND_BY_TYPE: Mapping[str, str] = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}

_RULE_BY_TYPE: Mapping[str, tuple[str, str]] = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def from_validation_error(error: ValidationError) -> Iterable[Issue]:
    """pydantic's findings in the words of the API. Raises `InvalidRequest` when they are more than `MAX_ISSUES`."""
    count = error.error_count()
    if count > MAX_ISSUES:
        raise InvalidRequest(f"{count} values of the request are not what they must be", limit=MAX_ISSUES, given=count)
    for found in error.errors(include_url=False):
        yield _from_finding(found)


def _from_finding(found: ErrorDetails) -> Issue:
    context = found.get("ctx", {})
    # What is wrong with fields together names the one to be changed.
    location = (*found["loc"], *cast("Iterable[str]", context.get("at", ())))
    is_key = location[-1:] == ("[key]",)
    field = _path(location[:-2] if is_key else location)
    subject = f"a key of {field}" if is_key else field
    match found["type"]:
        case "missing":
            return Issue(field, f"{field} is required", "missing_required_parameter")
        case kind if kind in _KIND_BY_TYPE:
            expected = _KIND_BY_TYPE[kind]
            return Issue(
                field, f"{field} must be {expected}, got {shown(found['input'])}", "invalid_type", limit=expected
            )
        case "literal_error":
            expected = str(context["expected"])
            return Issue(field, f"{field} must be {expected}, got {shown(found['input'])}", limit=expected)
        case "too_short" | "string_too_short":
            return Issue(field, f"{field} must not be empty")
        case "too_long" | "string_too_long":
            limit, unit = context["max_length"], "characters" if isinstance(found["input"], str) else "entries"
            return Issue(field, f"{subject} must have at most {limit} {unit}, got {len(found['input'])}", limit=limit)
        case "string_pattern_mismatch":
            pattern = context["pattern"]
            return Issue(
                field, f"{subject} must match the pattern {pattern}, got {shown(found['input'])}", limit=pattern
            )
        case kind if kind in _RULE_BY_TYPE:
            key, rule = _RULE_BY_TYPE[kind]
            limit = context[key]
            return Issue(field, f"{subject} must be {rule} {limit}, got {shown(found['input'])}", limit=limit)
        case "unsupported":
            text = f"{field} {found['msg']}, got {shown(found['input'])}"
            return Issue(field, text, "unsupported_parameter")
        case "extra_forbidden":
            return Issue(field, f"{field} is not a parameter of this object", "unknown_parameter")
        case "wrong_type":
            return Issue(field, f"{field} {found['msg']}, got {shown(found['input'])}", "invalid_type")
        case _:
            return Issue(field, f"{field} {found['msg']}")


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].role`. Tags of unions, written `<tag>`, are no part of what the caller sent."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            name = step[:_MAX_SHOWN_CHARS]
            path += f".{name}" if path else name
    return path


def range_issues(params: SamplingParams, names: Mapping[str, str]) -> Iterator[Issue]:
    """The sampling parameters that are out of their limits; `names` are those that the API has its own names for."""
    try:
        validate(params)
    except InvalidRequest as error:
        for issue in from_range_error(error):
            name, bracket, rest = issue.field.partition("[")
            field = names.get(name, name) + bracket + rest
            yield replace(issue, field=field, message=issue.message.replace(issue.field, field, 1))


def from_range_error(error: InvalidRequest) -> Iterable[Issue]:
    """What `core.sampling_defaults.validate` found: one error for one problem, `issues` for several."""
    issues = as_array(error.details.get("issues"))
    if issues is None:
        yield Issue(error.field or "", error.message, limit=error.details.get("limit"))
        return
    for each in issues:
        issue = as_object(each) or {}
        yield Issue(str(issue["field"]), str(issue["message"]), limit=issue.get("limit"))
