"""Kinds of fields that the request bodies of several APIs have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from mlx_serving.server.json_values import as_object, depth
from mlx_serving.server.unsupported import is_neutral

_MAX_OBJECT_DEPTH = 64


class Body(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", frozen=True)


Hidden: TypeAlias = SkipJsonSchema[object]
"""Of a field that is no part of the schema."""


def nested_at_most(levels: int) -> AfterValidator:
    """For JSON that a client may nest."""

    def check(value: dict[str, object]) -> dict[str, object]:
        if depth(value, levels) > levels:
            raise PydanticCustomError("too_deep", "must not be nested more than {limit} levels deep", {"limit": levels})
        return value

    return AfterValidator(check)


JsonObject: TypeAlias = Annotated[dict[str, object], nested_at_most(_MAX_OBJECT_DEPTH)]


def unserved(*neutral: object) -> AfterValidator:
    """For a field that is refused by name, unless its value is null or one of `neutral`, which ask for nothing."""

    def refuse(value: object) -> object:
        if not is_neutral(value, neutral):
            raise PydanticCustomError("unsupported", "is not supported by this server")
        return value

    return AfterValidator(refuse)


def by_type(what: str, *kinds: str, key: str = "type") -> Discriminator:
    """Tells objects apart by the string in `key`, for a union whose tags are `<type>`. Others are refused by name."""
    listed = ", ".join(kinds)
    return Discriminator(
        _tag_of(key, kinds),
        custom_error_type="unsupported",
        custom_error_message=f"must be {what} of the {key} {listed}: others are not supported by this server",
    )


def of_type(what: str, kind: str) -> BeforeValidator:
    """The same for objects of one type only."""

    def check(value: object) -> object:
        given = as_object(value)
        if given is not None and given.get("type") != kind:
            raise PydanticCustomError(
                "unsupported",
                "must be {what} of the type {kind}: others are not supported by this server",
                {"what": what, "kind": kind},
            )
        return value

    return BeforeValidator(check)


def field_of(value: object, key: str) -> object:
    """A field of an object that is read, or of a model that is written: unions are told apart both ways."""
    return getattr(value, key, None) if isinstance(value, BaseModel) else (as_object(value) or {}).get(key)


def _tag_of(key: str, kinds: tuple[str, ...]) -> Callable[[object], str | None]:
    def tag(value: object) -> str | None:
        kind = field_of(value, key)
        return f"<{kind}>" if kind in kinds else None

    return tag


def string_or(what: str) -> Discriminator:
    """Tells a string, `<text>`, from a list, `<list>`."""

    def tag(value: object) -> str | None:
        return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None

    return Discriminator(
        tag, custom_error_type="wrong_type", custom_error_message=f"must be a string or a list of {what}"
    )
