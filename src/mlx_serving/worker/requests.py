"""What a `generate` call asks for, read out of its parameters and checked against the model."""

from __future__ import annotations

from mlx_serving.core.generation import ChatPrompt, Prompt, SamplingParams, Structure, TextPrompt, TokenPrompt
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.core.structure import check
from mlx_serving.errors import ContextLengthExceeded, InvalidRequest
from mlx_serving.wire.methods import GenerateParams
from mlx_serving.worker.loaded_model import LoadedModel
from mlx_serving.worker.sampling_row import TokenRules


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
    structure = Structure(params.guidance.mode, tuple(schema) if isinstance(schema, list) else schema)
    check(structure, "guidance")
    return structure


def check_ids(params: GenerateParams, model: LoadedModel) -> None:
    check_token_ids("prompt_tokens", params.prompt_tokens or [], model)
    check_token_ids("logit_bias", list(params.logit_bias), model)
    check_token_ids("delivered", params.delivered, model)
    check_token_ids("banned_token_ids", params.banned_token_ids, model)
    check_token_ids("allowed_token_ids", params.allowed_token_ids or [], model)


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
    """The tokens that may be generated: what was asked for must fit, a default is cut to what is left.

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
