"""Tools and reasoning from a program, with the model of `actor`, which calls tools and thinks on cue."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mlx_serving import Engine, SyncEngine, ToolCall
from mlx_serving.core.generation import ChatPrompt, FinishReason, ToolChoice
from mlx_serving.errors import InvalidRequest
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import GeneratorParams
from mlx_serving.facade.shapes import TokenChunk

from ..end_to_end import actor
from .embedding import configuration

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"what": {"enum": ["cats", "dogs"]}},
            "required": ["what"],
            "additionalProperties": False,
        },
    },
}
HELLO: list[dict[str, object]] = [{"role": "user", "content": "How do cats sleep?"}]
ASKED: dict[str, Any] = {"model": "actor", "messages": HELLO}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return actor.make(tmp_path_factory.mktemp("actor"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(model: Path) -> AsyncGenerator[Engine]:
    async with Engine(_config(model)) as opened:
        yield opened


def _config(model: Path) -> dict[str, object]:
    config: dict[str, Any] = {**configuration(model)}
    config["models"] = {"served": [{"model": str(model), "name": "actor"}]}
    return config


async def test_a_loop_of_tools_ends_with_an_answer(engine: Engine) -> None:
    first = await engine.chat({**ASKED, "tools": [TOOL]})
    assert (first.text, first.finish_reason) == ("Let me look.", FinishReason.TOOL_CALLS)
    assert first.tool_calls is not None
    [call] = first.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("look_up", {"what": "cats"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "A lot."}
    last = await engine.chat({"model": "actor", "messages": [*HELLO, first.message, result], "tools": [TOOL]})
    assert (last.text, last.tool_calls, last.reasoning) == (actor.REPORT, None, None)
    assert last.message == {"role": "assistant", "content": actor.REPORT}


async def test_what_is_thought_comes_apart(engine: Engine) -> None:
    answer = await engine.chat({**ASKED, "reasoningEffort": "low", "tools": [TOOL]})
    assert (answer.reasoning, answer.text) == ("I must look it up.", "One moment.")
    assert answer.message["reasoning_content"] == "I must look it up."
    assert await engine.generate({**ASKED, "enable_thinking": True}) == "Good day."
    raw = await engine.generate({**ASKED, "enable_thinking": True, "parse_output": False})
    assert raw.startswith("<think>A greeting")


async def test_chunks_have_pieces_of_reasoning_and_calls(engine: Engine) -> None:
    asked = {**ASKED, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": True}}
    chunks = [chunk async for chunk in engine.create_generator(asked) if isinstance(chunk, TokenChunk)]
    assert "".join(chunk.reasoning or "" for chunk in chunks) == "I must look it up."
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls or ()]
    assert (pieces[0].index, pieces[0].name) == (0, "look_up")
    assert json.loads("".join(piece.arguments for piece in pieces)) == {"what": "dogs"}
    [object_] = [chunk.to_object() for chunk in chunks if chunk.tool_calls and chunk.tool_calls[0].id]
    assert object_["toolCalls"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
async def test_a_call_can_be_forced(engine: Engine, choice: object) -> None:
    answer = await engine.chat({**ASKED, "tools": [TOOL], "toolChoice": choice, "parallelToolCalls": False})
    assert answer.text == ""
    assert answer.tool_calls is not None
    assert json.loads(answer.tool_calls[0].arguments)["what"] in ("cats", "dogs")


@pytest.mark.parametrize(
    ("given", "budget", "kwargs"),
    [
        ({}, None, {}),
        ({"reasoning_budget": 3}, 3, {}),
        ({"reasoning_effort": "none"}, None, {"enable_thinking": False, "thinking": False}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"thinking": 1}},
            2048,
            {"enable_thinking": True, "thinking": 1, "reasoning_effort": "low"},
        ),
        (
            {"reasoning_effort": "low", "reasoning_budget": 0, "enable_thinking": False},
            0,
            {"enable_thinking": False, "thinking": True, "reasoning_effort": "low"},
        ),
    ],
)
def test_how_much_may_be_thought(given: dict[str, object], budget: int | None, kwargs: dict[str, object]) -> None:
    asked = parse(GeneratorParams, {**ASKED, **given})
    assert (asked.budget, asked.to_chat().template_kwargs) == (budget, kwargs)


async def test_batches_have_the_parts_as_well(engine: Engine) -> None:
    [entry] = await engine.batch_generate([{**ASKED, "tools": [TOOL]}])
    calls = entry.unwrap().tool_calls
    assert calls is not None
    assert calls == (ToolCall(calls[0].id, "look_up", '{"what": "cats"}'),)


def test_the_engine_without_await_chats_as_well(model: Path) -> None:
    with SyncEngine(_config(model)) as engine:
        answer = engine.chat(HELLO, model="actor", tools=[TOOL])
    assert answer.tool_calls is not None


def test_arguments_reach_the_template_as_objects() -> None:
    def prompt(arguments: object) -> object:
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"arguments": arguments}}],
        }
        asked = parse(GeneratorParams, {"model": "m", "messages": [message], "tools": [{"function": {"name": "f"}}]})
        chat = asked.to_prompt()
        assert isinstance(chat, ChatPrompt)
        assert chat.tools == (
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}},
        )
        assert asked.to_tool_choice() == ToolChoice()
        assert chat.messages[0]["content"] == ""
        told: Any = chat.messages[0]["tool_calls"]
        return told[0]["function"]["arguments"]

    assert prompt('{"a": 1}') == {"a": 1}
    assert prompt("") == {}
    assert prompt({"a": 1}) == {"a": 1}
    assert prompt("[1]") == "[1]"
    assert prompt('{"a"') == '{"a"'


@pytest.mark.parametrize("calls", [[1], [{"id": "1"}], "many", [{"function": None}]])
def test_what_is_no_call_is_left_to_the_template(calls: object) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    chat = parse(GeneratorParams, {"model": "m", "messages": [message]}).to_prompt()
    assert isinstance(chat, ChatPrompt)
    assert chat.messages == (message,)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tools": [{"function": dict[str, object]()}]}, r"tools\.0\.function\.name is required"),
        ({"tools": [{"function": {"name": "f", "parameter": 1}}]}, "parameter"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": 3}, "must be 'none', 'auto', 'required' or an object"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning_budget": -1}, "reasoning_budget"),
        ({"messages": None, "prompt": "Hi", "tools": [TOOL]}, "tools is only allowed with messages"),
        ({"messages": None, "prompt": "Hi", "enable_thinking": True}, "enable_thinking is only allowed with messages"),
        (
            {"messages": None, "prompt": "Hi", "chat_template_kwargs": {"a": 1}},
            "chat_template_kwargs is only allowed with messages",
        ),
    ],
)
def test_mistakes_are_named(given: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse(GeneratorParams, {**ASKED, **given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "none of the tools"),
    ],
)
async def test_choices_that_there_are_not_are_refused(engine: Engine, given: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await engine.chat({**ASKED, **given})
