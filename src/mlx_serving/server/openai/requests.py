"""From a JSON body to a request for the engine, or to everything that is wrong with it.

The body is used up: what is not served is taken out of its lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from pydantic import ValidationError

from mlx_serving.core.choices import Choices
from mlx_serving.core.generation import (
    ChatPrompt,
    Prompt,
    SamplingParams,
    Structure,
    TextPrompt,
    TokenPrompt,
    ToolChoice,
)
from mlx_serving.core.images.parts import Pictures
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.server import unsupported
from mlx_serving.server.issues import (
    MAX_ISSUES,
    Issue,
    from_range_error,
    from_validation_error,
    range_issues,
    refuse,
    screen,
    shown,
)
from mlx_serving.server.json_values import as_array, as_object
from mlx_serving.server.openai.sampling import SamplingFields, sampling_of
from mlx_serving.server.openai.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationFields,
    ImagePart,
    Message,
    PromptValue,
    StreamOptions,
    TextPart,
)
from mlx_serving.server.service_tier import AskedTier
from mlx_serving.server.structured_output import structure_of

_COMPLETION_MAX_TOKENS = 16  # what OpenAI documents; a chat's default is the engine's
_ANY_TOOL = ToolChoice()
_SPECULATION = Speculation()
_NO_TEXT = {"type": "text", "text": ""}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for: `choices` for each of `prompts`. `model` None or empty is the default model.
    `default_max_tokens` is what the API gives a client who says nothing, as far as there is room, unless the operator
    has said something for the model."""

    model: str | None
    prompts: tuple[Prompt, ...]
    choices: Choices
    sampling: SamplingParams
    structure: Structure | None
    stream: bool
    include_usage: bool
    user: str | None
    cache_salt: str
    metadata: Mapping[str, str] | None = None
    service_tier: AskedTier | None = None
    parse_output: bool = False
    tool_choice: ToolChoice = _ANY_TOOL
    reasoning_budget: int | None = None
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the client calls the engine's fields, where that differs."""
    speculation: Speculation = _SPECULATION
    default_max_tokens: int | None = None

    def sampling_with(self, profile: Mapping[str, object]) -> SamplingParams:
        """Under what the operator has said for the model."""
        default = self.default_max_tokens
        if default is None or "max_tokens" in profile:
            return self.sampling
        return replace(self.sampling, max_tokens=max(default, self.sampling.min_tokens))


def parse_chat(body: Mapping[str, object]) -> Asked:
    """Raises `InvalidRequest` with every issue there is."""
    given, issues = screen(body, ChatCompletionRequest.model_fields, unsupported.CHAT)
    issues += islice(_screen_messages(given), MAX_ISSUES)
    request = _checked(ChatCompletionRequest, given, issues)
    pictures = Pictures()
    messages = tuple(
        message.for_template(f"messages[{index}]", pictures) for index, message in enumerate(request.messages)
    )
    refuse(list(request.tool_problems()))
    thought = request.thought()
    prompt = ChatPrompt(
        messages,
        {**thought.template_kwargs, **(request.chat_template_kwargs or {})},
        request.offered(),
        sources=pictures.sources,
    )
    asked = _asked(request, (prompt,), _choices(given), _max_tokens(given), _logprobs_given(given)[1])
    names = {"prompt": "messages", "max_tokens": _max_tokens_given(given)[0]}
    return replace(asked, parse_output=True, tool_choice=request.choice(), reasoning_budget=thought.budget, names=names)


def parse_completion(body: Mapping[str, object]) -> Asked:
    """Raises `InvalidRequest` with every issue there is."""
    given, issues = screen(body, CompletionRequest.model_fields, unsupported.COMPLETION)
    request = _checked(CompletionRequest, given, issues)
    asked = _asked(request, _prompts(request.prompt), _choices(given), request.max_tokens, request.logprobs)
    default = _COMPLETION_MAX_TOKENS if request.max_tokens is None else None
    return replace(asked, names={"prompt_tokens": "prompt"}, default_max_tokens=default)


_R = TypeVar("_R", bound=GenerationFields)


def _checked(model: type[_R], given: dict[str, object], issues: list[Issue]) -> _R:
    """The request, if `issues` and what is found here is nothing."""
    issues += _screen_stream_options(given)
    request, failed = None, frozenset[str]()
    try:
        request = model.model_validate(given)
        issues += request.draft_problems()
    except ValidationError as error:
        issues += from_validation_error(error)
        failed = frozenset(str(found["loc"][0]) for found in error.errors(include_url=False, include_input=False))
    sound = {name: value for name, value in given.items() if name not in failed}
    issues += _range_issues(sound)
    issues += _choice_issues(sound)
    issues += _contradictions(given)
    refuse(issues)
    assert request is not None
    return request


def _screen_messages(given: dict[str, object]) -> Iterator[Issue]:
    """Take out of the messages what is not served, so that the schema reports only what it knows better."""
    messages = as_array(given.get("messages"))
    if messages is None:
        return
    for index, each in enumerate(messages):
        message = as_object(each)
        if message is None:
            continue
        path = f"messages[{index}]"
        served, issues = screen(message, Message.model_fields, unsupported.MESSAGE, path)
        yield from issues
        yield from _screen_parts(served, f"{path}.content")
        if served.get("content") is None and not served.get("tool_calls"):
            served["content"] = ""
            yield Issue(f"{path}.content", f"{path}.content is required", "missing_required_parameter")
        messages[index] = served


def _screen_parts(message: Mapping[str, object], path: str) -> Iterator[Issue]:
    parts = as_array(message.get("content"))
    if parts is None:
        return
    for index, each in enumerate(parts):
        part = as_object(each)
        if part is None:
            continue
        kind = part.get("type")
        if kind == "refusal" and message.get("role") == "assistant" and isinstance(part.get("refusal"), str):
            parts[index] = {"type": "text", "text": part["refusal"]}
        elif isinstance(kind, str) and kind not in ("text", "image_url"):
            field = f"{path}[{index}].type"
            text = f"{field}: parts of type {shown(kind)} are not supported by this server, only text and image_url"
            yield Issue(field, text, "unsupported_parameter", limit="text, image_url")
            parts[index] = _NO_TEXT
        else:
            fields = ImagePart.model_fields if kind == "image_url" else TextPart.model_fields
            parts[index], issues = screen(part, fields, {}, f"{path}[{index}]")
            yield from issues


def _screen_stream_options(given: dict[str, object]) -> list[Issue]:
    options = as_object(given.get("stream_options"))
    if options is None:
        return []
    given["stream_options"], issues = screen(
        options, StreamOptions.model_fields, unsupported.STREAM_OPTIONS, "stream_options"
    )
    return issues


def _range_issues(given: Mapping[str, object]) -> Iterator[Issue]:
    fields = SamplingFields.model_validate(
        {name: value for name, value in given.items() if name in SamplingFields.model_fields}
    )
    limit_name, max_tokens = _max_tokens_given(given)
    top_name, logprobs = _logprobs_given(given)
    names = {"max_tokens": limit_name, "logprobs": top_name}
    yield from range_issues(sampling_of(fields, max_tokens, logprobs), names)


def _choice_issues(given: Mapping[str, object]) -> Iterator[Issue]:
    choices = _choices(given)
    prompts = as_array(given.get("prompt")) or []
    several = len(prompts) if prompts and not isinstance(prompts[0], int) else 1
    for problem in choices.problems(several):
        yield from from_range_error(problem)
    if choices.ranked and given.get("stream") is True:
        rule = f"best_of must be n, which is {choices.n}, when stream is true"
        yield Issue("best_of", f"{rule}: the best are known at the end only, got {choices.best_of}", limit=choices.n)


def _contradictions(given: Mapping[str, object]) -> Iterator[Issue]:
    old, new = given.get("max_tokens"), given.get("max_completion_tokens")
    if isinstance(old, int) and isinstance(new, int) and old != new:
        yield Issue("max_completion_tokens", f"max_completion_tokens and max_tokens mean the same, got {new} and {old}")
    if given.get("stream_options") is not None and given.get("stream") is not True:
        yield Issue("stream_options", "stream_options is only allowed when stream is true")
    if given.get("top_logprobs") not in (None, 0) and given.get("logprobs") is not True:
        yield Issue("top_logprobs", "top_logprobs is only allowed when logprobs is true")


def _max_tokens_given(given: Mapping[str, object]) -> tuple[str, int | None]:
    for name in ("max_completion_tokens", "max_tokens"):
        value = _integer(given, name)
        if value is not None:
            return name, value
    return "max_tokens", None


def _max_tokens(given: Mapping[str, object]) -> int | None:
    return _max_tokens_given(given)[1]


def _choices(given: Mapping[str, object]) -> Choices:
    n, best_of = _integer(given, "n"), _integer(given, "best_of")
    n = 1 if n is None else n
    return Choices(n, n if best_of is None else best_of)


def _logprobs_given(given: Mapping[str, object]) -> tuple[str, int | None]:
    """How many of the likeliest tokens are wanted, and the name that says it: chats have a switch besides."""
    if not isinstance(switch := given.get("logprobs"), bool):
        return "logprobs", _integer(given, "logprobs")
    if not switch:
        return "top_logprobs", None
    return "top_logprobs", _integer(given, "top_logprobs") or 0


def _integer(given: Mapping[str, object], name: str) -> int | None:
    value = given.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _asked(
    request: GenerationFields,
    prompts: tuple[Prompt, ...],
    choices: Choices,
    max_tokens: int | None,
    logprobs: int | None,
) -> Asked:
    return Asked(
        model=request.model,
        prompts=prompts,
        choices=choices,
        sampling=sampling_of(request, max_tokens, logprobs),
        structure=structure_of(request),
        stream=request.stream or False,
        include_usage=request.stream_options is not None and (request.stream_options.include_usage or False),
        user=request.user or request.safety_identifier,
        metadata=request.metadata,
        service_tier=request.service_tier,
        cache_salt=request.cache_salt or "",
        speculation=request.wanted(),
    )


def _prompts(value: PromptValue) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (TextPrompt(value),)
    token_ids = tuple(each for each in value if isinstance(each, int))
    if token_ids:
        return (TokenPrompt(token_ids),)
    texts_or_ids = (each for each in value if not isinstance(each, int))
    return tuple(TextPrompt(each) if isinstance(each, str) else TokenPrompt(tuple(each)) for each in texts_or_ids)
