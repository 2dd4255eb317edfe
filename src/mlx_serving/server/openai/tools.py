"""Tools, their calls and reasoning in the bodies of OpenAI's chat requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from mlx_serving.core.generation import ToolChoice
from mlx_serving.core.reasoning_effort import ReasoningEffort, Thought, thought_of
from mlx_serving.server.function_tools import arguments_object, function_tool, tool_call, tool_issues
from mlx_serving.server.issues import Issue
from mlx_serving.server.request_fields import Body, Hidden, field_of


class FunctionDefinition(Body):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, object] | None = Field(default=None, description="JSON Schema of an object.")
    strict: bool | None = Field(default=None, description="Handed to the model's template.")


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self) -> Mapping[str, object]:
        function = self.function
        parameters = function.parameters or {"type": "object", "properties": {}}
        return function_tool(function.name, function.description, parameters, strict=function.strict)


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Body):
    name: str
    arguments: str = Field(description="JSON text of an object.")
    parsed_arguments: Hidden = None  # what OpenAI's client made of them, and sends back beside them


class CalledTool(Body):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Hidden = None  # who puts calls together from the chunks of a stream may leave it there

    def for_template(self) -> Mapping[str, object]:
        """Templates want arguments as an object; what is none stays text."""
        text = self.function.arguments
        return tool_call(self.id, self.function.name, arguments_object(text) or {})


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class ChoiceAmongTools(Body):
    """The model is told of these tools only."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<word>"
    kind = field_of(value, "type")
    return "<tools>" if kind == "allowed_tools" else "<tool>" if isinstance(value, dict | NamedTool) else None


ToolChoiceValue: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedTool, Tag("<tool>")]
    | Annotated[ChoiceAmongTools, Tag("<tools>")],
    Discriminator(
        _choice_kind,
        custom_error_type="wrong_type",
        custom_error_message="must be 'none', 'auto', 'required' or an object that names a function",
    ),
]


class ToolFields(Body):
    """What a chat request says of tools and reasoning."""

    tools: list[Tool] | None = Field(default=None, max_length=1024, description="What the model may call.")
    tool_choice: ToolChoiceValue | None = Field(default=None, description="auto if there are tools.")
    parallel_tool_calls: bool | None = Field(default=None, description="false: at most one call; true by default.")
    reasoning_effort: ReasoningEffort | None = Field(
        default=None, description="How much a model that thinks may think; none: not at all."
    )
    reasoning_budget: int | None = Field(
        default=None, ge=0, description="Tokens of reasoning after which the model must answer; above reasoning_effort."
    )
    enable_thinking: bool | None = Field(default=None, description="A switch of many chat templates.")

    def offered(self) -> tuple[Mapping[str, object], ...]:
        tools = self.tools or []
        if isinstance(self.tool_choice, ChoiceAmongTools):
            names = {each.function.name for each in self.tool_choice.allowed_tools.tools}
            tools = [tool for tool in tools if tool.function.name in names]
        return tuple(tool.for_template() for tool in tools)

    def choice(self) -> ToolChoice:
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case None:
                return ToolChoice(parallel=parallel)
            case NamedTool():
                return ToolChoice("required", self.tool_choice.function.name, parallel)
            case ChoiceAmongTools():
                return ToolChoice(self.tool_choice.allowed_tools.mode, None, parallel)
            case word:
                return ToolChoice(word, None, parallel)

    def thought(self) -> Thought:
        asked = Thought() if self.reasoning_effort is None else thought_of(self.reasoning_effort)
        switch = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        budget = asked.budget if self.reasoning_budget is None else self.reasoning_budget
        return Thought({**asked.template_kwargs, **switch}, budget)

    def tool_problems(self) -> Iterator[Issue]:
        """What no field shows by itself."""
        names = [tool.function.name for tool in self.tools or ()]
        yield from tool_issues(names, self.choice(), "tool_choice")
        if isinstance(self.tool_choice, ChoiceAmongTools):
            for index, allowed in enumerate(self.tool_choice.allowed_tools.tools):
                if allowed.function.name not in names:
                    field = f"tool_choice.allowed_tools.tools[{index}].function.name"
                    yield Issue(field, f"{field} is {allowed.function.name[:80]!r}, which is none of the tools")
