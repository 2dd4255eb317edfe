"""Anthropic's own client against a real server with a scripted engine."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import anthropic
import httpx2
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from anthropic.types import Message, MessageParam, ToolParam

from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    FinishReason,
    SamplingParams,
    Structure,
    ToolCallDelta,
    ToolChoice,
)
from mlx_serving.errors import (
    ContextLengthExceeded,
    EngineError,
    GenerationError,
    Overloaded,
    RequestCrashedWorker,
    WorkerDied,
)
from mlx_serving.server.anthropic.documents import AnthropicErrorDocument, MessageDocument
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.settings import ServerSettings

from ..conftest import in_process
from ..scripted_engine import PROMPT_TOKENS, Script, ScriptedEngine

HELLO: list[MessageParam] = [{"role": "user", "content": "Hi"}]
BODY: dict[str, Any] = {"model": "tiny", "max_tokens": 64, "messages": HELLO}
WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather at a place",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
THOUGHT = Script(pieces=(Delta("", reasoning="Let me "), Delta("", reasoning="think."), "The ", "answer"))
CALLED = Script(
    pieces=(
        Delta("Looking."),
        Delta("", tool_calls=(ToolCallDelta(0, "call-1", "weather"),)),
        Delta("", tool_calls=(ToolCallDelta(0, arguments='{"city": '),)),
        Delta("", tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta("", tool_calls=(ToolCallDelta(1, "call-2", "weather", '{"city": "Rome"}'),)),
    ),
    finish=FinishReason.TOOL_CALLS,
)


@pytest_asyncio.fixture(loop_scope="session")
async def claude(address: ListenAddress, engine: ScriptedEngine) -> AsyncGenerator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=address.url, api_key="unused", max_retries=0) as opened:
        yield opened


def _events(text: str) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    for block in text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def _refusal(http: httpx2.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await http.post("/v1/messages", json=BODY | fields)
    assert response.status_code == 400, response.text
    document = response.json()
    AnthropicErrorDocument.model_validate(document)
    assert document["error"]["type"] == "invalid_request_error"
    return document["error"]


# -- answers


async def test_a_salt_reaches_the_engine(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    for extra in ({"cache_salt": "tenant"}, {}):
        await claude.messages.create(
            model="tiny", max_tokens=5, messages=[{"role": "user", "content": "Hi"}], extra_body=extra
        )
    assert [run.request.cache_salt for run in engine.runs] == ["tenant", ""]


async def test_a_whole_message(claude: AsyncAnthropic) -> None:
    message = await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO)
    assert message.id.startswith("msg_")
    assert [block.model_dump(exclude_none=True) for block in message.content] == [
        {"type": "text", "text": "Hello world"}
    ]
    assert (message.role, message.model, message.stop_reason, message.stop_sequence) == (
        "assistant",
        "tiny",
        "end_turn",
        None,
    )
    assert (message.usage.input_tokens, message.usage.output_tokens) == (PROMPT_TOKENS, 2)
    assert (message.usage.cache_read_input_tokens, message.usage.cache_creation_input_tokens) == (0, 0)


async def test_what_was_kept_of_the_prompt_is_read_from_the_cache(
    claude: AsyncAnthropic, engine: ScriptedEngine
) -> None:
    engine.script = Script(cached_tokens=2)
    message = await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (PROMPT_TOKENS - 2, 2)


async def test_the_answer_is_the_documented_one(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    for script in (Script(), THOUGHT, CALLED):
        engine.script = script
        response = await http.post("/v1/messages", json=BODY | {"thinking": {"type": "adaptive"}})
        MessageDocument.model_validate_json(response.content, strict=True)


async def test_the_request_id_is_a_header(claude: AsyncAnthropic) -> None:
    response = await claude.messages.with_raw_response.create(model="tiny", max_tokens=64, messages=HELLO)
    assert response.request_id == response.headers["request-id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("finish", "stop", "reason"),
    [
        (FinishReason.STOP, None, "end_turn"),
        (FinishReason.LENGTH, None, "max_tokens"),
        (FinishReason.STOP, "END", "stop_sequence"),
        (FinishReason.TOOL_CALLS, None, "tool_use"),
    ],
)
async def test_why_it_stopped(
    claude: AsyncAnthropic, engine: ScriptedEngine, finish: FinishReason, stop: str | None, reason: str
) -> None:
    engine.script = Script(finish=finish, stop=stop)
    message = await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO, stop_sequences=["END", "X"])
    async with claude.messages.stream(model="tiny", max_tokens=64, messages=HELLO) as stream:
        streamed = await stream.get_final_message()
    assert (message.stop_reason, message.stop_sequence) == (reason, stop)
    assert (streamed.stop_reason, streamed.stop_sequence) == (reason, stop)


async def test_an_answer_of_nothing_has_no_blocks(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    engine.script = Script(pieces=("",))
    assert (await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO)).content == []


async def test_the_events_of_a_stream_come_in_the_documented_order(
    http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.script = THOUGHT
    body = BODY | {"stream": True, "max_tokens": 4096, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    response = await http.post("/v1/messages", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = _events(response.text)
    assert [name for name, _ in events] == [
        "message_start", "ping",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_delta",
        "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert all(name == data["type"] for name, data in events)
    assert [data["index"] for _, data in events if "index" in data] == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert events[5][1]["delta"] == {"type": "signature_delta", "signature": ""}
    assert events[-2][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2][1]["usage"]["output_tokens"] == 4


async def test_the_stream_helper_assembles_the_message(claude: AsyncAnthropic) -> None:
    async with claude.messages.stream(model="tiny", max_tokens=64, messages=HELLO) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert texts == ["Hello", " world"]
    assert message.usage.input_tokens == PROMPT_TOKENS
    assert message.usage.output_tokens == 2


async def test_thinking_is_shown_to_those_who_asked_for_it(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    engine.script = THOUGHT
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 4096, "messages": HELLO}
    enabled: Any = {"type": "enabled", "budget_tokens": 1024}
    whole = cast("Message", await claude.messages.create(**asked, thinking=enabled))
    async with claude.messages.stream(**asked, thinking={"type": "adaptive"}) as stream:
        streamed = await stream.get_final_message()
    told: list[Message] = [whole, streamed]
    for message in told:
        thought, said = message.content
        assert thought.type == "thinking"
        assert said.type == "text"
        assert (thought.thinking, thought.signature, said.text) == ("Let me think.", "", "The answer")

    hidden: list[Message] = [
        await claude.messages.create(**asked),
        await claude.messages.create(**asked, thinking={"type": "disabled"}),
        await claude.messages.create(**asked, thinking={"type": "adaptive", "display": "omitted"}),
    ]
    assert [[block.type for block in message.content] for message in hidden] == [["text"]] * 3


async def test_calls_of_tools_are_blocks_with_their_input(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    engine.script = CALLED
    whole = await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO, tools=[WEATHER])
    async with claude.messages.stream(model="tiny", max_tokens=64, messages=HELLO, tools=[WEATHER]) as stream:
        pieces = [event.partial_json async for event in stream if event.type == "input_json"]
        streamed = await stream.get_final_message()
    assert pieces == ['{"city": ', '"Oslo"}', '{"city": "Rome"}']
    for message in (whole, streamed):
        text, *calls = message.content
        assert text.type == "text"
        told = [(call.id, call.name, call.input) for call in calls if call.type == "tool_use"]
        assert told == [("call-1", "weather", {"city": "Oslo"}), ("call-2", "weather", {"city": "Rome"})]
        assert message.stop_reason == "tool_use"


async def test_half_an_input_is_none(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    engine.script = Script(
        pieces=(Delta("", tool_calls=(ToolCallDelta(0, "c", "weather", '{"ci'),)),), finish=FinishReason.LENGTH
    )
    message = await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO, tools=[WEATHER])
    assert message.content[0].type == "tool_use"
    assert message.content[0].input == {}
    assert message.stop_reason == "max_tokens"


async def test_the_tool_runner_calls_the_tool_and_goes_on(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather at a place."""
        return f"Rain in {city}"

    engine.scripts = [CALLED, Script(pieces=("It rains.",))]
    runner = claude.beta.messages.tool_runner(model="tiny", max_tokens=64, messages=HELLO, tools=[weather])  # pyright: ignore[reportArgumentType]  the alias hides the model's type
    last = await runner.until_done()
    assert last.content[0].type == "text"
    assert last.content[0].text == "It rains."
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1:] == (
        {
            "role": "assistant",
            "content": "Looking.",
            "tool_calls": [
                {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}},
                {"id": "call-2", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": "Rain in Oslo", "name": "weather"},
        {"role": "tool", "tool_call_id": "call-2", "content": "Rain in Rome", "name": "weather"},
    )


# -- requests


async def test_the_request_reaches_the_engine_as_it_was_asked(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    await claude.messages.create(
        model="tiny",
        max_tokens=4096,
        system=[
            {"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "and kind"},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm", "signature": ""}, {"type": "text", "text": "c"}],
            },
            {"role": "user", "content": "d"},
        ],
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5},
        stop_sequences=["END"],
        metadata={"user_id": "bob"},
        service_tier="standard_only",
        thinking={"type": "enabled", "budget_tokens": 2000},
        tools=[{**WEATHER, "strict": True}],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"},
    )
    request = engine.last_request
    assert request.sampling == SamplingParams(max_tokens=4096, temperature=0.5, top_p=0.9, top_k=5, stop=("END",))
    assert request.parse_output
    assert request.caller == "bob"
    assert request.reasoning_budget == 2000
    assert request.tool_choice == ToolChoice("required", "weather", parallel=False)
    assert request.structure == Structure("json_schema", {"type": "object"})
    prompt = request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == (
        {"role": "system", "content": "Be brief\nand kind"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c", "reasoning_content": "Hm"},
        {"role": "user", "content": "d"},
    )
    assert prompt.tools == (
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": WEATHER.get("description"),
                "parameters": WEATHER["input_schema"],
                "strict": True,
            },
        },
    )
    assert prompt.template_kwargs == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}


async def test_a_model_thinks_only_when_asked_to(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO)
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.template_kwargs["enable_thinking"] is False
    assert engine.last_request.reasoning_budget is None


async def test_results_of_tools_stand_before_what_the_user_says(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    await claude.messages.create(
        model="tiny",
        max_tokens=64,
        messages=[
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "No such city", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "t2"},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
        tools=[WEATHER],
        tool_choice={"type": "any"},
    )
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[2:] == (
        {"role": "tool", "tool_call_id": "t1", "content": "Error: No such city", "name": "weather"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {"role": "user", "content": "Well?"},
    )
    assert engine.last_request.tool_choice == ToolChoice("required")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        "messages[0].content[0]",
        "text, image, tool",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
        "messages[0].content[0].source",
        "base64, url",
    ),
    ({"messages": [{"role": "assistant", "content": [IMAGE]}, *HELLO]}, "messages[0].content[0]", "thinking"),
    ({"system": [IMAGE]}, "system[0]", "of the type text"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "{"}]}, "messages[1].role", "answers cannot be begun"),
    ({"messages": []}, "messages", "must not be empty"),
    ({"messages": [{"role": "robot", "content": ""}]}, "messages[0]", "role"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": None}, "max_tokens", "an integer"),
    ({"temperature": 3}, "temperature", "at most 2"),
    ({"stop_sequences": [""]}, "stop_sequences[0]", "1 to 256 characters"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens", "less than max_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens", "at least 1024"),
    ({"thinking": {"type": "between_tools"}}, "thinking", "enabled, adaptive, disabled"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type", "custom"),
    ({"tools": [WEATHER, WEATHER]}, "tools", "more than once"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "there are no tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice", "none of the tools"),
    ({"container": "c"}, "container", "not supported"),
    ({"mcp_servers": [{}]}, "mcp_servers", "not supported"),
    ({"max_token": 5}, "max_token", "max_tokens"),
    ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading", "not supported"),
    ({"tools": [{**WEATHER, "colour": 1}]}, "tools[0].colour", "not a parameter"),
]


@pytest.mark.parametrize(("fields", "field", "named"), REFUSALS)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx2.AsyncClient, fields: dict[str, object], field: str, named: str
) -> None:
    error = await _refusal(http, **fields)
    [issue, *_] = [each for each in error["details"]["issues"] if each["field"] == field]
    assert named in issue["message"]


async def test_nested_schemas_have_a_limit(http: httpx2.AsyncClient) -> None:
    schema: dict[str, object] = {"type": "object"}
    for _ in range(70):
        schema = {"properties": {"a": schema}}
    error = await _refusal(http, tools=[{"name": "t", "input_schema": schema}])
    assert "nested" in error["message"]


# -- counting


async def test_tokens_are_counted_by_the_engine(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    counted = await claude.messages.count_tokens(model="tiny", messages=HELLO, system="Be brief", tools=[WEATHER])
    assert counted.input_tokens == 3
    [(model, prompt, _)] = engine.tokenized
    assert isinstance(prompt, ChatPrompt)
    assert model == "tiny"
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert len(prompt.tools) == 1


async def test_what_only_a_generation_has_is_refused_when_counting(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/messages/count_tokens", json=BODY)
    assert response.status_code == 400
    assert "max_tokens" in response.json()["error"]["message"]


# -- errors


@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (ContextLengthExceeded("too long", field="prompt"), anthropic.BadRequestError, "invalid_request_error"),
        (Overloaded("busy", retry_after=2.5), anthropic.InternalServerError, "overloaded_error"),
        (GenerationError("broken"), anthropic.InternalServerError, "api_error"),
        (WorkerDied("gone"), anthropic.InternalServerError, "api_error"),
    ],
)
async def test_errors_are_anthropics(
    claude: AsyncAnthropic,
    engine: ScriptedEngine,
    error: EngineError,
    raised: type[anthropic.APIStatusError],
    kind: str,
) -> None:
    engine.script = Script(refusal=error)
    with pytest.raises(raised) as caught:
        await claude.messages.create(model="tiny", max_tokens=64, messages=HELLO)
    document = caught.value.response.json()
    AnthropicErrorDocument.model_validate(document)
    assert document["error"]["type"] == kind
    assert document["request_id"] == caught.value.response.headers["request-id"]


async def test_an_error_in_a_stream_is_its_last_event(claude: AsyncAnthropic, engine: ScriptedEngine) -> None:
    engine.script = Script(failure=GenerationError("broken"))
    with pytest.raises(anthropic.APIStatusError, match="broken"):
        async with claude.messages.stream(model="tiny", max_tokens=64, messages=HELLO) as stream:
            await stream.get_final_message()


async def test_a_defect_in_a_stream_tells_no_more_than_that(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = Script(failure=ValueError("secret"))
    name, data = _events((await http.post("/v1/messages", json=BODY | {"stream": True})).text)[-1]
    assert (name, data["error"]["type"]) == ("error", "api_error")
    assert "secret" not in json.dumps(data)


async def test_the_client_asks_again_when_that_may_help(address: ListenAddress, engine: ScriptedEngine) -> None:
    async with AsyncAnthropic(base_url=address.url, api_key="unused", max_retries=1) as patient:
        engine.scripts = [Script(refusal=Overloaded("busy", retry_after=0.01))]
        assert (await patient.messages.create(model="tiny", max_tokens=64, messages=HELLO)).stop_reason == "end_turn"
        assert len(engine.runs) == 2

        engine.reset()
        engine.script = Script(refusal=RequestCrashedWorker("this one kills"))
        with pytest.raises(anthropic.InternalServerError):
            await patient.messages.create(model="tiny", max_tokens=64, messages=HELLO)
        assert len(engine.runs) == 1


async def test_an_unknown_model_is_not_found(claude: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        await claude.messages.create(model="claude-9", max_tokens=64, messages=HELLO)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/messages", 405), ("POST", "/v1/messages/x", 404)])
async def test_wrong_methods_and_paths_are_refused_in_anthropics_words(
    http: httpx2.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    AnthropicErrorDocument.model_validate_json(response.content)


async def test_both_ways_to_send_a_key_are_taken() -> None:
    settings = ServerSettings(api_key="sesame", access_log=False)
    async with in_process(ScriptedEngine(), settings) as http:
        sent = [
            {"x-api-key": "sesame"},
            {"authorization": "Bearer sesame"},
            {"x-api-key": "x", "authorization": "bearer sesame"},
        ]
        accepted = [(await http.post("/v1/messages", json=BODY, headers=each)).status_code for each in sent]
        refused = await http.post("/v1/messages", json=BODY, headers={"x-api-key": "wrong"})
    assert accepted == [200, 200, 200]
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"


async def test_a_body_that_is_too_large_is_refused_in_anthropics_words() -> None:
    async with in_process(ScriptedEngine(), ServerSettings(max_body_bytes=100, access_log=False)) as http:
        response = await http.post("/v1/messages", content=b" " * 101)
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "request_too_large"
