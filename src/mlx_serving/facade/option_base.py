"""What all parameters of the engine's methods have in common: two spellings, and a check that tells all mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import msgspec
from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.facade.shapes import camel

M = TypeVar("M", bound=BaseModel)

_SHOWN_CHARS = 80


def either(name: str, *more: str) -> AliasChoices:
    """A parameter's two spellings, and other names that it has."""
    return AliasChoices(name, camel(name), *more)


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


def parse(model: type[M], given: M | Mapping[str, object] | str | None, *, text_field: str = "model") -> M:
    """Check what a caller gave. A string stands for `{text_field: string}`.

    Raises `InvalidRequest` with every issue at once.
    """
    if isinstance(given, model):
        return given
    data = {text_field: given} if isinstance(given, str) else dict(cast("Mapping[str, object]", given or {}))
    for name, value in data.items():
        _check_text(name, value)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _invalid(model, error) from None


def _check_text(name: str, value: object) -> None:
    """Python's strings can hold halves of surrogate pairs, which are no text and cannot be sent."""
    try:
        msgspec.json.encode(value, enc_hook=lambda _: None)
    except UnicodeEncodeError as error:
        half = f"{error.object[error.start]!r} at character {error.start}"
        raise InvalidRequest(f"{name} is no text: it has {half}, half of a surrogate pair", field=name) from None
    except TypeError:  # keys that are no texts: what may have them says so itself
        return


def unsupported(rule: str) -> PydanticCustomError:
    """To be raised for a parameter that is known, and not served."""
    return PydanticCustomError("unsupported", "{rule}", {"rule": rule})


def _invalid(model: type[BaseModel], error: ValidationError) -> InvalidRequest:
    found = error.errors(include_url=False)
    issues = [_issue(model, problem) for problem in found]
    message = "; ".join(str(issue["message"]) for issue in issues)
    unsupported = all(problem["type"] == "unsupported" for problem in found)
    cls = UnsupportedParameter if unsupported else InvalidRequest
    return cls(message, field=str(issues[0]["field"]), issues=issues)


def _issue(model: type[BaseModel], problem: ErrorDetails) -> dict[str, object]:
    # Tags of unions, written `<tag>`, are no part of what the caller sent.
    at = cast("Sequence[object]", problem.get("ctx", {}).get("at", ()))  # of fields together: the one to be changed
    path = ".".join(str(part) for part in (*problem["loc"], *at) if not str(part).startswith("<"))
    given = None if at else repr(problem["input"])[:_SHOWN_CHARS]
    match problem["type"]:
        case _ if at:
            rule = problem["msg"]
        case "extra_forbidden":
            rule = _unknown(model, path)
        case "missing":
            rule, given = "is required", None
        case "limit" | "unsupported" | "wrong_type":
            rule = problem["msg"]
        case "tuple_type":  # it is called what people write
            rule = f"is invalid: input should be a list, got {given}"
        case _:
            rule = f"is invalid: {problem['msg'][:1].lower()}{problem['msg'][1:]}, got {given}"
    message = f"{path}{rule}" if rule.startswith("[") else f"{path} {rule}"
    issue = {"field": path, "message": message, "limit": problem.get("ctx", {}).get("limit"), "given": given}
    return {name: value for name, value in issue.items() if value is not None}


def _unknown(model: type[BaseModel], name: str) -> str:
    for field in model.model_fields.values():
        spellings = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
        if name in spellings:
            return f"is given twice: {' and '.join(map(str, spellings))} are spellings of one parameter"
    hint = did_you_mean(name, model.model_fields)
    return "is an unknown parameter" + (f"; did you mean {hint}?" if hint else "")
