"""What OpenAI's client documents of chats, with the embedded model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import httpx2
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion

from .schooled import AT_ONCE, CATS, KEYS, LONG, LOOK_UP, MODEL, PARIS, City, Verdict
from .served_process import ServedProcess


class look_up(Verdict):  # noqa: N801  the helper names the tool after its class
    """Facts about animals."""


TOOL: Any = openai.pydantic_function_tool(look_up)
OTHER: Any = {"type": "function", "function": {"name": "other", "parameters": LOOK_UP}}


@pytest_asyncio.fixture(loop_scope="session")
async def client(school: ServedProcess) -> AsyncGenerator[AsyncOpenAI]:
    async with school.openai() as opened:
        yield opened


async def _ask(client: AsyncOpenAI, **params: Any) -> ChatCompletion:
    create: Any = client.chat.completions.create
    answer = await create(**{"model": MODEL, "messages": PARIS, **params})
    assert isinstance(answer, ChatCompletion)
    return answer


# -- plain calls


async def test_an_answer_has_text_reason_usage_and_request_id(client: AsyncOpenAI) -> None:
    answer = await _ask(client)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert cast("Any", answer)._request_id
    assert json.loads(answer.to_json())["id"] == answer.to_dict()["id"] == answer.id


def test_the_synchronous_client_answers_and_streams(school: ServedProcess) -> None:
    with OpenAI(base_url=f"{school.url}/v1", api_key=KEYS["api_key"], max_retries=0) as client:
        whole = client.chat.completions.create(model=MODEL, messages=PARIS)
        with client.chat.completions.stream(model=MODEL, messages=PARIS) as stream:
            stream.until_done()
            streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content


async def test_a_developers_message_and_parts_of_text_reach_the_model(client: AsyncOpenAI) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of Germany?"}]
    messages = [{"role": "developer", "content": "You are brief."}, {"role": "user", "content": parts}]
    assert "Berlin" in ((await _ask(client, messages=messages)).choices[0].message.content or "")


async def test_max_completion_tokens_and_stop_strings_end_an_answer(client: AsyncOpenAI) -> None:
    cut = await _ask(client, max_completion_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 2)
    stopped = await _ask(client, stop=[" is", "no such text"])
    assert (stopped.choices[0].finish_reason, stopped.choices[0].message.content) == ("stop", "The capital of France")


async def test_a_seed_repeats_an_answer(client: AsyncOpenAI) -> None:
    answers = await asyncio.gather(*(_ask(client, seed=seed, temperature=1.2, max_tokens=12) for seed in (1, 1, 2)))
    first, again, other = (answer.choices[0].message.content for answer in answers)
    assert first == again != other


async def test_several_answers_to_one_prompt(client: AsyncOpenAI) -> None:
    answer = await _ask(client, n=3, temperature=1.5, seed=1, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


async def test_bias_and_penalties_change_an_answer(school: ServedProcess, client: AsyncOpenAI) -> None:
    counted = await client.with_options(base_url=school.url).post(
        "/tokenize", cast_to=httpx2.Response, body={"model": MODEL, "prompt": " Paris"}
    )
    [paris] = counted.json()["tokens"]
    banned, penalized = await asyncio.gather(
        _ask(client, logit_bias={str(paris): -100}, max_tokens=12),
        _ask(client, presence_penalty=2, frequency_penalty=2, messages=[{"role": "user", "content": "Say aaa."}]),
    )
    assert " Paris" not in (banned.choices[0].message.content or " Paris")
    assert penalized.choices[0].message.content != (await _ask(client)).choices[0].message.content


async def test_log_probabilities_are_those_of_the_tokens(client: AsyncOpenAI) -> None:
    answer = await _ask(client, logprobs=True, top_logprobs=2, max_tokens=8)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(entry.token for entry in told.content).startswith(answer.choices[0].message.content or "none")
    assert all(entry.top_logprobs[0].logprob == entry.logprob <= 0 for entry in told.content)


# -- streaming helpers


async def test_chunks_end_with_the_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=PARIS, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (last.choices, last.usage is not None) == ([], True)


async def test_the_stream_helper_tells_of_content_and_its_end(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=MODEL, messages=PARIS) as stream:
        events = [event async for event in stream]
        done = await stream.get_final_completion()
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert len(deltas) > 3
    [end] = [event.content for event in events if event.type == "content.done"]
    assert "".join(deltas) == end == done.choices[0].message.content
    assert [event.type for event in events].count("chunk") > len(deltas)


async def test_the_stream_helper_tells_of_log_probabilities(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": PARIS, "logprobs": True, "max_tokens": 4}
    async with client.chat.completions.stream(**asked) as stream:
        events: list[Any] = [event async for event in stream]
    pieces = [entry for event in events if event.type == "logprobs.content.delta" for entry in event.content]
    [done] = [event.content for event in events if event.type == "logprobs.content.done"]
    assert [entry.token for entry in pieces] == [entry.token for entry in done] == ["The", " capital", " of", " France"]


async def test_the_stream_helper_parses_an_answer(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=MODEL, messages=PARIS, response_format=City) as stream:
        [parsed] = [event.parsed async for event in stream if event.type == "content.done"]
        done = await stream.get_final_completion()
    assert isinstance(parsed, City)
    assert done.choices[0].message.parsed == parsed


async def test_the_stream_helper_tells_of_calls_and_parses_their_arguments(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model=MODEL, messages=CATS, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        events = [event async for event in stream]
        done = await stream.get_final_completion()
    pieces = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    [ended] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert isinstance(ended.parsed_arguments, look_up)
    assert json.loads("".join(pieces)) == ended.parsed_arguments.model_dump()
    assert done.choices[0].finish_reason == "tool_calls"


async def test_reasoning_is_apart_and_within_its_budget(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=PARIS,
        reasoning_effort="low",
        stream=True,
        extra_body={"reasoning_budget": 6, "min_tokens": 20},
    )
    deltas: list[Any] = [chunk.choices[0].delta async for chunk in stream]
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    said = "".join(delta.content or "" for delta in deltas)
    assert thought
    assert said
    assert "think>" not in thought + said


# -- parsed answers


async def test_an_answer_is_parsed_into_a_model(client: AsyncOpenAI) -> None:
    done = await client.chat.completions.parse(model=MODEL, messages=PARIS, response_format=City)
    assert isinstance(done.choices[0].message.parsed, City)


async def test_an_answer_is_parsed_behind_reasoning(client: AsyncOpenAI) -> None:
    done = await client.chat.completions.parse(
        model=MODEL,
        messages=PARIS,
        response_format=Verdict,
        reasoning_effort="low",
        extra_body={"reasoning_budget": 4},
    )
    assert isinstance(done.choices[0].message.parsed, Verdict)


async def test_an_answer_in_a_form_without_a_model(client: AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "what", "schema": LOOK_UP}}
    fitting, any_object = await asyncio.gather(
        _ask(client, response_format=form), _ask(client, response_format={"type": "json_object"}, max_tokens=3)
    )
    assert json.loads(fitting.choices[0].message.content or "")["what"] in ("cats", "dogs")
    assert (any_object.choices[0].message.content or "").startswith("{")


async def test_an_answer_that_is_cut_off_is_no_model(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError) as raised:
        await client.chat.completions.parse(model=MODEL, messages=PARIS, response_format=City, max_tokens=3)
    assert raised.value.completion.choices[0].finish_reason == "length"


# -- tools


async def test_a_loop_of_tools_ends_with_an_answer(client: AsyncOpenAI) -> None:
    messages: list[Any] = [*CATS]
    choice: Any = {"type": "function", "function": {"name": "look_up"}}
    done = await client.chat.completions.parse(model=MODEL, messages=messages, tools=[TOOL], tool_choice=choice)
    [call] = done.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, look_up)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (None, "tool_calls")
    messages += [done.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "15 hours a day."}]
    last = await client.chat.completions.parse(model=MODEL, messages=messages, tools=[TOOL], tool_choice="none")
    assert last.choices[0].message.content
    assert not last.choices[0].message.tool_calls


async def test_a_choice_among_tools_hides_the_others(client: AsyncOpenAI) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]}
    done = await _ask(
        client,
        tools=[TOOL, OTHER],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        parallel_tool_calls=False,
    )
    [call] = done.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "other"
    assert json.loads(call.function.arguments)["what"] in ("cats", "dogs")


# -- raw responses, time limits, leaving


async def test_raw_responses_have_the_headers(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=PARIS, max_tokens=2)
    assert raw.headers["x-request-id"] == raw.request_id
    assert float(raw.headers["openai-processing-ms"]) > 0
    assert raw.parse().choices[0].message.content == "The capital"
    assert raw.retries_taken == 0


async def test_streaming_responses_are_read_line_by_line(client: AsyncOpenAI) -> None:
    async with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=PARIS, max_tokens=2, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


async def test_a_time_limit_of_the_client_ends_the_work(school: ServedProcess, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.5).chat.completions.create(model=MODEL, messages=PARIS, **LONG)
    await school.healthy_when(lambda report: report["active_streams"] == 0)


async def test_closing_a_stream_and_cancelling_a_call_end_the_work(school: ServedProcess, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=PARIS, stream=True, **LONG)
    async for _ in stream:
        break
    await stream.close()
    whole = asyncio.create_task(_ask(client, **LONG))
    await school.healthy_when(lambda report: report["active_streams"] == 1)
    whole.cancel()
    await asyncio.wait([whole])
    await school.healthy_when(lambda report: report["active_streams"] == 0)


# -- completions, models


async def test_completions_go_on_with_a_text(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 3}
    create: Any = client.completions.create
    whole = await create(**asked, logprobs=1)
    assert whole.choices[0].text.startswith(" Paris")
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.text_offset == [0, 6, 7]
    streamed = [chunk.choices[0].text async for chunk in await create(**asked, stream=True)]
    assert "".join(streamed) == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="echo"):
        await create(**asked, echo=True)


async def test_models_are_listed_and_told_of(client: AsyncOpenAI) -> None:
    page = await client.models.list()
    assert [model.id for model in page.data] == [MODEL]
    assert not page.has_next_page()
    assert (await client.models.retrieve(MODEL)).object == "model"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody's")


# -- errors and what is tried again


@pytest.mark.parametrize(
    ("params", "error", "param"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, openai.BadRequestError, "messages"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "response_format.json_schema"),
        ({"tools": [OTHER], "tool_choice": "always"}, openai.BadRequestError, "tool_choice"),
        ({"model": "gpt-5"}, openai.NotFoundError, None),
    ],
)
async def test_errors_are_typed_and_name_what_is_wrong(
    client: AsyncOpenAI, params: dict[str, Any], error: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as raised:
        await _ask(client.with_options(max_retries=3), **params)
    assert raised.value.param == param
    assert raised.value.request_id


async def test_keys_decide_who_may(school: ServedProcess) -> None:
    async with school.openai("nobody's") as nobody, school.openai("stranger") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await nobody.models.list()
        assert (await stranger.models.list()).data == []
        with pytest.raises(openai.PermissionDeniedError):
            await _ask(stranger)


async def test_a_spent_rate_is_told_with_the_time_to_wait(school: ServedProcess) -> None:
    async with school.openai("hasty") as client:
        first = await client.chat.completions.with_raw_response.create(model=MODEL, messages=PARIS, max_tokens=1)
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as raised:
            await _ask(client)
    assert raised.value.code == "rate_limit_exceeded"
    assert 0 < int(raised.value.response.headers["retry-after"]) <= 60


async def test_what_was_refused_for_now_is_tried_again(school: ServedProcess) -> None:
    """The client waits as long as it was told, while the one that is in its way ends."""
    async with school.openai("single") as client:
        stream = await client.chat.completions.create(model=MODEL, messages=PARIS, stream=True, **LONG)
        with pytest.raises(openai.RateLimitError):
            await _ask(client)
        patient: Any = client.with_options(max_retries=5).chat.completions.with_raw_response
        again = asyncio.create_task(patient.create(model=MODEL, messages=PARIS, max_tokens=1, user="patient"))
        await school.logged("request", user="patient", status=429)
        await stream.close()
        assert (await again).retries_taken > 0


async def test_a_server_that_is_full_says_so_and_is_asked_again(school: ServedProcess, client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": PARIS, "stream": True, **LONG}
    create: Any = client.chat.completions.create
    streams = await asyncio.gather(*(create(**asked) for _ in range(AT_ONCE)))
    with pytest.raises(openai.InternalServerError) as raised:
        await _ask(client)
    assert (raised.value.status_code, raised.value.code) == (503, "overloaded")
    assert int(raised.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        await stream.close()
    assert (await _ask(client.with_options(max_retries=5), max_tokens=1)).choices


async def test_a_server_that_is_not_there_is_no_answer() -> None:
    async with AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=1) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()
