"""Parsed JSON, whose type is only known as one looks at it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast


def as_object(value: object) -> dict[str, object] | None:
    """`value` if it is a JSON object."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def as_array(value: object) -> list[object] | None:
    """`value` if it is a JSON array."""
    return cast("list[object]", value) if isinstance(value, list) else None


def kind_of(value: object) -> str:
    """What `value` is, in JSON's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "a number"


def depth(value: object, limit: int) -> int:
    """Levels of nesting of `value`, counted up to `limit + 1`; a number or a string has none.

    It goes level by level: how deep the value is was the sender's choice, how deep the stack is was not.
    """
    levels = 0
    level = [value]
    while levels <= limit and any(isinstance(each, dict | list) for each in level):
        levels += 1
        level = [item for each in level for item in _items(each)]
    return levels


def has_more_parts(value: object, limit: int) -> bool:
    """Whether `value` has more than so many objects and lists in it, itself included."""
    found = 0
    waiting = [value]
    while waiting:
        part = waiting.pop()
        found += 1
        if found > limit:
            return True
        waiting += [item for item in _items(part) if isinstance(item, dict | list)]
    return False


def _items(value: object) -> Iterable[object]:
    members = as_object(value)
    return members.values() if members is not None else as_array(value) or ()
