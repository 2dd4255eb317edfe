"""From a body of the Responses API to a request for the engine, or to everything that is wrong with it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from pydantic import ValidationError

from mlx_serving.core.generation import ChatPrompt, SamplingParams, Structure, ToolChoice
from mlx_serving.core.images.parts import Pictures
from mlx_serving.core.reasoning_effort import Thought, thought_of
from mlx_serving.server import unsupported
from mlx_serving.server.function_tools import arguments_object, function_tool, tool_call, tool_issues
from mlx_serving.server.issues import Issue, from_validation_error, range_issues, refuse, screen
from mlx_serving.server.json_values import as_array
from mlx_serving.server.responses.schema import (
    ENCODED_PREFIX,
    AllowedTools,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    InputItem,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    ResponsesRequest,
    SchemaFormat,
)

FIELD_NAMES = {"prompt": "input", "max_tokens": "max_output_tokens", "logprobs": "top_logprobs"}
"""What the API calls the engine's fields, where that differs."""
_NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """What a client asked for. `request` is what came, `items` the input as items."""

    request: ResponsesRequest
    items: tuple[InputItem, ...]
    sampling: SamplingParams
    tools: tuple[Mapping[str, object], ...]
    tool_choice: ToolChoice
    structure: Structure | None
    thought: Thought

    @property
    def stored(self) -> bool:
        return self.request.store is not False

    @property
    def user(self) -> str | None:
        return self.request.user or self.request.safety_identifier

    def prompt(self, earlier: tuple[InputItem, ...]) -> ChatPrompt:
        """The conversation, after what was said earlier."""
        pictures = Pictures()
        numbered = [("previous_response_id", item) for item in earlier]
        numbered += [(f"input[{index}]", item) for index, item in enumerate(self.items)]
        messages = list(_messages(numbered, pictures))
        if self.request.instructions is not None:
            if messages and messages[0]["role"] == "system":  # templates expect one
                content = _instructed(self.request.instructions, messages.pop(0)["content"])
            else:
                content = self.request.instructions
            messages.insert(0, {"role": "system", "content": content})
        # With a choice of none the model does not hear of tools, so that they do not count.
        tools = () if self.tool_choice.mode == "none" else self.tools
        return ChatPrompt(tuple(messages), self.thought.template_kwargs, tools, sources=pictures.sources)


def parse_response(body: Mapping[str, object]) -> AskedResponse:
    """Raises `InvalidRequest` with every issue there is."""
    given, issues = screen(body, ResponsesRequest.model_fields, unsupported.RESPONSES)
    asked = None
    try:
        request = ResponsesRequest.model_validate(given)
    except ValidationError as error:
        issues += from_validation_error(error)
    else:
        asked = _asked(request)
        issues += _contradictions(asked)
    refuse(issues)
    assert asked is not None
    return asked


def encoded(thought: str) -> str:
    """What was thought as text that clients keep and give back without looking at it."""
    return ENCODED_PREFIX + base64.b64encode(thought.encode()).decode()


def _asked(request: ResponsesRequest) -> AskedResponse:
    items: tuple[InputItem, ...] = (
        (MessageItem(role="user", content=request.input),) if isinstance(request.input, str) else tuple(request.input)
    )
    effort = None if request.reasoning is None else request.reasoning.effort
    return AskedResponse(
        request=request,
        items=items,
        sampling=_sampling(request),
        tools=tuple(_tool(tool) for tool in _allowed(request)),
        tool_choice=_choice(request),
        structure=_structure(request),
        thought=Thought() if effort is None else thought_of(effort),
    )


def _contradictions(asked: AskedResponse) -> Iterator[Issue]:
    request = asked.request
    yield from range_issues(asked.sampling, FIELD_NAMES)
    names = [tool.name for tool in request.tools or ()]
    yield from tool_issues(names, asked.tool_choice, "tool_choice")
    if isinstance(request.tool_choice, AllowedTools):
        for index, allowed in enumerate(request.tool_choice.tools):
            if allowed.name not in names:
                field = f"tool_choice.tools[{index}].name"
                yield Issue(field, f"{field} is {allowed.name[:80]!r}, which is none of the tools")
    if request.stream_options is not None and request.stream is not True:
        yield Issue("stream_options", "stream_options is only allowed when stream is true")
    for index, item in enumerate(asked.items):
        if isinstance(item, ReasoningItem) and item.encrypted_content is not None and _decoded(item) is None:
            field = f"input[{index}].encrypted_content"
            yield Issue(field, f"{field} is not what this server has sent")


def _sampling(request: ResponsesRequest) -> SamplingParams:
    wanted = "message.output_text.logprobs" in (request.include or ())
    return SamplingParams(
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        logprobs=(request.top_logprobs or 0) if wanted else request.top_logprobs,
    )


def _allowed(request: ResponsesRequest) -> Iterable[FunctionTool]:
    """The tools that the model is told of."""
    tools = request.tools or []
    if not isinstance(request.tool_choice, AllowedTools):
        return tools
    names = {each.name for each in request.tool_choice.tools}
    return [tool for tool in tools if tool.name in names]


def _tool(tool: FunctionTool) -> Mapping[str, object]:
    strict = True if tool.strict is None else tool.strict
    return function_tool(tool.name, tool.description, tool.parameters or _NO_PARAMETERS, strict=strict)


def _choice(request: ResponsesRequest) -> ToolChoice:
    parallel = request.parallel_tool_calls is not False
    match request.tool_choice:
        case None:
            return ToolChoice(parallel=parallel)
        case str():
            return ToolChoice(request.tool_choice, parallel=parallel)
        case NamedFunction():
            return ToolChoice("required", request.tool_choice.name, parallel=parallel)
        case AllowedTools():
            return ToolChoice(request.tool_choice.mode, parallel=parallel)
        case _:
            assert_never(request.tool_choice)


def _structure(request: ResponsesRequest) -> Structure | None:
    wanted = None if request.text is None else request.text.format
    if wanted is None or wanted.type == "text":
        return None
    if isinstance(wanted, SchemaFormat):
        return Structure("json_schema", wanted.schema_, "text.format.schema")
    return Structure("json_object", field="text.format")


def _instructed(instructions: str, content: object) -> object:
    """What a system message says behind the instructions."""
    parts = as_array(content)
    return f"{instructions}\n{content}" if parts is None else [{"type": "text", "text": instructions}, *parts]


def _messages(items: Iterable[tuple[str, InputItem]], pictures: Pictures) -> Iterator[Mapping[str, object]]:
    """What was thought, said and called in one turn is one message of the assistant's. Each item comes with the path
    that it has in the request."""
    turn: dict[str, object] = {}
    names: dict[str, str] = {}
    for path, item in items:
        if _begins_turn(item, turn):
            yield from _closed(turn)
            turn = {}
        match item:
            case ReasoningItem():
                turn["reasoning_content"] = _thought(item)
            case FunctionCallItem():
                names[item.call_id] = item.name
                call = tool_call(item.call_id, item.name, arguments_object(item.arguments) or {})
                turn["tool_calls"] = [*_calls(turn), call]
            case FunctionCallOutputItem():
                told = {"role": "tool", "tool_call_id": item.call_id, "content": pictures.content(item.parts(path))}
                name = names.get(item.call_id)
                yield told if name is None else {**told, "name": name}
            case MessageItem(role="assistant"):
                turn["content"] = pictures.content(item.parts(path))
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                yield {"role": role, "content": pictures.content(item.parts(path))}
            case _:
                assert_never(item)
    yield from _closed(turn)


def _begins_turn(item: InputItem, turn: Mapping[str, object]) -> bool:
    match item:
        case FunctionCallItem():
            return False
        case ReasoningItem():
            return bool(turn)
        case MessageItem(role="assistant"):
            return "content" in turn or "tool_calls" in turn
        case _:
            return True


def _closed(turn: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    if turn:
        yield {"role": "assistant", "content": "", **turn}


def _calls(turn: Mapping[str, object]) -> list[object]:
    return as_array(turn.get("tool_calls")) or []


def _thought(item: ReasoningItem) -> str:
    if item.content:
        return "\n".join(part.text for part in item.content)
    decoded = _decoded(item)
    return "\n".join(part.text for part in item.summary) if decoded is None else decoded


def _decoded(item: ReasoningItem) -> str | None:
    if item.encrypted_content is None:
        return None
    try:
        return base64.b64decode(item.encrypted_content.removeprefix(ENCODED_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
