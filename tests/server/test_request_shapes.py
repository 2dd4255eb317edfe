"""Shapes of requests that agents and frameworks send, beside the plain ones: all are served."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from mlx_serving.core.generation import ChatPrompt

from .scripted_engine import ScriptedEngine

USER: dict[str, Any] = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"what":"cats"}'}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
ANSWERED = {"role": "tool", "tool_call_id": "c1", "content": "x"}
USE: dict[str, Any] = {"type": "tool_use", "id": "t1", "name": "look_up", "input": {}}
EPHEMERAL = {"type": "ephemeral"}
NOTHING: dict[str, Any] = dict.fromkeys(
    (
        "temperature", "top_p", "stop", "tools", "tool_choice", "n", "logprobs", "top_logprobs", "response_format",
        "stream_options", "user", "seed", "logit_bias", "max_tokens", "max_completion_tokens", "metadata", "store",
        "service_tier", "parallel_tool_calls", "functions", "function_call", "audio", "modalities", "prediction",
        "reasoning_effort", "verbosity", "web_search_options", "prompt_cache_key", "safety_identifier",
    )
)  # fmt: skip

CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    {"messages": [{"role": "developer", "content": "be"}, USER]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "be", "cache_control": EPHEMERAL}]}, USER]},
    {"tools": [TOOL], "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, ANSWERED]},
    {"tools": [TOOL], "messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, "index": 0}]}, ANSWERED]},
    {"tools": [TOOL], "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                                   {**ANSWERED, "name": "look_up", "content": [{"type": "text", "text": "x"}]}]},
    {"messages": [USER, {"role": "assistant", "content": "a", "tool_calls": [], "refusal": None, "audio": None,
                         "annotations": [], "function_call": None}, USER]},
    {"messages": [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER]},
    {"messages": [USER, {"role": "assistant", "content": "a", "reasoning_content": "t"}, USER]},
    {"messages": [{**USER, "name": "ann"}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"tools": []},
    {"tools": [], "tool_choice": "auto"},
    {"tools": [], "tool_choice": "none"},
    {"tool_choice": "auto", "parallel_tool_calls": True},
    {"tools": [{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}]},
    {"stop": "x"},
    {"stop": ["x", "y"]},
    {"stop": []},
    {"max_completion_tokens": 5},
    {"max_completion_tokens": 5, "max_tokens": 5},
    {"stream": True, "n": 2},
    {"stream": True, "n": 2, "stream_options": {"include_usage": True}},
    {"stream": False, "stream_options": None},
    {"temperature": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0},
    {"response_format": {"type": "text"}},
    {"model": ""},
    NOTHING,
]  # fmt: skip


@pytest.mark.parametrize("fields", CHATS)
async def test_chats(http: httpx2.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await http.post("/v1/chat/completions", json={"model": "tiny", "messages": [USER], **fields})
    assert answer.status_code == 200, answer.text


async def test_what_was_refused_before_is_said_again(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    await http.post("/v1/chat/completions", json={"model": "tiny", "messages": [USER, refusal, USER]})
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1] == {"role": "assistant", "content": "no"}
    wrong = {**refusal, "role": "user"}
    refused = await http.post("/v1/chat/completions", json={"model": "tiny", "messages": [wrong]})
    assert refused.json()["error"]["param"] == "messages[0].content[0].type"


MESSAGES: list[dict[str, Any]] = [
    {"system": [{"type": "text", "text": "a", "cache_control": EPHEMERAL},
                {"type": "text", "text": "b", "cache_control": {**EPHEMERAL, "ttl": "1h"}}]},
    {"system": ""},
    {"system": []},
    {"messages": [USER, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "a"}]}, USER]},
    {"messages": [USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}], "is_error": True},
        {"type": "text", "text": "and?", "cache_control": EPHEMERAL}]}]},
    {"messages": [USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1"}]}]},
    {"messages": [USER, {"role": "assistant", "content": []}, USER]},
    {"messages": [USER, USER]},
    {"messages": [USER, {"role": "system", "content": "be"}, USER]},
    {"metadata": {"user_id": "ann"}},
    {"tools": []},
    {"tools": [{"name": "f", "input_schema": {"type": "object"}, "type": "custom", "cache_control": EPHEMERAL}]},
    {"stop_sequences": []},
    {"temperature": 1, "top_k": 0},
    {"thinking": {"type": "adaptive"}},
    {"thinking": {"type": "disabled"}},
    {"output_config": {"effort": "medium"}},
    {"service_tier": "standard_only"},
    {"max_tokens": 1_000_000},
    dict.fromkeys(("system", "stop_sequences", "temperature", "top_p", "tools", "tool_choice", "thinking", "metadata")),
]  # fmt: skip


@pytest.mark.parametrize("fields", MESSAGES)
async def test_messages(http: httpx2.AsyncClient, fields: dict[str, Any]) -> None:
    headers = {"anthropic-beta": "one,two", "anthropic-version": "2023-06-01", "x-api-key": "unused"}
    body = {"model": "tiny", "max_tokens": 32_000, "messages": [USER], **fields}
    answer = await http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert answer.status_code == 200, answer.text


RESPONSES: list[dict[str, Any]] = [
    {"store": False},
    {"instructions": "be"},
    {"input": [{"role": "developer", "content": "be"}, {"role": "user", "content": [
        {"type": "input_text", "text": "hi"}]}]},
    {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "tools": [{"type": "function", "name": "shell", "description": "d", "strict": False,
                   "parameters": {"type": "object", "properties": {}}}],
        "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False, "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
    },
    dict.fromkeys(("instructions", "temperature", "tools", "metadata", "previous_response_id", "reasoning", "text",
                   "include", "truncation", "service_tier", "user", "max_output_tokens", "tool_choice")),
]  # fmt: skip


@pytest.mark.parametrize("fields", RESPONSES)
async def test_responses(http: httpx2.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await http.post("/v1/responses", json={"model": "tiny", "input": "hi", **fields})
    assert answer.status_code == 200, answer.text
