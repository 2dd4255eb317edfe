"""Parameters as people write them: both spellings, and every mistake told at once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.kv_form import KvForm
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.facade.model_options import LoadModelOptions
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import CreateGeneratorOptions, GeneratorParams, TokenizeRequest

GOOD: dict[str, Any] = {"model": "m", "prompt": "Hi"}


def issues_of(error: InvalidRequest) -> dict[str, str]:
    issues = error.details["issues"]
    assert isinstance(issues, list)
    return {issue["field"]: issue["message"] for issue in issues}  # pyright: ignore[reportUnknownVariableType]


def refused(given_params: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(GeneratorParams, given_params)
    for message in issues_of(caught.value).values():
        assert message in caught.value.message
    return issues_of(caught.value)


def test_every_mistake_is_told_at_once_with_field_rule_and_what_was_given() -> None:
    issues = refused(
        {
            "prompt": 3,
            "max_tokens": 0,
            "topP": 1.5,
            "temperature": "hot",
            "stop": ["", "x"],
            "logit_bias": {-1: 2.0},
            "modle": "m",
            "seed": -1,
        }
    )
    assert issues == {
        "model": "model is required",
        "prompt": "prompt must be text, an object with template and variables, or an object with tokens",
        "max_tokens": "max_tokens must be a whole number of at least 1, got 0",
        "topP": "topP must be a number greater than 0 and at most 1, got 1.5",
        "temperature": "temperature is invalid: input should be a valid number, got 'hot'",
        "stop": "stop[0] must have 1 to 256 characters, got 0 characters",
        "logit_bias": "logit_bias[-1] must be keyed by a token id of at least 0, got -1",
        "modle": "modle is an unknown parameter; did you mean model?",
        "seed": "seed must be a whole number of at least 0 and at most 18446744073709551615, got -1",
    }


def test_what_openais_clients_write_means_the_same_here() -> None:
    params = parse(GeneratorParams, {**GOOD, "stop": "END", "logit_bias": {"5": 1.5, 6: -2}})
    assert params.stop_sequences == ("END",)
    assert params.logit_bias == {5: 1.5, 6: -2}
    assert refused({**GOOD, "logit_bias": {"-1": 2.0}})["logit_bias"].endswith("token id of at least 0, got -1")
    assert "should be a valid integer, got 'five'" in str(refused({**GOOD, "logit_bias": {"five": 1}}))
    assert refused({**GOOD, "logit_bias": [5]})["logit_bias"].endswith("got [5]")


def test_a_list_is_called_a_list() -> None:
    assert refused({**GOOD, "stop_token_ids": 5}) == {
        "stop_token_ids": "stop_token_ids is invalid: input should be a list, got 5"
    }


def test_token_ids_of_a_prompt_have_31_bits() -> None:
    limit = "input should be less than or equal to 2147483647, got 2147483648"
    assert refused({"model": "m", "prompt": {"tokens": [2**31]}}) == {
        "prompt.tokens.0": f"prompt.tokens.0 is invalid: {limit}"
    }


@pytest.mark.parametrize(("name", "value"), [("multimodal", {"images": []})])
def test_what_is_not_supported_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter, match=f"{name} is not supported") as caught:
        parse(GeneratorParams, {**GOOD, name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("trust_remote_code", True), ("trustRemoteCode", True)],
)
def test_a_load_refuses_what_it_would_not_do(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter, match=name):
        parse(LoadModelOptions, {"model": "m", name: value})


def test_weights_are_packed_as_text_or_as_values_say() -> None:
    def form(value: object) -> str | None:
        return parse(LoadModelOptions, {"model": "m", "quantization": value}).weights.quantization

    assert form("int4") == form({"bits": 4}) == form({"bits": 4, "groupSize": 64}) == "4bit-g64"
    assert form({"mode": "mxfp4"}) == "mxfp4"
    assert form("none") is None
    for value, told in (
        ("7bit", "the bits must be one of"),
        ({"bits": 4, "mode": "x"}, "the mode must be"),
        (4, "string"),
    ):
        with pytest.raises(InvalidRequest, match=told) as caught:
            form(value)
        assert caught.value.field == "quantization"
    with pytest.raises(InvalidRequest, match="bitz"):
        form({"bitz": 4})


def test_kv_caches_are_packed_in_either_spelling() -> None:
    def form(**values: object) -> KvForm | None:
        return parse(LoadModelOptions, {"model": "m", **values}).weights.kv

    assert form() is None
    assert form(kv_bits=8) == form(kvBits=8, kvGroupSize=64) == KvForm(8)
    assert form(kv_bits=4, kv_group_size=32) == KvForm(4, 32)
    with pytest.raises(InvalidRequest, match="kvBits"):
        form(kvBits=5)
    with pytest.raises(InvalidRequest, match=r"^kv_group_size needs kv_bits$") as caught:
        form(kv_group_size=32)
    assert caught.value.field == "kv_group_size"


def test_how_a_model_stays_is_told_as_seconds_or_as_a_text() -> None:
    asked = parse(LoadModelOptions, {"model": "m", "pin": True, "keepAlive": "1h30m"})
    assert (asked.pin, asked.keep_alive) == (True, 5400.0)
    assert parse(LoadModelOptions, {"model": "m", "keep_alive": -7}).keep_alive == -1.0
    assert (parse(LoadModelOptions, "m").pin, parse(LoadModelOptions, "m").keep_alive) == (None, None)
    with pytest.raises(InvalidRequest, match=r"keep_alive.*a text like 30s, 5m"):
        parse(LoadModelOptions, {"model": "m", "keep_alive": "soon"})


def test_a_salt_is_taken_in_either_spelling() -> None:
    assert parse(GeneratorParams, {**GOOD, "cacheSalt": "mine"}).cache_salt == "mine"
    assert parse(GeneratorParams, GOOD).cache_salt == ""
    assert "4096" in refused({**GOOD, "cache_salt": "x" * 4097})["cache_salt"]


def test_an_adapter_makes_a_name_unless_one_is_given() -> None:
    assert parse(LoadModelOptions, "m").served_name == "m"
    assert parse(LoadModelOptions, {"model": "org/m", "adapter": "/a/tuned"}).served_name == "org/m:tuned"
    assert parse(LoadModelOptions, {"model": "m", "adapterPath": "/a/tuned", "name": "mine"}).served_name == "mine"
    with pytest.raises(InvalidRequest, match=r"^fuse_adapter needs an adapter$") as caught:
        parse(LoadModelOptions, {"model": "m", "fuse_adapter": True})
    assert caught.value.field == "fuse_adapter"


def test_neutral_values_of_what_is_not_supported_pass() -> None:
    asked = parse(LoadModelOptions, {"model": "m", "draft": False, "quantization": "none", "trust_remote_code": False})
    assert asked.model == "m"


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"min_tokens must be at most max_tokens \(4\), got 5"):
        parse(GeneratorParams, {**GOOD, "max_tokens": 4, "minTokens": 5})


def test_one_parameter_in_two_spellings_is_refused() -> None:
    assert "given twice" in refused({**GOOD, "max_tokens": 3, "maxTokens": 4})["maxTokens"]


@pytest.mark.parametrize(
    "prompts", [{}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, {"messages": []}]
)
def test_exactly_one_prompt_is_required(prompts: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"prompt|messages"):
        parse(GeneratorParams, {"model": "m", **prompts})


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ({"tokens": []}, "prompt.tokens"),
        ({"tokens": [-1]}, "prompt.tokens.0"),
        ({"template": 3}, "prompt.template"),
        ({"variables": {}}, "prompt.template"),
        ({"template": "x", "variables": {"a": 1}}, "prompt.variables.a"),
    ],
)
def test_a_prompt_that_is_an_object_is_checked_in_depth(prompt: dict[str, Any], field: str) -> None:
    assert field in refused({"model": "m", "prompt": prompt})


def test_a_string_stands_for_the_model() -> None:
    assert parse(LoadModelOptions, "org/model").model == "org/model"
    asked = LoadModelOptions(model="m")
    assert parse(LoadModelOptions, asked) is asked


@pytest.mark.parametrize(
    ("given_priority", "expected"),
    [("urgent", "high"), ("default", "normal"), ("background", "background"), ("critical", "critical")],
)
def test_priorities_of_the_ancestor_are_understood(given_priority: str, expected: str) -> None:
    assert parse(CreateGeneratorOptions, {"priority": given_priority}).core_priority == expected


@pytest.mark.parametrize(
    "options", [{"timeout_ms": 0}, {"stream_id": ""}, {"streamId": "x" * 257}, {"priority": "now"}]
)
def test_options_out_of_their_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(CreateGeneratorOptions, options)
    assert caught.value.field in options


@pytest.mark.parametrize("name", ["add_bos", "addBos", "add_special_tokens", "addSpecialTokens"])
def test_the_flag_for_special_tokens_has_four_names(name: str) -> None:
    assert not parse(TokenizeRequest, {"model": "m", "text": "x", name: False}).add_bos


NAMES = st.sampled_from(sorted(GeneratorParams.model_fields)) | st.text(max_size=12)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers() | st.text())


@given(st.dictionaries(NAMES, VALUES))
def test_whatever_comes_is_taken_or_refused_as_invalid(data: dict[str, Any]) -> None:
    for model in (GeneratorParams, LoadModelOptions, CreateGeneratorOptions, TokenizeRequest):
        with suppress(InvalidRequest):
            parse(model, data)
