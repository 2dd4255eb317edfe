"""Tools, their calls and reasoning in the parameters of a generation. The forms are those of OpenAI's chats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from pydantic import Discriminator, Field, Tag

from mlx_serving.core.generation import ChatPrompt, ToolChoice
from mlx_serving.core.images.parts import Pictures
from mlx_serving.core.reasoning_effort import ReasoningEffort, Thought, thought_of
from mlx_serving.facade.option_base import Options, either
from mlx_serving.facade.pictures import content_of

_NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}}


class FunctionDefinition(Options):
    """`parameters` is the JSON Schema of an object."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Options):
    type: Literal["function"] = "function"
    function: FunctionDefinition

    def for_template(self) -> Mapping[str, object]:
        function = self.function.model_dump(exclude_none=True)
        return {"type": "function", "function": {"parameters": _NO_PARAMETERS, **function}}


class FunctionName(Options):
    name: str


class NamedTool(Options):
    type: Literal["function"] = "function"
    function: FunctionName


def _choice_kind(value: object) -> str | None:
    return "<word>" if isinstance(value, str) else "<tool>" if isinstance(value, Mapping | NamedTool) else None


class ChatFields(Options):
    """The contents of `messages` may have parts that bring pictures: see `facade.pictures`. `tools` are what the model
    may call. `tool_choice` is auto, none, required or an object that names a function.

    `parse_output` has what the model thinks and calls told apart from what it says; it is so for messages unless it is
    false. After `reasoning_budget` tokens of reasoning, or those that `reasoning_effort` stands for, the model is made
    to answer; effort none asks it not to think. `enable_thinking` and `chat_template_kwargs` are handed to the model's
    template."""

    messages: list[dict[str, Any]] | None = None
    tools: list[Tool] = Field(default_factory=list[Tool], max_length=1024)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedTool, Tag("<tool>")],
            Discriminator(
                _choice_kind,
                custom_error_type="wrong_type",
                custom_error_message="must be 'none', 'auto', 'required' or an object that names a function",
            ),
        ]
        | None
    ) = Field(default=None, validation_alias=either("tool_choice"))
    parallel_tool_calls: bool = Field(default=True, validation_alias=either("parallel_tool_calls"))
    parse_output: bool | None = Field(default=None, validation_alias=either("parse_output"))
    reasoning_effort: ReasoningEffort | None = Field(default=None, validation_alias=either("reasoning_effort"))
    reasoning_budget: int | None = Field(default=None, ge=0, validation_alias=either("reasoning_budget"))
    enable_thinking: bool | None = Field(default=None, validation_alias=either("enable_thinking"))
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict[str, Any], validation_alias=either("chat_template_kwargs")
    )

    def to_chat(self) -> ChatPrompt:
        """The conversation, the tools and the switches, as templates expect them."""
        switch = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        kwargs = {**self._thought().template_kwargs, **switch, **self.chat_template_kwargs}
        tools = tuple(tool.for_template() for tool in self.tools)
        pictures = Pictures()
        messages = tuple(
            _for_template(message, f"messages[{index}]", pictures) for index, message in enumerate(self.messages or ())
        )
        return ChatPrompt(messages, kwargs, tools, sources=pictures.sources)

    def to_tool_choice(self) -> ToolChoice:
        match self.tool_choice:
            case None:
                return ToolChoice(parallel=self.parallel_tool_calls)
            case NamedTool():
                return ToolChoice("required", self.tool_choice.function.name, self.parallel_tool_calls)
            case word:
                return ToolChoice(word, None, self.parallel_tool_calls)

    @property
    def is_parsed(self) -> bool:
        return self.messages is not None if self.parse_output is None else self.parse_output

    @property
    def budget(self) -> int | None:
        """Tokens of reasoning at most."""
        return self._thought().budget if self.reasoning_budget is None else self.reasoning_budget

    def chat_only(self) -> Iterator[str]:
        """The names of parameters that are given and only mean something for messages."""
        if self.tools:
            yield "tools"
        for name in ("tool_choice", "reasoning_effort", "enable_thinking"):
            if getattr(self, name) is not None:
                yield name
        if self.chat_template_kwargs:
            yield "chat_template_kwargs"

    def _thought(self) -> Thought:
        return Thought() if self.reasoning_effort is None else thought_of(self.reasoning_effort)


def _for_template(message: Mapping[str, Any], field: str, pictures: Pictures) -> Mapping[str, object]:
    """Templates want content that is text, or parts with places for pictures, and the arguments of calls as objects;
    what is no JSON object stays as it is."""
    told = dict(message)
    if "content" in told:
        told["content"] = content_of(told["content"], f"{field}.content", pictures)
    calls = told.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        told["tool_calls"] = [_with_arguments(call) for call in cast("Sequence[object]", calls)]
        if told.get("content") is None:
            told["content"] = ""
    return told


def _with_arguments(call: object) -> object:
    if not isinstance(call, Mapping):
        return call
    given = cast("Mapping[str, object]", call)
    function = given.get("function")
    if not isinstance(function, Mapping):
        return given
    named = cast("Mapping[str, object]", function)
    arguments = named.get("arguments")
    if not isinstance(arguments, str):
        return given
    try:
        decoded = msgspec.json.decode(arguments or "{}", type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return given
    return {**given, "function": {**named, "arguments": decoded}}
