from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from mlx_serving.bench.http_target import open_http_target
from mlx_serving.bench.records import Answer
from mlx_serving.bench.target import RequestFailed
from mlx_serving.bench.workload import SAMPLED, Ask, Endpoint
from mlx_serving.errors import InvalidRequest, ModelNotFound

from .canned_server import CLOSE, answer, canned, chunked

ASK = Ask("Once upon", 5, Endpoint.COMPLETIONS, SAMPLED)


def event(**document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def text(piece: str, reason: str | None = None) -> bytes:
    return event(id="x", choices=[{"index": 0, "text": piece, "finish_reason": reason, "logprobs": None}])


def delta(**fields: object) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": fields.pop("reason", None)}])


USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
DONE = b"data: [DONE]\n\n"
STREAM = [text("One "), text("two"), text("", "length"), USAGE, DONE]


async def answer_to(parts: Sequence[bytes], ask: Ask = ASK) -> Answer:
    async with canned(parts) as server, open_http_target(server.origin, name="it", model="m") as target:
        return await target.send(ask)


async def test_an_answer_is_its_text_its_times_and_the_tokens_that_usage_tells() -> None:
    got = await answer_to(chunked(*STREAM))
    assert (got.text, got.prompt_tokens, got.output_tokens, got.counted) == ("One two", 7, 5, True)
    assert 1 <= len(got.arrivals_s) <= 2  # the network may join what was written apart
    assert got.arrivals_s[-1] <= got.ended_s


async def test_what_became_of_drafts_is_told_by_usage() -> None:
    details = {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 2, "reasoning_tokens": 0}
    usage = event(choices=[], usage={"completion_tokens": 5, "completion_tokens_details": details})
    got = await answer_to(chunked(text("a", "stop"), usage, DONE))
    assert (got.accepted_tokens, got.drafted_tokens) == (3, 5)
    unknown = event(choices=[], usage={"completion_tokens": 5, "completion_tokens_details": None})
    got = await answer_to(chunked(text("a", "stop"), unknown, DONE))
    assert (got.accepted_tokens, got.drafted_tokens) == (0, 0)


async def test_what_arrives_at_once_has_one_time() -> None:
    got = await answer_to(chunked(b"".join(STREAM)))
    assert len(got.arrivals_s) == 1
    assert got.text == "One two"


async def test_without_usage_pieces_of_text_are_counted() -> None:
    got = await answer_to(chunked(text("a"), text("b"), text("", "stop"), DONE))
    assert (got.output_tokens, got.prompt_tokens, got.counted) == (2, None, False)


async def test_chat_chunks_have_content_or_reasoning() -> None:
    chunks = [delta(role="assistant", content=""), delta(reasoning_content="hm "), delta(content="yes", reason="stop")]
    got = await answer_to(chunked(*chunks, USAGE, DONE), Ask("Hi", 5, Endpoint.CHAT, {}))
    assert got.text == "hm yes"


async def test_the_body_is_openais() -> None:
    async with (
        canned(chunked(*STREAM), chunked(*STREAM)) as server,
        open_http_target(
            server.origin + "/api/v3/", name="it", model="m", api_key="key", extra_body={"ignore_eos": True}
        ) as target,
    ):
        await target.send(ASK)
        await target.send(Ask("Hi", 3, Endpoint.CHAT, {"temperature": 0.0}))
    completion, chat = (request.partition(b"\r\n\r\n") for request in server.requests)
    assert completion[0].startswith(b"POST /api/v3/completions HTTP/1.1\r\n")
    assert b"authorization: Bearer key" in completion[0]
    common = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    assert json.loads(completion[2]) == {**common, "prompt": "Once upon", "max_tokens": 5, **SAMPLED}
    assert chat[0].startswith(b"POST /api/v3/chat/completions HTTP/1.1\r\n")
    messages = [{"role": "user", "content": "Hi"}]
    assert json.loads(chat[2]) == {**common, "messages": messages, "max_tokens": 3, "temperature": 0.0}


@pytest.mark.parametrize(
    ("parts", "code", "message"),
    [
        ([answer(b'{"error": {"code": "Overloaded", "message": "full"}}', "503 No")], "Overloaded", "full"),
        ([answer(b'{"error": {"type": "invalid", "message": "m"}}', "400 Bad")], "invalid", "m"),
        ([answer(b'{"error": {"message": "m", "code": null}}', "400 Bad")], "http_400", "m"),
        ([answer(b'{"error": "as a text"}', "500 Oh")], "http_500", "as a text"),
        ([answer(b"<html>", "502 Bad Gateway")], "http_502", "<html>"),
        (chunked(text("a"), event(error={"code": "WorkerDied", "message": "gone"})), "WorkerDied", "gone"),
        (chunked(text("a")), "truncated", "without a finish_reason"),
        (chunked(b"data: {no json\n\n"), "protocol", "no completion chunk"),
        ([*chunked(text("a"))[:2], CLOSE], "connection", "ended before"),
    ],
)
async def test_what_goes_wrong_has_a_code(parts: list[bytes], code: str, message: str) -> None:
    with pytest.raises(RequestFailed, match=message) as caught:
        await answer_to(parts)
    assert caught.value.code == code


async def test_without_a_name_it_is_the_first_model_that_is_listed() -> None:
    models = json.dumps({"object": "list", "data": [{"id": "first"}, {"id": "second"}]}).encode()
    async with canned([answer(models)]) as server, open_http_target(server.origin, name="it", model=None) as target:
        assert target.about.model == "first"
    assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([answer(b"nothing here", "404 Not Found")], "does not list its models"),
        ([answer(b'{"models": []}')], "does not list its models as OpenAI does"),
        ([CLOSE], "the connection ended"),
    ],
)
async def test_where_models_cannot_be_listed_one_must_be_named(parts: list[bytes], told: str) -> None:
    async with canned(parts) as server:
        with pytest.raises(RequestFailed, match=told):
            async with open_http_target(server.origin, name="it", model=None):
                pass


async def test_a_server_without_models_is_an_error() -> None:
    async with canned([answer(b'{"data": []}')]) as server:
        with pytest.raises(ModelNotFound, match="it lists no models"):
            async with open_http_target(server.origin, name="it", model=None):
                pass


@pytest.mark.parametrize("url", ["ftp://host", "host:8000", "http://", "http://host:port", "http://host/v1?key=1"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="engine, server or an http"):
        async with open_http_target(url, name="it", model="m"):
            pass


async def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidRequest) as caught:
        async with open_http_target("http://me:secret@host", name="it", model="m"):
            pass
    assert "secret" not in str(caught.value.to_object())
