"""Requests as the pipe has them, and what comes back as everybody else has it."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    Embedding,
    EmbeddingInputs,
    GenerationRequest,
    GenerationStats,
    Logprobs,
    Structure,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    ToolCallDelta,
)
from mlx_serving.wire import methods
from mlx_serving.wire.notifications import Aside, Candidate, Row, Stats

_NOTHING_ASIDE = Aside("", [])


def delta_of(row: Row) -> Delta:
    aside = row.aside or _NOTHING_ASIDE
    return Delta(
        row.text,
        tuple(row.token_ids),
        logprobs=_logprobs(row),
        reasoning=aside.reasoning,
        tool_calls=tuple(ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in aside.tool_calls),
        cached_tokens=row.cached_tokens,
        embeddings=tuple(Embedding(each.place, each.values, each.tokens) for each in aside.vectors),
    )


def _logprobs(row: Row) -> tuple[Logprobs, ...]:
    return tuple(
        Logprobs(_token_logprob(each.chosen), tuple(_token_logprob(other) for other in each.top))
        for each in row.logprobs or ()
    )


def _token_logprob(candidate: Candidate) -> TokenLogprob:
    return TokenLogprob(candidate.token_id, candidate.logprob, candidate.raw, candidate.special)


def stats_of(measured: Stats) -> GenerationStats:
    return GenerationStats(
        prompt_tokens=measured.prompt_tokens,
        tokens_generated=measured.tokens_generated,
        time_to_first_token=measured.time_to_first_token,
        tokens_per_second=measured.tokens_per_second,
        total_time=measured.total_time,
        cached_tokens=measured.cached_tokens,
        drafted_tokens=measured.drafted_tokens,
        accepted_tokens=measured.accepted_tokens,
        speculation=measured.speculation,
    )


def _guidance(structure: Structure | None) -> methods.Guidance | None:
    if structure is None:
        return None
    value = structure.value
    schema = dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
    return methods.Guidance(mode=structure.kind, schema=schema, field=structure.field)


def embed_params(
    request: GenerationRequest, inputs: EmbeddingInputs, pipe_id: str, *, on_trial: bool
) -> methods.EmbedParams:
    """As `generate_params`, of the inputs whose vectors are not there yet."""
    places = [place for place in range(len(inputs.inputs)) if place not in inputs.delivered]
    wanted = [inputs.inputs[place] for place in places]
    queries = inputs.queries
    return methods.EmbedParams(
        model_id=request.model,
        inputs=[each if isinstance(each, str) else list(each) for each in wanted],
        places=places,
        queries=list(queries) if len(queries) <= 1 else [queries[place] for place in places],
        dimensions=inputs.dimensions,
        truncate_to=inputs.truncate_to,
        stream_id=pipe_id,
        priority="critical" if on_trial else request.priority,
        caller=request.caller[:256],
        timeout_s=request.timeout_s,
    )


def generate_params(
    request: GenerationRequest, pipe_id: str, fork_of: str | None, *, on_trial: bool
) -> methods.GenerateParams:
    """`pipe_id` is what the stream is called on the pipe, `fork_of` what that of the request is called which this one
    is a fork of. A request `on_trial` goes before all others."""
    chosen = request.sampling
    params = methods.GenerateParams(
        model_id=request.model,
        stream_id=pipe_id,
        max_tokens=chosen.max_tokens,
        cut_to_fit=request.cut_to_fit,
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        min_p=chosen.min_p,
        typical_p=chosen.typical_p,
        xtc_probability=chosen.xtc_probability,
        xtc_threshold=chosen.xtc_threshold,
        repetition_penalty=chosen.repetition_penalty,
        repetition_context_size=chosen.repetition_context_size,
        presence_penalty=chosen.presence_penalty,
        frequency_penalty=chosen.frequency_penalty,
        logit_bias=dict(chosen.logit_bias),
        banned_token_ids=list(chosen.banned_token_ids),
        allowed_token_ids=None if chosen.allowed_token_ids is None else list(chosen.allowed_token_ids),
        bad_words=list(chosen.bad_words),
        seed=chosen.seed,
        min_tokens=chosen.min_tokens,
        stop_sequences=list(chosen.stop),
        stop_token_ids=list(chosen.stop_token_ids),
        ignore_eos=chosen.ignore_eos,
        logprobs=chosen.logprobs,
        priority="critical" if on_trial else request.priority,  # others wait for its verdict
        caller=request.caller[:256],
        fork_of=fork_of,
        delivered=list(request.delivered),
        parse_output=request.parse_output,
        tool_choice=request.tool_choice.mode,
        named_tool=request.tool_choice.named,
        parallel_tool_calls=request.tool_choice.parallel,
        reasoning_budget=request.reasoning_budget,
        timeout_s=request.timeout_s,
        cache_salt=request.cache_salt,
        speculation=request.speculation.method,
        draft_model_id=request.speculation.draft_model,
        num_draft_tokens=request.speculation.num_draft_tokens,
        prediction=request.speculation.prediction,
        guidance=_guidance(request.structure),
    )
    match request.prompt:
        case TextPrompt():
            params.prompt = request.prompt.text
        case TokenPrompt():
            params.prompt_tokens = list(request.prompt.token_ids)
        case ChatPrompt():
            params.messages = [dict(message) for message in request.prompt.messages]
            params.template_kwargs = dict(request.prompt.template_kwargs)
            params.tools = [dict(tool) for tool in request.prompt.tools]
            params.chat_template = request.prompt.chat_template
            params.images = methods.image_params(request.prompt.images)
        case EmbeddingInputs():
            raise TypeError("vectors are asked for with another method")
    return params


def tokenize_chat_params(model_id: str, prompt: ChatPrompt) -> methods.TokenizeChatParams:
    return methods.TokenizeChatParams(
        model_id=model_id,
        messages=[dict(message) for message in prompt.messages],
        template_kwargs=dict(prompt.template_kwargs),
        tools=[dict(tool) for tool in prompt.tools],
        chat_template=prompt.chat_template,
        images=methods.image_params(prompt.images),
    )
