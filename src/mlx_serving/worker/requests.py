"""What a `generate` call asks for, read out of its parameters and checked against the model."""

from __future__ import annotations

from mlx_serving.core.generation import ChatPrompt, Prompt, SamplingParams, TextPrompt, TokenPrompt
from mlx_serving.errors import ContextLengthExceeded, InvalidRequest
from mlx_serving.wire.methods import GenerateParams
from mlx_serving.worker.loaded_model import LoadedModel


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
        return ChatPrompt(tuple(params.messages), params.template_kwargs)
    return TokenPrompt(tuple(params.prompt_tokens)) if params.prompt_tokens else TextPrompt(params.prompt or "")


def sampling_of(params: GenerateParams) -> SamplingParams:
    """The sampling parameters as they were given, in range or not."""
    return SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        seed=params.seed,
        stop=tuple(params.stop_sequences),
        stop_token_ids=tuple(params.stop_token_ids),
    )


def check_ids(params: GenerateParams, model: LoadedModel) -> None:
    check_token_ids("prompt_tokens", params.prompt_tokens or [], model)
    check_token_ids("logit_bias", list(params.logit_bias), model)
    check_token_ids("delivered", params.delivered, model)


def check_token_ids(field: str, token_ids: list[int], model: LoadedModel) -> None:
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


def tokens_that_fit(prompt_tokens: int, asked: int | None, default: int, context_length: int) -> int:
    """The tokens that may be generated: what was asked for must fit, a default is cut to what is left.

    Raises `ContextLengthExceeded` with the numbers, `InvalidRequest` for a prompt without a token.
    """
    if prompt_tokens == 0:
        raise InvalidRequest("The prompt is empty: it has no tokens", field="prompt")
    if prompt_tokens + (asked or 1) > context_length:
        wanted = f" and max_tokens {asked}" if asked is not None else ""
        raise ContextLengthExceeded(
            f"The context holds {context_length} tokens, but the prompt has {prompt_tokens}{wanted}",
            field="prompt" if prompt_tokens >= context_length else "max_tokens",
            limit=context_length,
            given=prompt_tokens + (asked or 0),
        )
    return asked if asked is not None else min(default, context_length - prompt_tokens)
