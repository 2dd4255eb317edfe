import dataclasses
import json
import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.sampling_defaults import ResolvedSampling, SamplingDefaults, resolve, validate
from mlx_serving.errors import InvalidRequest

DEFAULTS = SamplingDefaults()
MODEL: dict[str, Any] = {
    "temperature": 0.2, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "typical_p": 0.8, "repetition_penalty": 1.1,
}  # fmt: skip


def test_the_defaults_answer_what_nobody_else_says() -> None:
    expected = ResolvedSampling(
        max_tokens=512,
        temperature=0.7,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        typical_p=1.0,
        xtc_probability=0.0,
        xtc_threshold=0.1,
        repetition_context_size=20,
    )
    assert resolve(SamplingParams(), {}, DEFAULTS) == expected


def test_what_an_operator_sets_holds_where_nothing_else_does() -> None:
    chosen = SamplingDefaults(5, 0.1, 0.2, 3, 0.4, 0.5, 0.6, 0.4, 1.2, 9)
    resolved = resolve(SamplingParams(), {}, chosen)
    assert {name: getattr(resolved, name) for name in dataclasses.asdict(chosen)} == dataclasses.asdict(chosen)


def test_a_long_min_tokens_outgrows_the_default_of_max_tokens() -> None:
    assert resolve(SamplingParams(min_tokens=600), {}, DEFAULTS).max_tokens == 600
    assert resolve(SamplingParams(min_tokens=5), {}, DEFAULTS).max_tokens == 512
    assert resolve(SamplingParams(min_tokens=5, max_tokens=6), {}, DEFAULTS).max_tokens == 6


def test_the_model_comes_before_the_defaults() -> None:
    assert resolve(SamplingParams(), MODEL, DEFAULTS) == ResolvedSampling(max_tokens=512, **MODEL)


def test_the_request_comes_before_the_model() -> None:
    params = SamplingParams(
        max_tokens=7,
        temperature=0.0,
        top_p=0.5,
        top_k=0,
        min_p=0.0,
        typical_p=0.6,
        xtc_probability=0.7,
        xtc_threshold=0.2,
        repetition_penalty=1.0,
        repetition_context_size=0,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={3: 1.0},
        banned_token_ids=(4,),
        allowed_token_ids=(5,),
        bad_words=("no",),
        seed=0,
        min_tokens=2,
        stop=("x",),
        stop_token_ids=(2,),
        ignore_eos=True,
        logprobs=3,
    )
    assert dataclasses.asdict(resolve(params, MODEL, DEFAULTS)) == dataclasses.asdict(params)


def test_a_model_that_does_not_sample_means_temperature_zero() -> None:
    model = {"do_sample": False, "temperature": 0.9}
    assert resolve(SamplingParams(), model, DEFAULTS).temperature == 0.0
    assert resolve(SamplingParams(temperature=1.0), model, DEFAULTS).temperature == 1.0


@pytest.mark.parametrize("do_sample", [True, None, 0, "false"])
def test_only_a_plain_false_turns_sampling_off(do_sample: object) -> None:
    assert resolve(SamplingParams(), {"do_sample": do_sample, "temperature": 0.9}, DEFAULTS).temperature == 0.9


@pytest.mark.parametrize(
    "model",
    [
        {"temperature": "hot", "top_p": None, "top_k": 5.5, "min_p": [], "repetition_penalty": True},
        {"temperature": -1, "top_p": 0, "top_k": -1, "min_p": 2, "typical_p": 0, "repetition_penalty": 0},
        {"temperature": math.nan, "top_p": math.inf, "top_k": True, "repetition_penalty": 10**400},
        {"max_tokens": 3, "max_new_tokens": 3, "max_length": 3, "min_tokens": 3, "seed": 3, "presence_penalty": 1.0},
    ],
)
def test_what_the_model_says_wrongly_or_is_not_its_to_say_is_passed_over(model: dict[str, object]) -> None:
    assert resolve(SamplingParams(), model, DEFAULTS) == resolve(SamplingParams(), {}, DEFAULTS)


JSON_VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.none(), max_size=1)
)
MODEL_KEYS = [*MODEL, "do_sample", "max_tokens"]


@given(model=st.dictionaries(st.sampled_from(MODEL_KEYS), JSON_VALUES))
def test_whatever_a_model_says_the_result_would_pass_as_a_request(model: dict[str, object]) -> None:
    resolved = resolve(SamplingParams(), model, DEFAULTS)
    validate(
        SamplingParams(
            max_tokens=resolved.max_tokens,
            temperature=resolved.temperature,
            top_p=resolved.top_p,
            top_k=resolved.top_k,
            min_p=resolved.min_p,
            typical_p=resolved.typical_p,
            repetition_penalty=resolved.repetition_penalty,
        )
    )
    assert isinstance(resolved.top_k, int)
    assert isinstance(resolved.temperature, float)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens must be a whole number of at least 1, got 0"),
        ("temperature", 3, "temperature must be a number of at least 0 and at most 2, got 3"),
        ("top_p", 0, "top_p must be a number greater than 0 and at most 1, got 0"),
        ("top_k", 1.5, "top_k must be a whole number of at least 0, got 1.5"),
        ("min_p", -0.5, "min_p must be a number of at least 0 and at most 1, got -0.5"),
        ("repetition_penalty", 0, "repetition_penalty must be a number greater than 0, got 0"),
        ("typical_p", 0, "typical_p must be a number greater than 0 and at most 1, got 0"),
        ("xtc_threshold", 0.6, "xtc_threshold must be a number of at least 0 and at most 0.5, got 0.6"),
        ("repetition_context_size", -1, "repetition_context_size must be a whole number of at least 0, got -1"),
    ],
)
def test_defaults_out_of_their_limits_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SamplingDefaults(**{field: value})  # pyright: ignore[reportArgumentType]  wrong on purpose


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(max_tokens=1, temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=0.01, seed=0),
        SamplingParams(temperature=2, top_p=0.001, min_p=1, presence_penalty=-2, frequency_penalty=2, seed=2**64 - 1),
        SamplingParams(stop=("x" * 256,) * 16, stop_token_ids=(0,) * 100),
        SamplingParams(logit_bias=dict.fromkeys(range(1024), -100.0)),
        SamplingParams(typical_p=1, xtc_probability=1, xtc_threshold=0.5, repetition_context_size=0, logprobs=20),
        SamplingParams(min_tokens=5, max_tokens=5, logprobs=0, bad_words=("x" * 256,) * 100),
        SamplingParams(min_tokens=5, banned_token_ids=(0,) * 1024, allowed_token_ids=tuple(range(1 << 18))),
    ],
)
def test_what_is_within_the_limits_passes(params: SamplingParams) -> None:
    validate(params)


@pytest.mark.parametrize(
    ("params", "field", "given_value"),
    [
        (SamplingParams(max_tokens=0), "max_tokens", 0),
        (SamplingParams(max_tokens=-5), "max_tokens", -5),
        (SamplingParams(temperature=2.1), "temperature", 2.1),
        (SamplingParams(temperature=-0.1), "temperature", -0.1),
        (SamplingParams(temperature=math.nan), "temperature", "nan"),
        (SamplingParams(temperature=math.inf), "temperature", "inf"),
        (SamplingParams(top_p=0), "top_p", 0),
        (SamplingParams(top_p=1.01), "top_p", 1.01),
        (SamplingParams(top_k=-1), "top_k", -1),
        (SamplingParams(min_p=1.5), "min_p", 1.5),
        (SamplingParams(repetition_penalty=0), "repetition_penalty", 0),
        (SamplingParams(repetition_penalty=math.inf), "repetition_penalty", "inf"),
        (SamplingParams(presence_penalty=2.5), "presence_penalty", 2.5),
        (SamplingParams(frequency_penalty=-2.5), "frequency_penalty", -2.5),
        (SamplingParams(seed=-1), "seed", -1),
        (SamplingParams(seed=2**64), "seed", 2**64),
        (SamplingParams(stop=("a", "")), "stop[1]", "0 characters"),
        (SamplingParams(stop=("x" * 257,)), "stop[0]", "257 characters"),
        (SamplingParams(stop=("x",) * 17), "stop", 17),
        (SamplingParams(stop_token_ids=(1, -2)), "stop_token_ids[1]", -2),
        (SamplingParams(stop_token_ids=(1,) * 101), "stop_token_ids", 101),
        (SamplingParams(typical_p=0), "typical_p", 0),
        (SamplingParams(xtc_probability=1.5), "xtc_probability", 1.5),
        (SamplingParams(xtc_threshold=0.51), "xtc_threshold", 0.51),
        (SamplingParams(repetition_context_size=-1), "repetition_context_size", -1),
        (SamplingParams(min_tokens=-1), "min_tokens", -1),
        (SamplingParams(min_tokens=6, max_tokens=5), "min_tokens", 6),
        (SamplingParams(logprobs=21), "logprobs", 21),
        (SamplingParams(logprobs=-1), "logprobs", -1),
        (SamplingParams(bad_words=("a", "")), "bad_words[1]", "0 characters"),
        (SamplingParams(bad_words=("x",) * 101), "bad_words", 101),
        (SamplingParams(banned_token_ids=(-1,)), "banned_token_ids[0]", -1),
        (SamplingParams(banned_token_ids=(1,) * 1025), "banned_token_ids", 1025),
        (SamplingParams(allowed_token_ids=()), "allowed_token_ids", "none"),
        (SamplingParams(allowed_token_ids=(3, -1)), "allowed_token_ids[1]", -1),
        (SamplingParams(allowed_token_ids=(1,) * ((1 << 18) + 1)), "allowed_token_ids", (1 << 18) + 1),
        (SamplingParams(logit_bias={-1: 0.0}), "logit_bias[-1]", -1),
        (SamplingParams(logit_bias={5: 100.5}), "logit_bias[5]", 100.5),
        (SamplingParams(logit_bias={5: math.nan}), "logit_bias[5]", "nan"),
        (SamplingParams(logit_bias=dict.fromkeys(range(1025), 0.0)), "logit_bias", 1025),
    ],
)
def test_what_is_out_of_its_limits_is_refused_with_field_limit_and_value(
    params: SamplingParams, field: str, given_value: object
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(params)
    error = caught.value
    assert error.field == field
    assert error.details["given"] == given_value
    assert error.details["limit"]
    assert error.message.startswith(f"{field} must ")
    assert error.message.endswith(f", got {given_value}")
    assert "issues" not in error.details


def test_one_error_lists_everything_that_is_wrong() -> None:
    params = SamplingParams(max_tokens=0, top_p=2.0, temperature=math.nan, stop=("",), logit_bias={-1: 0.0})
    with pytest.raises(InvalidRequest) as caught:
        validate(params)
    error = caught.value
    issues = cast("list[dict[str, object]]", error.details["issues"])
    assert [issue["field"] for issue in issues] == ["max_tokens", "temperature", "top_p", "stop[0]", "logit_bias[-1]"]
    assert error.field == "max_tokens"
    assert error.message.endswith("; and 2 more")
    assert json.loads(json.dumps(error.to_object(), allow_nan=False)) == error.to_object()


def test_two_issues_are_both_in_the_message() -> None:
    with pytest.raises(InvalidRequest, match=r"^max_tokens must .*, got 0; top_k must .*, got -1$"):
        validate(SamplingParams(max_tokens=0, top_k=-1))
