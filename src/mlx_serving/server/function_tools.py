"""Tools and their calls in the form that chat templates expect, whatever API they came by."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec

from mlx_serving.core.generation import ToolChoice
from mlx_serving.server.issues import Issue
from mlx_serving.server.json_values import as_object


def function_tool(
    name: str, description: str | None, parameters: Mapping[str, object], *, strict: bool | None
) -> Mapping[str, object]:
    """A tool for `ChatPrompt.tools`."""
    function: dict[str, object] = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = parameters
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def tool_call(call_id: str, name: str, arguments: Mapping[str, object]) -> Mapping[str, object]:
    """One of the `tool_calls` of an assistant's message."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def arguments_object(text: str) -> dict[str, object] | None:
    """The arguments of a call from their JSON text; None if it is no JSON object."""
    try:
        return as_object(msgspec.json.decode(text or "{}"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def tool_issues(names: Collection[str], choice: ToolChoice, field: str) -> Iterator[Issue]:
    """What is wrong with the names of tools, and with a choice among them."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        yield Issue("tools", f"tools must have names of their own, got {repeated[0]} more than once")
    if choice.mode == "required" and not names:
        yield Issue(field, f"{field} asks for a call, but there are no tools")
    elif choice.named is not None and choice.named not in names:
        yield Issue(field, f"{field} names {choice.named[:80]!r}, which is none of the tools")
