"""From a body of Anthropic's API to a request for the engine, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, assert_never

from pydantic import ValidationError

from mlx_serving.core.generation import ChatPrompt, SamplingParams, Structure, ToolChoice
from mlx_serving.core.images.image import ImageSource
from mlx_serving.core.images.parts import Pictures
from mlx_serving.core.reasoning_effort import Thought, thought_of
from mlx_serving.errors import UnsupportedParameter
from mlx_serving.server import unsupported
from mlx_serving.server.anthropic.schema import (
    AdaptiveThinking,
    AnthropicMessage,
    AnthropicToolChoice,
    AssistantMessage,
    AutoChoice,
    CountTokensRequest,
    EnabledThinking,
    ImageBlock,
    MessagesRequest,
    NamedChoice,
    NoChoice,
    SystemMessage,
    TextBlock,
    TextOrBlocks,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from mlx_serving.server.function_tools import function_tool, tool_call, tool_issues
from mlx_serving.server.issues import Issue, from_validation_error, range_issues, refuse, screen

_THINKING_OFF = thought_of("none")
_NAMES = {"stop": "stop_sequences"}


@dataclass(frozen=True, slots=True)
class AskedMessage:
    """What a client asked for. `model` None or empty is the default model; `show_thinking` whether it wants to see what
    the model thinks."""

    model: str | None
    prompt: ChatPrompt
    max_tokens: int
    sampling: SamplingParams
    tool_choice: ToolChoice
    structure: Structure | None
    reasoning_budget: int | None
    show_thinking: bool
    stream: bool
    user: str | None
    cache_salt: str


def parse_messages(body: Mapping[str, object]) -> AskedMessage:
    """Raises `InvalidRequest` with every issue there is."""
    request = _checked(MessagesRequest, body)
    thought = _thought(request)
    thinking = request.thinking
    shown = isinstance(thinking, EnabledThinking | AdaptiveThinking) and thinking.display != "omitted"
    wanted = None if request.output_config is None else request.output_config.format
    return AskedMessage(
        model=request.model,
        prompt=_prompt(request, thought),
        max_tokens=request.max_tokens,
        sampling=_sampling(request),
        tool_choice=_choice(request.tool_choice),
        structure=None if wanted is None else Structure("json_schema", wanted.schema_, "output_config.format.schema"),
        reasoning_budget=thought.budget,
        show_thinking=shown,
        stream=request.stream or False,
        user=None if request.metadata is None else request.metadata.user_id,
        cache_salt=request.cache_salt or "",
    )


def parse_count(body: Mapping[str, object]) -> tuple[str | None, ChatPrompt]:
    """The model and the prompt whose tokens are to be counted. Raises `InvalidRequest` with every issue there is."""
    request = _checked(CountTokensRequest, body)
    return request.model, _prompt(request, _thought(request))


_R = TypeVar("_R", bound=CountTokensRequest)


def _checked(model: type[_R], body: Mapping[str, object]) -> _R:
    if body.get("thread") is not None:
        raise _no_threads()
    given, issues = screen(body, model.model_fields, unsupported.ANTHROPIC)
    request = None
    try:
        request = model.model_validate(given)
    except ValidationError as error:
        issues += from_validation_error(error)
    else:
        issues += _contradictions(request)
    refuse(issues)
    assert request is not None
    return request


def _no_threads() -> UnsupportedParameter:
    """With the code at which Anthropic's clients send the whole conversation instead."""
    error = UnsupportedParameter("thread is not supported by this server: send the whole conversation", field="thread")
    error.details["error_code"] = "thread_unsupported_request"
    return error


def _contradictions(request: CountTokensRequest) -> Iterator[Issue]:
    names = [tool.name for tool in request.tools or ()]
    yield from tool_issues(names, _choice(request.tool_choice), "tool_choice")
    last = len(request.messages) - 1
    if isinstance(request.messages[last], AssistantMessage):
        text = "is the assistant's: answers cannot be begun for the model by this server"
        yield Issue(f"messages[{last}].role", f"messages[{last}].role {text}", "unsupported_parameter", limit="user")
    if not isinstance(request, MessagesRequest):
        return
    yield from range_issues(_sampling(request), _NAMES)
    thinking = request.thinking
    if isinstance(thinking, EnabledThinking) and thinking.budget_tokens >= request.max_tokens:
        rule = f"must be less than max_tokens, which is {request.max_tokens}"
        field = "thinking.budget_tokens"
        yield Issue(field, f"{field} {rule}, got {thinking.budget_tokens}", limit=request.max_tokens - 1)


def _sampling(request: MessagesRequest) -> SamplingParams:
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=tuple(request.stop_sequences or ()),
    )


def _thought(request: CountTokensRequest) -> Thought:
    """Without `thinking`, a model does not think: so it is with Anthropic's."""
    effort = None if request.output_config is None else request.output_config.effort
    match request.thinking:
        case EnabledThinking():
            return Thought(thought_of(effort or "high").template_kwargs, request.thinking.budget_tokens)
        case AdaptiveThinking():
            return thought_of(effort or "max")
        case _:
            return _THINKING_OFF


def _choice(choice: AnthropicToolChoice | None) -> ToolChoice:
    match choice:
        case None:
            return ToolChoice()
        case NoChoice():
            return ToolChoice("none")
        case AutoChoice():
            mode = "required" if choice.type == "any" else "auto"
            return ToolChoice(mode, parallel=not choice.disable_parallel_tool_use)
        case NamedChoice():
            return ToolChoice("required", choice.name, parallel=not choice.disable_parallel_tool_use)
        case _:
            assert_never(choice)


def _prompt(request: CountTokensRequest, thought: Thought) -> ChatPrompt:
    messages: list[Mapping[str, object]] = []
    if request.system:
        messages.append({"role": "system", "content": _text(request.system)})
    names: dict[str, str] = {}  # of the tools that were called, by the id of the call
    pictures = Pictures()
    for index, message in enumerate(request.messages):
        messages += _for_template(message, names, f"messages[{index}].content", pictures)
    tools = tuple(
        function_tool(tool.name, tool.description, tool.input_schema, strict=tool.strict)
        for tool in request.tools or ()
    )
    # With a choice of none the model does not hear of tools, so that they do not count.
    offered = () if isinstance(request.tool_choice, NoChoice) else tools
    return ChatPrompt(tuple(messages), thought.template_kwargs, offered, sources=pictures.sources)


def _for_template(
    message: AnthropicMessage, names: dict[str, str], path: str, pictures: Pictures
) -> Iterator[Mapping[str, object]]:
    match message:
        case SystemMessage():
            yield {"role": "system", "content": _text(message.content)}
        case AssistantMessage():
            yield _assistant(message, names)
        case UserMessage():
            yield from _user(message, names, path, pictures)
        case _:
            assert_never(message)


def _assistant(message: AssistantMessage, names: dict[str, str]) -> Mapping[str, object]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    told: dict[str, object] = {
        "role": "assistant",
        "content": _joined(block.text for block in message.content if isinstance(block, TextBlock)),
    }
    thinking = [block.thinking for block in message.content if isinstance(block, ThinkingBlock)]
    if any(thinking):
        told["reasoning_content"] = _joined(thinking)
    calls = [block for block in message.content if isinstance(block, ToolUseBlock)]
    if calls:
        told["tool_calls"] = [tool_call(block.id, block.name, block.input) for block in calls]
        names.update((block.id, block.name) for block in calls)
    return told


def _user(
    message: UserMessage, names: Mapping[str, str], path: str, pictures: Pictures
) -> Iterator[Mapping[str, object]]:
    """Results of tools are messages of their own; what is between them is the user's."""
    if isinstance(message.content, str):
        yield {"role": "user", "content": message.content}
        return
    said: list[str | ImageSource] = []
    for index, block in enumerate(message.content):
        if not isinstance(block, ToolResultBlock):
            said.append(_part(block, f"{path}[{index}]"))
            continue
        if said:
            yield {"role": "user", "content": pictures.content(said)}
            said = []
        yield _result(block, names, f"{path}[{index}].content", pictures)
    if said:
        yield {"role": "user", "content": pictures.content(said)}


def _part(block: TextBlock | ImageBlock, path: str) -> str | ImageSource:
    return block.text if isinstance(block, TextBlock) else block.at(path)


def _result(block: ToolResultBlock, names: Mapping[str, str], path: str, pictures: Pictures) -> Mapping[str, object]:
    blocks, parts = block.content, list[str | ImageSource]()
    if blocks is None or isinstance(blocks, str):
        parts.append(blocks or "")
    else:
        parts += [_part(each, f"{path}[{index}]") for index, each in enumerate(blocks)]
    if block.is_error:
        first = parts[0] if parts else ""
        parts[:1] = [f"Error: {first}"] if isinstance(first, str) else ["Error: ", first]
    told = {"role": "tool", "tool_call_id": block.tool_use_id, "content": pictures.content(parts)}
    name = names.get(block.tool_use_id)
    return told if name is None else {**told, "name": name}


def _text(content: TextOrBlocks) -> str:
    return content if isinstance(content, str) else _joined(block.text for block in content)


def _joined(texts: Iterable[str]) -> str:
    return "\n".join(texts)
