"""What a `generate` call asks for, read out of its parameters and checked against the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from mlx_serving.core.generation import ChatPrompt, Prompt, SamplingParams, Structure, TextPrompt, TokenPrompt
from mlx_serving.core.grammar.structure import check
from mlx_serving.core.images.image import Image
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from mlx_serving.wire.methods import GenerateParams, ImageParam
from mlx_serving.worker.embedding.model import EmbeddingModel
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.output_style import tells_of_tools
from mlx_serving.worker.sampling.row import TokenRules


def prompt_of(params: GenerateParams) -> Prompt:
    """Raises `InvalidRequest` unless exactly one kind of prompt is given and not empty."""
    given = [name for name in ("prompt", "prompt_tokens", "messages") if getattr(params, name) not in (None, [])]
    if len(given) != 1:
        raise InvalidRequest(
            "One of prompt, prompt_tokens and messages is required, and not empty"
            if not given
            else f"Only one of prompt, prompt_tokens and messages is allowed, got {' and '.join(given)}",
            field=given[1] if given else "prompt",
        )
    if params.messages:
        tools = () if params.tool_choice == "none" else tuple(params.tools)
        images = images_of(params.images)
        return ChatPrompt(tuple(params.messages), params.template_kwargs, tools, params.chat_template, images)
    return TokenPrompt(tuple(params.prompt_tokens)) if params.prompt_tokens else TextPrompt(params.prompt or "")


def images_of(params: Sequence[ImageParam]) -> tuple[Image, ...]:
    return tuple(Image(one.data, one.digest, one.width, one.height, one.detail) for one in params)


def check_images(
    messages: Sequence[Mapping[str, object]] | None, images: Sequence[ImageParam], model: LoadedModel
) -> None:
    """Raises `UnsupportedParameter` for images that the model does not take, `InvalidRequest` unless each has its place
    in the messages."""
    if images and model.blind is not None:
        raise UnsupportedParameter(f"images are not supported by {model.model_id}: {model.blind}", field="images")
    places = sum(
        part.get("type") == "image"
        for message in messages or ()
        if isinstance(content := message.get("content"), list)
        for part in cast("list[Mapping[str, object]]", content)
    )
    if places != len(images):
        raise InvalidRequest(
            f"The messages have places for {places} images, and {len(images)} are given",
            field="images",
            limit=places,
            given=len(images),
        )


def check_tools(params: GenerateParams, model: LoadedModel) -> None:
    """Raises `UnsupportedParameter` for tools of which the chat template, the model's or that of the request, does not
    tell it, or whose calls nobody can read; `InvalidRequest` for a choice that there is not."""
    names = [str(_function(tool).get("name")) for tool in params.tools]
    if params.tool_choice == "required" and not names:
        raise InvalidRequest("tool_choice asks for a call, but there are no tools", field="tool_choice")
    if params.named_tool is not None and params.named_tool not in names:
        raise InvalidRequest(
            f"tool_choice names {params.named_tool}, which is none of the tools", field="tool_choice", limit=names
        )
    if not names or params.tool_choice == "none":
        return
    if not (model.knows_tools if params.chat_template is None else tells_of_tools(params.chat_template)):
        raise UnsupportedParameter(
            f"tools are not supported by {model.model_id}: its chat template does not tell it of any", field="tools"
        )
    if model.output.tool_parser is None and (params.parse_output or is_forced(params)):
        raise UnsupportedParameter(
            f"tools are not supported by {model.model_id}: how it writes its calls is not known. Name it in the "
            "configuration (models.served[].tool_parser)",
            field="tools",
        )
    if is_forced(params) and params.guidance is not None:
        raise InvalidRequest("tool_choice forces a call, which leaves no room for a structure", field="tool_choice")


def is_forced(params: GenerateParams) -> bool:
    """Whether a tool must be called."""
    return params.tool_choice == "required" or params.named_tool is not None


def _function(tool: Mapping[str, object]) -> Mapping[str, object]:
    function = tool.get("function")
    return cast("Mapping[str, object]", function) if isinstance(function, Mapping) else {}


def sampling_of(params: GenerateParams) -> SamplingParams:
    """The sampling parameters as they were given, in range or not."""
    return SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        typical_p=params.typical_p,
        xtc_probability=params.xtc_probability,
        xtc_threshold=params.xtc_threshold,
        repetition_penalty=params.repetition_penalty,
        repetition_context_size=params.repetition_context_size,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        banned_token_ids=tuple(params.banned_token_ids),
        allowed_token_ids=None if params.allowed_token_ids is None else tuple(params.allowed_token_ids),
        bad_words=tuple(params.bad_words),
        seed=params.seed,
        min_tokens=params.min_tokens,
        stop=tuple(params.stop_sequences),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


def structure_of(params: GenerateParams) -> Structure | None:
    """Raises `GuidanceError` for a description that is none of its kind, or too large."""
    if params.guidance is None:
        return None
    schema = params.guidance.schema
    value = tuple(schema) if isinstance(schema, list) else schema
    structure = Structure(params.guidance.mode, value, params.guidance.field)
    check(structure)
    return structure


def check_ids(params: GenerateParams, model: LoadedModel) -> None:
    check_token_ids("prompt_tokens", params.prompt_tokens or [], model)
    check_token_ids("logit_bias", list(params.logit_bias), model)
    check_token_ids("delivered", params.delivered, model)
    check_token_ids("banned_token_ids", params.banned_token_ids, model)
    check_token_ids("allowed_token_ids", params.allowed_token_ids or [], model)


def check_token_ids(field: str, token_ids: list[int], model: LoadedModel | EmbeddingModel) -> None:
    """An id outside the vocabulary would read memory that is not the model's."""
    highest = max(token_ids, default=0)
    if highest >= model.facts.vocab_size:
        raise InvalidRequest(
            f"{field} has the token id {highest}, but the vocabulary of {model.model_id} has "
            f"{model.facts.vocab_size} entries",
            field=field,
            limit=model.facts.vocab_size - 1,
            given=highest,
        )


def rules_of(sampling: ResolvedSampling, model: LoadedModel) -> TokenRules:
    """What the request comes to in the model's tokens. Runs on the tokenizer thread.

    Raises `InvalidRequest` when nothing is left that could be drawn.
    """
    vocabulary = model.facts.vocab_size
    ends = (
        frozenset(sampling.stop_token_ids) if sampling.ignore_eos else model.eos_token_ids | {*sampling.stop_token_ids}
    )
    words = model.tokenizer.banned_sequences(sampling.bad_words)
    # Callers, and files of models, may name ids that the model does not have.
    rules = TokenRules(
        ends=frozenset(token for token in ends if token < vocabulary),
        spared=frozenset(token for token in model.spared_token_ids if token < vocabulary),
        banned=tuple(word for word in words if max(word) < vocabulary),
    )
    impossible = {*sampling.banned_token_ids, *(word[0] for word in rules.banned if len(word) == 1)}
    if sampling.min_tokens:
        impossible |= rules.ends
    allowed = sampling.allowed_token_ids
    if len(impossible) == vocabulary if allowed is None else impossible.issuperset(allowed):
        field = "banned_token_ids" if allowed is None else "allowed_token_ids"
        reason = "what else is banned, or would end the answer before min_tokens"
        raise InvalidRequest(f"{field} and {reason}, leave no token to choose", field=field)
    return rules


def tokens_that_fit(
    prompt_tokens: int, asked: int | None, default: int, context_length: int, min_tokens: int = 0
) -> int:
    """The tokens that may be generated: what was asked for must fit, `default` is cut to what is left.

    Raises `ContextLengthExceeded` with the numbers, `InvalidRequest` for a prompt without a token.
    """
    if prompt_tokens == 0:
        raise InvalidRequest("The prompt is empty: it has no tokens", field="prompt")
    name, needed = ("max_tokens", asked) if asked is not None else ("min_tokens", min_tokens)
    if prompt_tokens + max(needed, 1) > context_length:
        wanted = f" and {name} {needed}" if needed else ""
        raise ContextLengthExceeded(
            f"The context holds {context_length} tokens, but the prompt has {prompt_tokens}{wanted}",
            field="prompt" if prompt_tokens >= context_length else name,
            limit=context_length,
            given=prompt_tokens + needed,
        )
    return asked if asked is not None else min(default, context_length - prompt_tokens)
