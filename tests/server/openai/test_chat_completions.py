from __future__ import annotations

import asyncio
import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from mlx_serving.core.generation import ChatPrompt, FinishReason, SamplingParams
from mlx_serving.errors import (
    Aborted,
    CircuitOpen,
    ContextLengthExceeded,
    EngineError,
    GenerationError,
    Overloaded,
    WorkerDied,
)
from mlx_serving.server.json_values import as_array, as_object
from mlx_serving.server.openai.documents import ChatCompletion, ChatCompletionChunk, ErrorDocument

from ..scripted_engine import PROMPT_TOKENS, Script, ScriptedEngine

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def _events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


async def test_a_whole_answer_has_the_text_the_reason_and_the_usage(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)

    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint
    assert answer.created > 1_700_000_000
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        PROMPT_TOKENS, 2, PROMPT_TOKENS + 2,
    )  # fmt: skip


async def test_the_usage_tells_how_much_of_the_prompt_was_kept(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    for cached in (0, 2):
        engine.script = Script(cached_tokens=cached)
        answer = await client.chat.completions.create(model="tiny", messages=HELLO)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == cached
        assert answer.usage.prompt_tokens == PROMPT_TOKENS


async def test_a_salt_reaches_the_engine(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    await client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"cache_salt": "tenant"})
    await client.completions.create(model="tiny", prompt="Hi", extra_body={"cache_salt": "other"})
    await client.completions.create(model="tiny", prompt="Hi")
    assert [run.request.cache_salt for run in engine.runs] == ["tenant", "other", ""]


async def test_running_out_of_tokens_is_the_finish_reason_length(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = Script(finish=FinishReason.LENGTH)
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.choices[0].finish_reason == "length"


async def test_a_stream_has_the_role_then_text_then_the_reason(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]

    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None, None]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Hello", " world", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)


async def test_the_usage_chunk_comes_last_when_it_is_asked_for(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == PROMPT_TOKENS + 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_clients_stream_helper_assembles_the_answer(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="tiny", messages=HELLO) as stream:
        texts = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()

    assert "".join(texts) == "Hello world"
    assert final.choices[0].message.content == "Hello world"
    assert final.choices[0].finish_reason == "stop"


async def test_the_bytes_of_a_stream_are_the_documented_ones(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json={**BODY, "stream": True})

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *chunks, done = _events(response.text)
    assert done == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk, strict=True)


async def test_a_whole_answer_is_the_documented_one(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=BODY)
    assert response.headers["content-type"] == "application/json"
    ChatCompletion.model_validate_json(response.content, strict=True)


async def test_pieces_without_text_are_not_sent(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = Script(pieces=("", "é", ""))
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert [chunk.choices[0].delta.content async for chunk in stream] == ["", "é", None]


async def test_text_that_comes_with_the_end_is_not_lost(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = Script(last_text="!")
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello world!"
    whole = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert whole.choices[0].message.content == "Hello world!"


@pytest.mark.parametrize("text", ['"quoted"', "line\nbreak", "\x00\x1f\x7f", "é漢😀", "data: [DONE]\n\n", "\\"])
async def test_any_text_survives_the_stream(client: AsyncOpenAI, engine: ScriptedEngine, text: str) -> None:
    engine.script = Script(pieces=(text,))
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text


async def test_the_request_reaches_the_engine_as_it_was_asked(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "bob"},
            {"role": "tool", "content": "42", "tool_call_id": "call-1"},
        ],
        max_completion_tokens=5,
        temperature=1,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"17": -100},
        seed=3,
        stop=["END", "\n\n"],
        logprobs=True,
        top_logprobs=4,
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "typical_p": 0.9,
            "xtc_probability": 0.5,
            "xtc_threshold": 0.2,
            "repetition_penalty": 1.1,
            "repetition_context_size": 64,
            "banned_token_ids": [3],
            "allowed_token_ids": [4, 5],
            "bad_words": ["no"],
            "min_tokens": 1,
            "stop_token_ids": [2],
            "ignore_eos": True,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )

    request = engine.last_request
    assert request.request_id == answer.id
    assert request.model == "tiny"
    assert request.prompt == ChatPrompt(
        (
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "a\nb", "name": "bob"},
            {"role": "tool", "content": "42", "tool_call_id": "call-1"},
        ),
        {"enable_thinking": False},
    )
    assert request.sampling == SamplingParams(
        max_tokens=5,
        temperature=1.0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        typical_p=0.9,
        xtc_probability=0.5,
        xtc_threshold=0.2,
        repetition_penalty=1.1,
        repetition_context_size=64,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={17: -100.0},
        banned_token_ids=(3,),
        allowed_token_ids=(4, 5),
        bad_words=("no",),
        seed=3,
        min_tokens=1,
        stop=("END", "\n\n"),
        stop_token_ids=(2,),
        ignore_eos=True,
        logprobs=4,
    )


async def test_log_probabilities_of_a_whole_answer(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first, second = logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("Hello", -1.0, list(b"Hello"))
    assert [(other.token, other.logprob) for other in first.top_logprobs] == [("other0", -2.0), ("other1", -3.0)]
    assert second.token == " world"


async def test_log_probabilities_of_a_stream_come_with_their_text(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, stream=True)
    told = [(chunk.choices[0].delta.content, chunk.choices[0].logprobs) async for chunk in stream]
    assert [(content, logprobs is not None) for content, logprobs in told] == [
        ("", False), ("Hello", True), (" world", True), (None, False),
    ]  # fmt: skip
    assert told[1][1] is not None
    assert told[1][1].content is not None
    assert [(entry.token, entry.top_logprobs) for entry in told[1][1].content] == [("Hello", [])]


async def test_a_token_without_text_is_told_when_its_log_probability_is_asked_for(
    client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.script = Script(pieces=("", "é"))
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, stream=True)
    pieces = [chunk.choices[0] async for chunk in stream if chunk.choices[0].logprobs is not None]
    assert [piece.delta.content for piece in pieces] == ["", "é"]


@pytest.mark.parametrize("asked", [{}, {"logprobs": True, "top_logprobs": 1}])
async def test_the_bytes_with_log_probabilities_are_the_documented_ones(
    http: httpx2.AsyncClient, asked: dict[str, object]
) -> None:
    whole = await http.post("/v1/chat/completions", json={**BODY, **asked})
    ChatCompletion.model_validate_json(whole.content, strict=True)
    assert (whole.json()["choices"][0]["logprobs"] is not None) is bool(asked)
    streamed = await http.post("/v1/chat/completions", json={**BODY, **asked, "stream": True})
    for event in _events(streamed.text)[:-1]:
        ChatCompletionChunk.model_validate_json(event, strict=True)


async def test_without_parameters_everything_is_left_to_the_model(
    http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    response = await http.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 200
    assert engine.last_request.model == "tiny"
    assert engine.last_request.sampling == SamplingParams()


async def test_an_answer_of_an_assistant_can_be_sent_back_as_it_came(
    client: AsyncOpenAI, http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    turn = answer.choices[0].message.model_dump()
    response = await http.post("/v1/chat/completions", json={"messages": [*HELLO, turn, *HELLO]})

    assert response.status_code == 200
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1] == {"role": "assistant", "content": "Hello world"}


async def test_an_unknown_model_is_not_found_and_the_served_ones_are_listed(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert raised.value.code == "model_not_found"
    assert raised.value.type == "not_found_error"
    assert "'gpt-4'" in raised.value.message
    assert "tiny, org/other" in raised.value.message


async def test_without_a_default_a_request_must_name_a_model(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.models = [engine.models[1], engine.models[1]]
    response = await http.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 404
    assert "names no model and there is no default" in response.json()["error"]["message"]


async def test_the_only_model_is_the_default_one(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.models = engine.models[1:]
    await http.post("/v1/chat/completions", json={**BODY, "model": None})
    assert engine.last_request.model == "org/other"


async def test_every_problem_is_reported_at_once(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(
            model="tiny", messages=[], max_tokens=-1, temperature=9, extra_body={"temprature": 1}, n=0
        )
    error = raised.value
    details = as_object((as_object(error.body) or {})["details"]) or {}
    issues = [as_object(issue) or {} for issue in as_array(details["issues"]) or []]
    assert {issue["field"] for issue in issues} == {
        "messages", "max_tokens", "temperature", "temprature", "n",
    }  # fmt: skip
    assert error.param == issues[0]["field"]
    for expected in (
        "did you mean 'temperature'?",
        "n must be a whole number of at least 1",
        "messages must not be empty",
    ):
        assert expected in error.message


@pytest.mark.parametrize(
    ("failure", "status", "code", "kind"),
    [
        (ContextLengthExceeded("2100 > 2048", limit=2048, given=2100), 400, "context_length_exceeded",
         "invalid_request_error"),
        (Overloaded("busy", retry_after=1.2), 503, "overloaded", "overloaded_error"),
        (CircuitOpen("broken", retry_after=0.01), 503, "circuit_open", "overloaded_error"),
        (WorkerDied("gone", signal="SIGKILL", stderr_tail="secret path"), 503, "worker_died", "server_error"),
        (GenerationError("bad"), 500, "generation_failed", "server_error"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_the_engine_is_an_http_error_streamed_or_not(
    http: httpx2.AsyncClient,
    engine: ScriptedEngine,
    failure: EngineError,
    status: int,
    code: str,
    kind: str,
    stream: bool,
) -> None:
    engine.script = Script(refusal=failure)
    response = await http.post("/v1/chat/completions", json={**BODY, "stream": stream})

    assert response.status_code == status
    error = ErrorDocument.model_validate_json(response.content).error
    assert (error.code, error.type, error.message) == (code, kind, failure.message)
    assert "secret" not in response.text


async def test_an_overloaded_server_says_when_to_come_back(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = Script(refusal=Overloaded("busy", retry_after=1.2))
    response = await http.post("/v1/chat/completions", json=BODY)
    assert response.headers["retry-after"] == "2"


async def test_a_failure_in_a_stream_is_its_last_event_and_raises_in_the_client(
    client: AsyncOpenAI, http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.script = Script(failure=WorkerDied("The worker died", signal="SIGABRT"))
    received: list[str] = []

    async def read() -> None:
        async for chunk in await client.chat.completions.create(model="tiny", messages=HELLO, stream=True):
            received.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError, match="The worker died"):
        await read()
    assert "".join(received) == "Hello world"

    response = await http.post("/v1/chat/completions", json={**BODY, "stream": True})
    *_, last = _events(response.text)
    error = ErrorDocument.model_validate_json(last).error
    assert (error.code, error.details) == ("worker_died", {"signal": "SIGABRT"})
    assert "[DONE]" not in response.text


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (Script(end_silently=True), "internal_error"),
        (Script(without_stats=True), "internal_error"),
        (Script(finish=FinishReason.ABORT), "aborted"),
        (Script(failure=RuntimeError("a defect with a /secret/path")), "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_breaks_its_promise_gives_an_error_and_no_half_answer(
    http: httpx2.AsyncClient, engine: ScriptedEngine, script: Script, code: str, stream: bool
) -> None:
    engine.script = script
    response = await http.post("/v1/chat/completions", json={**BODY, "stream": stream})

    error = json.loads(_events(response.text)[-1])["error"]
    assert error["code"] == code
    assert "/secret/path" not in response.text
    assert stream or response.status_code >= 499


async def test_a_defect_at_entry_is_an_internal_error(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = Script(refusal=RuntimeError("/secret/path"))
    for stream in (False, True):
        response = await http.post("/v1/chat/completions", json={**BODY, "stream": stream})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "/secret/path" not in response.text


async def test_an_abort_by_someone_else_is_told(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = Script(failure=Aborted("The stream was aborted"))
    response = await http.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 499
    assert response.json()["error"]["code"] == "aborted"


async def test_many_streams_run_side_by_side(client: AsyncOpenAI) -> None:
    async def read() -> str:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*(read() for _ in range(20))) == ["Hello world"] * 20


async def test_the_answers_carry_the_request_id(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
    assert raw.request_id is not None
    assert (raw.parse()).id == "chatcmpl-" + raw.request_id
