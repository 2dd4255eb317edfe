import pytest

from mlx_serving.core.generation import (
    CacheOutcome,
    ChatPrompt,
    Delta,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Served,
    TextPrompt,
    TokenLogprob,
)


def test_finish_reasons_are_the_words_of_the_api() -> None:
    assert [reason.value for reason in FinishReason] == ["stop", "length", "abort", "tool_calls"]


def test_a_request_needs_only_an_id_a_model_and_a_prompt() -> None:
    request = GenerationRequest("r1", "smollm2", TextPrompt("hello"))
    assert (request.sampling, request.priority, request.timeout_s) == (SamplingParams(), "normal", None)


def test_sampling_params_leave_to_the_model_what_the_model_may_say() -> None:
    params = SamplingParams()
    left_open = (params.temperature, params.top_p, params.top_k, params.min_p, params.typical_p)
    assert (*left_open, params.repetition_penalty) == (None,) * 6


def test_mappings_are_not_shared_between_values() -> None:
    assert SamplingParams().logit_bias is not SamplingParams().logit_bias
    assert ChatPrompt(()).template_kwargs is not ChatPrompt(()).template_kwargs


def test_a_delta_is_not_the_last_unless_it_says_so() -> None:
    delta = Delta("text")
    assert (delta.token_ids, delta.finish_reason, delta.stats, delta.logprobs) == ((), None, None, ())


def test_a_token_is_shown_with_bytes_that_are_no_character_spelled_out() -> None:
    assert TokenLogprob(1, -0.5, " naïve".encode()).text == " naïve"
    assert TokenLogprob(1, -0.5, b" \xf0\x9f\x99").text == r" \xf0\x9f\x99"
    assert TokenLogprob(1, -0.5, b"").text == ""


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ((), None),
        (("hit",), "hit"),
        (("hit", "shared"), "shared"),
        (("miss", "hit"), "miss"),
        (("shared", "miss", "shared"), "miss"),
    ],
)
def test_the_dearest_of_several_sequences_tells_how_a_request_is_served(
    outcomes: tuple[CacheOutcome, ...], told: CacheOutcome | None
) -> None:
    served = Served()
    for outcome in outcomes:
        served.note(outcome)
    assert served.cache == told
