"""Lines of system prompts that are no part of what is asked, and change with every request: with one of them near its
beginning, no prompt begins like another, and nothing that was kept of those before can be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

KNOWN = ("x-anthropic-billing-header:",)
"""How those lines begin that are never shown to a model: Claude Code puts its accounts, with a digest of the request,
before the system prompt. Anthropic's own service takes them out."""

SYSTEM_ROLES = ("system", "developer")


def without_volatile_lines(
    messages: tuple[Mapping[str, object], ...], also: Sequence[str] = ()
) -> tuple[Mapping[str, object], ...]:
    """Conversations without the lines of their system messages that begin with what is `KNOWN`, or `also` volatile. A
    message of which nothing is left goes with them."""
    return tuple(_kept(messages, (*KNOWN, *also)))


def _kept(messages: tuple[Mapping[str, object], ...], beginnings: tuple[str, ...]) -> Iterator[Mapping[str, object]]:
    for message in messages:
        if message.get("role") not in SYSTEM_ROLES:
            yield message
            continue
        content = message.get("content")
        kept = _without(content, beginnings)
        if kept == content:
            yield message
        elif kept:
            yield {**message, "content": kept}


def _without(content: object, beginnings: tuple[str, ...]) -> object:
    """Of a text, or of the parts of a text; of these, none that is empty then."""
    if isinstance(content, str):
        return _lines_without(content, beginnings)
    if not isinstance(content, list):
        return content
    parts = [_part_without(part, beginnings) for part in cast("list[object]", content)]
    return [part for part in parts if part is not None]


def _part_without(part: object, beginnings: tuple[str, ...]) -> object:
    """None for one of which nothing is left."""
    fields = cast("Mapping[str, object]", part if isinstance(part, Mapping) else {})
    text = fields.get("text")
    if not isinstance(text, str) or (left := _lines_without(text, beginnings)) == text:
        return cast("object", part)
    return {**fields, "text": left} if left else None


def _lines_without(text: str, beginnings: tuple[str, ...]) -> str:
    if not any(beginning in text for beginning in beginnings):
        return text
    lines = text.split("\n")
    return "\n".join(line for line in lines if not line.lstrip(" \t").startswith(beginnings))
