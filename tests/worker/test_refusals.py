"""What the worker refuses, by hand against a real process: the number, the stable code, the field, the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..tiny_models import VOCABULARY
from .driver import Message, Refused, WorkerProcess


def answer_to_line(worker: WorkerProcess, line: bytes, request_id: object = None) -> Refused:
    worker.send_bytes(line + b"\n")
    with pytest.raises(Refused) as caught:
        worker.answer_to(request_id)
    return caught.value


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        pytest.param(b"this is no JSON", -32700, "ParseError", id="no JSON"),
        pytest.param(b'{"jsonrpc":"2.0","id":1,"method":', -32700, "ParseError", id="cut JSON"),
        pytest.param(b"\xff\xfe\x00", -32700, "ParseError", id="no UTF-8"),
        pytest.param(b"\xc1\x00\x00\x00\x03abc", -32700, "ParseError", id="a binary frame"),
        pytest.param(b'[{"jsonrpc":"2.0","id":1,"method":"runtime/info"}]', -32600, "InvalidRequest", id="a batch"),
        pytest.param(b'"text"', -32600, "InvalidRequest", id="a string"),
        pytest.param(b"[" * 100_000, -32600, "InvalidRequest", id="deep nesting"),
        pytest.param(b'{"jsonrpc":"2.0","id":1.5,"method":"runtime/info"}', -32600, "InvalidRequest", id="float id"),
        pytest.param(b'{"jsonrpc":"2.0","id":true,"method":"runtime/info"}', -32600, "InvalidRequest", id="bool id"),
        pytest.param(b'{"jsonrpc":"2.0","id":{},"method":"runtime/info"}', -32600, "InvalidRequest", id="object id"),
    ],
)
def test_a_line_that_is_no_request_is_answered_without_an_id(
    worker: WorkerProcess, line: bytes, code: int, kind: str
) -> None:
    refused = answer_to_line(worker, line)
    assert (refused.code, refused.type) == (code, kind)


def test_an_id_that_can_be_read_is_answered_to(worker: WorkerProcess) -> None:
    refused = answer_to_line(worker, b'{"jsonrpc":"1.0","id":"mine","method":"runtime/info"}', "mine")
    assert (refused.code, refused.details["field"]) == (-32600, "jsonrpc")
    refused = answer_to_line(worker, b'{"jsonrpc":"2.0","id":"mine","method":7}', "mine")
    assert (refused.code, refused.details["field"]) == (-32600, "method")


def test_an_unknown_method_gets_a_suggestion(worker: WorkerProcess) -> None:
    refused = worker.refusal("genrate")
    assert (refused.code, refused.type) == (-32601, "MethodNotFound")
    assert refused.message == "There is no method genrate; did you mean generate?"


def test_parameters_that_are_no_object_are_refused(worker: WorkerProcess) -> None:
    refused = answer_to_line(worker, b'{"jsonrpc":"2.0","id":"p","method":"tokenize","params":["a","b"]}', "p")
    assert (refused.code, refused.type) == (-32602, "InvalidParams")


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("tokenize", {"model_id": "m"}, "text"),
        ("tokenize", {"model_id": "m", "text": 7}, "text"),
        ("tokenize", {"model_id": "m", "text": "x" * (2**20 + 1)}, "text"),
        ("tokenize", {"model_id": "m", "text": "x", "txet": "y"}, "txet"),
        ("tokenize", {"model_id": "", "text": "x"}, "model_id"),
        ("detokenize", {"model_id": "m", "tokens": [-1]}, "tokens[0]"),
        ("generate", {"prompt": "x"}, "model_id"),
        ("generate", {"model_id": "m", "prompt_tokens": [1, "2"]}, "prompt_tokens[1]"),
        ("generate", {"model_id": "m", "prompt": "x", "max_tokens": "many"}, "max_tokens"),
        ("generate", {"model_id": "m", "prompt": "x", "temprature": 1}, "temprature"),
        ("generate", {"model_id": "m", "prompt": "x", "stream_id": ""}, "stream_id"),
        ("generate", {"model_id": "m", "messages": "hello"}, "messages"),
        ("load_model", {"model_id": "m", "context_length": 0}, "context_length"),
        ("unload_model", {}, "model_id"),
        ("abort", {"stream_id": 7}, "stream_id"),
        ("runtime/info", {"heartbeat_interval_s": 0}, "heartbeat_interval_s"),
        ("runtime/state", {"verbose": True}, "verbose"),
        ("shutdown", {"now": True}, "now"),
    ],
)
def test_an_invalid_parameter_is_named(
    worker: WorkerProcess, method: str, params: dict[str, object], field: str
) -> None:
    refused = worker.refusal(method, **params)
    assert (refused.code, refused.type, refused.details["field"]) == (-32602, "InvalidParams", field)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
        ({"logit_bias": {"-1": 1}}, "logit_bias[-1]"),
        ({"stop_sequences": [""]}, "stop[0]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"typical_p": 0}, "typical_p"),
        ({"xtc_probability": 2}, "xtc_probability"),
        ({"xtc_threshold": 0.6}, "xtc_threshold"),
        ({"repetition_context_size": -1}, "repetition_context_size"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"banned_token_ids": [-1]}, "banned_token_ids[0]"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
    ],
)
def test_sampling_out_of_range_is_refused_with_its_limit(
    worker: WorkerProcess, speller: Path, params: dict[str, object], field: str
) -> None:
    refused = worker.refusal("generate", model_id=str(speller), prompt="a", **params)
    assert (refused.code, refused.details["field"]) == (-32602, field)
    assert {"limit", "given"} <= set(refused.details)


@pytest.mark.parametrize("name", ["banned_token_ids", "allowed_token_ids"])
def test_ids_beyond_the_vocabulary_are_refused(worker: WorkerProcess, speller: Path, name: str) -> None:
    refused = worker.refusal("generate", model_id=str(speller), prompt="a", **{name: [VOCABULARY]})
    assert (refused.details["field"], refused.details["limit"]) == (name, VOCABULARY - 1)


def test_a_request_that_leaves_no_token_is_refused(worker: WorkerProcess, speller: Path) -> None:
    refused = worker.refusal("generate", model_id=str(speller), prompt="a", allowed_token_ids=[7], banned_token_ids=[7])
    assert (refused.code, refused.details["field"]) == (-32602, "allowed_token_ids")


def test_min_tokens_must_fit_into_the_context(worker: WorkerProcess, speller: Path) -> None:
    refused = worker.refusal("generate", model_id=str(speller), prompt="abc", min_tokens=600)
    assert (refused.details["field"], refused.details["given"]) == ("min_tokens", 603)
    assert "but the prompt has 3 and min_tokens 600" in refused.message


def test_several_values_out_of_range_are_told_together(worker: WorkerProcess, speller: Path) -> None:
    refused = worker.refusal("generate", model_id=str(speller), prompt="a", top_p=7, temperature=-1)
    assert [issue["field"] for issue in refused.details["issues"]] == ["temperature", "top_p"]


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("generate", {"prompt_tokens": [1, VOCABULARY]}, "prompt_tokens"),
        ("generate", {"prompt": "a", "logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
        ("detokenize", {"tokens": [VOCABULARY]}, "tokens"),
    ],
)
def test_a_token_id_outside_the_vocabulary_is_refused(
    worker: WorkerProcess, speller: Path, method: str, params: dict[str, object], field: str
) -> None:
    details = worker.refusal(method, model_id=str(speller), **params).details
    assert details == {"field": field, "limit": VOCABULARY - 1, "given": VOCABULARY}


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("load_model", {"trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    worker: WorkerProcess, speller: Path, method: str, params: dict[str, object], field: str
) -> None:
    refused = worker.refusal(method, model_id=str(speller), **params)
    assert (refused.code, refused.details["field"]) == (-32602, field)
    assert "not supported" in refused.message


@pytest.mark.parametrize(
    ("params", "field", "told"),
    [
        ({"quantization": "int4"}, "quantization", "is loaded already, as it is on disk and not as 4bit-g64"),
        ({"quantization": "5000bit"}, "quantization", "the bits must be one of 2, 3, 4, 5, 6, 8, got 5000"),
        ({"adapter_path": "/no/where"}, "adapter_path", "is loaded already"),
        ({"fuse_adapter": True}, "fuse_adapter", "fuse_adapter needs an adapter"),
    ],
)
def test_another_form_of_a_loaded_model_is_refused(
    worker: WorkerProcess, speller: Path, params: dict[str, object], field: str, told: str
) -> None:
    refused = worker.refusal("load_model", model_id=str(speller), **params)
    assert (refused.code, refused.details["field"]) == (-32602, field)
    assert told in refused.message


@pytest.mark.parametrize(
    "params",
    [{}, {"prompt": ""}, {"prompt_tokens": []}, {"messages": []}, {"prompt": "a", "prompt_tokens": [1]}],
    ids=["nothing", "empty text", "no tokens", "no messages", "two of them"],
)
def test_there_must_be_one_prompt_with_something_in_it(
    worker: WorkerProcess, speller: Path, params: dict[str, object]
) -> None:
    refused = worker.refusal("generate", model_id=str(speller), **params)
    assert (refused.code, refused.type) == (-32602, "InvalidParams")
    assert refused.details["field"] in ("prompt", "prompt_tokens")


@pytest.mark.parametrize(
    ("max_tokens", "field", "given"), [(None, "prompt", 512), (1, "prompt", 513)], ids=["default", "asked"]
)
def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers(
    worker: WorkerProcess, speller: Path, max_tokens: int | None, field: str, given: int
) -> None:
    refused = worker.refusal("generate", model_id=str(speller), prompt="a" * 512, max_tokens=max_tokens)
    assert refused.details == {"field": field, "limit": 512, "given": given}
    assert "The context holds 512 tokens, but the prompt has 512" in refused.message


def test_max_tokens_beyond_the_context_are_refused_and_the_default_is_cut(worker: WorkerProcess, speller: Path) -> None:
    refused = worker.refusal("generate", model_id=str(speller), prompt="a" * 500, max_tokens=13)
    assert refused.details == {"field": "max_tokens", "limit": 512, "given": 513}
    *_, stats, event = worker.notifications(worker.generate(model_id=str(speller), prompt="a" * 500))
    assert (stats["tokens_generated"], event["finish_reason"]) == (12, "length")


def test_a_model_that_is_not_loaded_is_named(worker: WorkerProcess) -> None:
    for refused in (
        worker.refusal("generate", model_id="absent", prompt="a"),
        worker.refusal("tokenize", model_id="absent", text="a"),
        worker.refusal("detokenize", model_id="absent", tokens=[1]),
    ):
        assert (refused.code, refused.type, refused.details["model"]) == (-32005, "ModelNotLoaded", "absent")


def test_a_stream_id_in_use_is_refused_until_it_is_free(worker: WorkerProcess, endless: Path) -> None:
    common: Message = {"model_id": str(endless), "prompt": "a", "stream_id": "twice"}
    worker.call("load_model", model_id=str(endless))
    worker.start_endless(endless, "twice")
    refused = worker.refusal("generate", **common)
    assert (refused.code, refused.details["field"]) == (-32602, "stream_id")
    assert worker.call("abort", stream_id="twice") == {"aborted": True}
    list(worker.notifications("twice"))
    assert worker.text(worker.generate(**common, max_tokens=2)) == "bc"


@pytest.mark.parametrize("reserved", ["tokenize", "return_dict", "chat_template"])
def test_template_arguments_that_are_not_the_template_s_are_refused(
    worker: WorkerProcess, speller: Path, reserved: str
) -> None:
    refused = worker.refusal(
        "generate",
        model_id=str(speller),
        messages=[{"role": "user", "content": "x"}],
        template_kwargs={reserved: False},
    )
    assert (refused.code, refused.details["field"]) == (-32602, "template_kwargs")


@pytest.mark.parametrize("messages", [[{}], [{"role": "user", "content": {"deep": 1}}], [{"role": 7, "content": 8}]])
def test_messages_that_the_template_cannot_take_are_refused(
    worker: WorkerProcess, speller: Path, messages: Any
) -> None:
    refused = worker.refusal("generate", model_id=str(speller), messages=messages)
    assert (refused.code, refused.details["field"]) == (-32602, "messages")


def test_a_chat_with_a_model_without_a_template_is_refused(worker: WorkerProcess, untemplated: Path) -> None:
    facts = worker.call("load_model", model_id=str(untemplated))
    refused = worker.refusal("generate", model_id=str(untemplated), messages=[{"role": "user", "content": "x"}])
    assert facts["has_chat_template"] is False
    assert refused.details["field"] == "messages"
