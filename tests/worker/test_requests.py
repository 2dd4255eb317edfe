"""From what a caller asks to what the worker reads: every parameter crosses the pipe."""

from __future__ import annotations

import dataclasses

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import GenerationRequest, SamplingParams, TextPrompt
from mlx_serving.engine.translation import generate_params
from mlx_serving.wire.methods import GenerateParams
from mlx_serving.worker.requests import sampling_of

_ids = st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple)
_strings = st.lists(st.text(min_size=1), max_size=3).map(tuple)
_shares = st.none() | st.floats(0, 1)
_counts = st.none() | st.integers(0, 1000)
_FIELDS: dict[str, st.SearchStrategy[object]] = {
    "max_tokens": _counts,
    "temperature": _shares,
    "top_p": _shares,
    "top_k": _counts,
    "min_p": _shares,
    "typical_p": _shares,
    "xtc_probability": _shares,
    "xtc_threshold": _shares,
    "repetition_penalty": _shares,
    "repetition_context_size": _counts,
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 1000), st.floats(-100, 100), max_size=3),
    "banned_token_ids": _ids,
    "allowed_token_ids": st.none() | _ids,
    "bad_words": _strings,
    "seed": st.none() | st.integers(0, 2**64 - 1),
    "min_tokens": st.integers(0, 1000),
    "stop": _strings,
    "stop_token_ids": _ids,
    "ignore_eos": st.booleans(),
    "logprobs": _counts,
}


@given(st.builds(SamplingParams, **_FIELDS))
def test_sampling_arrives_as_it_was_asked_for(sampling: SamplingParams) -> None:
    sent = msgspec.json.encode(
        generate_params(GenerationRequest("r", "m", TextPrompt("p"), sampling), "id", None, on_trial=False)
    )
    assert sampling_of(msgspec.json.decode(sent, type=GenerateParams)) == sampling


def test_no_parameter_is_forgotten_here() -> None:
    assert set(_FIELDS) == {field.name for field in dataclasses.fields(SamplingParams)}
