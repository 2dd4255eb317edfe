from __future__ import annotations

import pytest

from mlx_serving.core.choices import Choices
from mlx_serving.core.generation import TokenPrompt
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.server.errors import error_code
from mlx_serving.server.json_values import as_array, as_object
from mlx_serving.server.openai.requests import parse_chat, parse_completion

USER = {"role": "user", "content": "Hi"}

WRONG_VALUES: list[tuple[dict[str, object], str]] = [
    ({"max_tokens": "5"}, 'max_tokens must be an integer, got "5"'),
    ({"max_tokens": 5.5}, "max_tokens must be an integer, got 5.5"),
    ({"max_tokens": True}, "max_tokens must be an integer, got true"),
    ({"temperature": "hot"}, 'temperature must be a number, got "hot"'),
    ({"temperature": True}, "temperature must be a number, got true"),
    ({"n": True}, "n must be an integer, got true"),
    ({"n": "1"}, 'n must be an integer, got "1"'),
    ({"n": 1.5}, "n must be an integer, got 1.5"),
    ({"n": 0}, "n must be a whole number of at least 1 and at most 128, got 0"),
    ({"n": 129}, "n must be a whole number of at least 1 and at most 128, got 129"),
    ({"stream": 1}, "stream must be true or false, got 1"),
    ({"stream": "true"}, 'stream must be true or false, got "true"'),
    ({"model": 5}, "model must be a string, got 5"),
    ({"user": {}}, "user must be a string, got {}"),
    ({"stop": 5}, "stop must be a string or a list of strings, got 5"),
    ({"stop": ["a", 5]}, "stop[1] must be a string, got 5"),
    ({"stop_token_ids": "2"}, 'stop_token_ids must be a list, got "2"'),
    ({"stop_token_ids": [2, "3"]}, 'stop_token_ids[1] must be an integer, got "3"'),
    ({"logprobs": 1}, "logprobs must be true or false, got 1"),
    ({"logprobs": True, "top_logprobs": "3"}, 'top_logprobs must be an integer, got "3"'),
    ({"min_tokens": 6, "max_completion_tokens": 5}, "min_tokens must be at most max_tokens (5), got 6"),
    ({"allowed_token_ids": []}, "allowed_token_ids must not be empty, got none"),
    ({"bad_words": [""]}, "bad_words[0] must have 1 to 256 characters, got 0 characters"),
    ({"logit_bias": []}, "logit_bias must be an object, got []"),
    ({"logit_bias": {"the": 1}}, "logit_bias must be keyed by token ids, got 'the'"),
    ({"logit_bias": {"5": "x"}}, 'logit_bias.5 must be a number, got "x"'),
    ({"stream": True, "stream_options": 5}, "stream_options must be an object, got 5"),
    ({"stream": True, "stream_options": {"include_usage": 1}},
     "stream_options.include_usage must be true or false, got 1"),
    ({"stream": True, "stream_options": {"usages": True}},
     "unknown stream_options parameter 'usages'; allowed: include_usage"),
    ({"stream": True, "stream_options": {"include_usages": True}},
     "unknown stream_options parameter 'include_usages'; did you mean 'include_usage'?"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}},
     "stream_options.continuous_usage_stats is not supported by this server"),
    ({"stream_options": {"include_usage": True}}, "stream_options is only allowed when stream is true"),
    ({"max_tokens": 5, "max_completion_tokens": 6},
     "max_completion_tokens and max_tokens mean the same, got 6 and 5"),
    ({"chat_template_kwargs": {"chat_template": "x", "tokenize": False}},
     "chat_template_kwargs must not contain chat_template, tokenize"),
    ({"messages": "Hi"}, 'messages must be a list, got "Hi"'),
    ({"messages": []}, "messages must not be empty"),
    ({"messages": ["Hi"]}, 'messages[0] must be an object, got "Hi"'),
    ({"messages": [{"role": "user"}]}, "messages[0].content is required"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role is required"),
    ({"messages": [{"role": "robot", "content": "Hi"}]},
     "messages[0].role must be 'system', 'developer', 'user', 'assistant' or 'tool', got \"robot\""),
    ({"messages": [dict(USER), {"role": "user", "content": None}]},
     "messages[1].content is required"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content must not be empty"),
    ({"messages": [{"role": "user", "content": ["Hi"]}]}, 'messages[0].content[0] must be an object, got "Hi"'),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text is required"),
    ({"messages": [{**USER, "contents": "x"}]},
     "unknown messages[0] parameter 'contents'; did you mean 'content'?"),
    ({"messages": [{**USER, "tool_calls": [{}]}]},
     "messages[0].tool_calls[0].id is required; messages[0].tool_calls[0].function is required"),
    ({"messages": [{**USER, "tool_call_id": "x"}]},
     "messages[0] must not have a tool_call_id unless its role is 'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "detail": {}}]}]},
     "unknown messages[0].content[0] parameter 'detail'; allowed: cache_control, prompt_cache_breakpoint, text, type"),
]  # fmt: skip


def _refusal(**parameters: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse_chat({"messages": [dict(USER)], **parameters})
    return raised.value


def _issues(error: InvalidRequest) -> list[dict[str, object]]:
    return [as_object(issue) or {} for issue in as_array(error.details["issues"]) or []]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("best_of", 2),
        ("echo", True),
        ("audio", {"voice": "a", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("store", True),
        ("store", 1),
        ("prompt_cache_retention", "24h"),
        ("prompt_cache_options", {"mode": "explicit"}),
        ("web_search_options", {}),
        ("guided_decoding_backend", "xgrammar"),
        ("presence_context_size", 20),
        ("priority", 3),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, value: object) -> None:
    error = _refusal(**{name: value})
    assert isinstance(error, UnsupportedParameter)
    assert error.message == f"{name} is not supported by this server"
    assert (error.field, error_code(error)) == (name, "unsupported_parameter")


def test_whoever_names_adapters_is_told_how_they_are_served() -> None:
    error = _refusal(adapters="adapters/sql")
    assert isinstance(error, UnsupportedParameter)
    assert error.message == (
        "adapters is not supported by this server: an adapter is served under a name of its own "
        "(models.served[].adapter), which is what model should say"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", None),
        ("tools", []),
        ("parallel_tool_calls", True),
        ("response_format", {"type": "text"}),
        ("logprobs", False),
        ("logprobs", None),
        ("top_logprobs", 0),
        ("min_tokens", None),
        ("ignore_eos", False),
        ("bad_words", []),
        ("allowed_token_ids", None),
        ("n", None),
        ("n", 1),
        ("best_of", 1),
        ("echo", False),
        ("modalities", ["text"]),
        ("service_tier", None),
        ("prompt_cache_retention", "in_memory"),
        ("store", False),
        ("metadata", None),
        ("guided_json", None),
        ("skip_special_tokens", True),
        ("length_penalty", 1),
        ("temperature", None),
        ("stop", None),
        ("logit_bias", None),
        ("stream", None),
        ("stream_options", None),
        ("chat_template_kwargs", None),
    ],
)
def test_a_value_that_asks_for_nothing_is_accepted(name: str, value: object) -> None:
    assert parse_chat({"messages": [dict(USER)], name: value}) == parse_chat({"messages": [dict(USER)]})


@pytest.mark.parametrize(("name", "value"), [("suffix", "b"), ("echo", True)])
def test_what_is_not_supported_in_completions_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter, match=f"{name} is not supported") as raised:
        parse_completion({"prompt": "a", name: value})
    assert raised.value.field == name


@pytest.mark.parametrize(("n", "best_of"), [(None, None), (1, None), (None, 1), (3, None), (3, 3), (2, 5)])
def test_as_many_are_generated_as_are_answered_unless_more_are_asked_for(n: int | None, best_of: int | None) -> None:
    asked = parse_completion({"prompt": "a", "n": n, "best_of": best_of})
    assert asked.choices == Choices(n or 1, best_of or n or 1)


@pytest.mark.parametrize(
    ("parameters", "field", "message"),
    [
        ({"best_of": True}, "best_of", "best_of must be an integer, got true"),
        ({"n": 3, "best_of": 2}, "best_of", "best_of must be at least n, which is 3, got 2"),
        ({"best_of": 200}, "best_of", "best_of must be at most 128, got 200"),
        ({"n": 2, "best_of": 3, "stream": True}, "best_of",
         "best_of must be n, which is 2, when stream is true: the best are known at the end only, got 3"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt",
         "prompt may ask for at most 128 answers in one request, got 65 prompts of 2 answers each"),
        ({"prompt": [[1]] * 129}, "prompt",
         "prompt may ask for at most 128 answers in one request, got 129 prompts"),
    ],
)  # fmt: skip
def test_more_answers_than_can_be_given_are_refused_with_the_limit(
    parameters: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_completion({"prompt": "a", **parameters})
    assert (raised.value.field, raised.value.message) == (field, message)


def test_many_token_ids_are_one_prompt() -> None:
    asked = parse_completion({"prompt": [1] * 1000, "n": 128})
    assert asked.prompts == (TokenPrompt((1,) * 1000),)


def test_a_stream_may_have_as_many_candidates_as_answers() -> None:
    assert parse_completion({"prompt": "a", "n": 2, "best_of": 2, "stream": True}).choices == Choices(2, 2)


@pytest.mark.parametrize(
    ("parameters", "count"),
    [({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 5}, 5), ({"logprobs": True, "top_logprobs": 0}, 0)],
)
def test_a_chat_asks_for_log_probabilities_with_a_switch_and_a_number(
    parameters: dict[str, object], count: int
) -> None:
    assert parse_chat({"messages": [dict(USER)], **parameters}).sampling.logprobs == count


@pytest.mark.parametrize("count", [0, 5])
def test_a_completion_asks_for_log_probabilities_with_a_number(count: int) -> None:
    assert parse_completion({"prompt": "a", "logprobs": count}).sampling.logprobs == count


@pytest.mark.parametrize("parameters", [{"top_logprobs": 3}, {"top_logprobs": 3, "logprobs": False}])
def test_likeliest_tokens_without_log_probabilities_are_refused(parameters: dict[str, object]) -> None:
    error = _refusal(**parameters)
    assert (error.field, error.message) == ("top_logprobs", "top_logprobs is only allowed when logprobs is true")


def test_log_probabilities_out_of_range_are_refused_by_the_name_that_was_sent() -> None:
    limit = "must be a whole number of at least 0 and at most 20, got 21"
    assert _refusal(logprobs=True, top_logprobs=21).message == f"top_logprobs {limit}"
    with pytest.raises(InvalidRequest, match=f"^logprobs {limit}$"):
        parse_completion({"prompt": "a", "logprobs": 21})


def test_an_unknown_parameter_gets_a_suggestion() -> None:
    error = _refusal(max_token=5)
    assert error.message == "unknown parameter 'max_token'; did you mean 'max_tokens'?"
    assert (error.field, error_code(error)) == ("max_token", "unknown_parameter")


@pytest.mark.parametrize(("parameters", "message"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_what_is_allowed_and_what_came(parameters: dict[str, object], message: str) -> None:
    assert _refusal(**parameters).message == message


@pytest.mark.parametrize("kind", ["image", "input_audio", "file", "video_url"])
def test_parts_that_are_no_text_are_refused_by_name(kind: str) -> None:
    error = _refusal(messages=[{"role": "user", "content": [{"type": kind, kind: {"url": "data:"}}]}])
    assert kind in error.message
    assert error.field == "messages[0].content[0].type"
    assert error_code(error) == "unsupported_parameter"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
    ],
)
def test_a_value_out_of_its_limits_is_named_as_the_client_named_it(parameters: dict[str, object], field: str) -> None:
    error = _refusal(**parameters)
    assert error.field == field
    assert error.message.startswith(f"{field} must ")
    assert error_code(error) == "invalid_value"


def test_limits_are_checked_beside_wrong_types_and_unknown_names() -> None:
    error = _refusal(temperature=5, top_p="x", seed=2**64, foo=1, messages=[{"role": "user"}])
    assert {issue["field"] for issue in _issues(error)} == {
        "temperature",
        "top_p",
        "seed",
        "foo",
        "messages[0].content",
    }


def test_many_problems_are_counted_in_the_message_and_listed_in_the_details() -> None:
    error = _refusal(**{f"nonsense_{index}": 1 for index in range(9)})
    assert error.message.endswith("; and 4 more")
    assert len(_issues(error)) == 9


def test_the_two_names_of_max_tokens_may_agree() -> None:
    asked = parse_chat({"messages": [dict(USER)], "max_tokens": 5, "max_completion_tokens": 5})
    assert asked.sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("given", "seed"), [(None, None), (-1, None), (0, 0), (2**64 - 1, 2**64 - 1), (-2, 2**64 - 2), (-(2**63), 2**63)]
)
def test_a_seed_may_have_a_sign_and_minus_one_is_none(given: int | None, seed: int | None) -> None:
    assert parse_chat({"messages": [dict(USER)], "seed": given}).sampling.seed == seed


def test_template_variables_may_be_nested_but_not_bottomless() -> None:
    nested: dict[str, object] = {}
    parse_chat({"messages": [dict(USER)], "chat_template_kwargs": {"shallow": {"a": [1, {"b": 2}]}}})
    for _ in range(100):
        nested = {"inner": [nested]}
    assert "nested" in _refusal(chat_template_kwargs=nested).message


def test_a_long_value_is_cut_in_the_message() -> None:
    error = _refusal(max_tokens="9" * 10_000)
    assert len(error.message) < 200
    assert len(_refusal(**{"x" * 10_000: 1}).message) < 1000


def test_the_user_and_the_stream_are_passed_on() -> None:
    asked = parse_chat(
        {"messages": [dict(USER)], "user": "bob", "stream": True, "stream_options": {"include_usage": True}}
    )
    assert (asked.user, asked.stream, asked.include_usage) == ("bob", True, True)
