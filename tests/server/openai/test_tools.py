"""Tools and reasoning in OpenAI's words, on the way in and out."""

from __future__ import annotations

import json

import pytest

from mlx_serving.core.choices import Transcript, Usage
from mlx_serving.core.generation import ChatPrompt, Delta, FinishReason, GenerationStats, ToolCallDelta, ToolChoice
from mlx_serving.errors import InvalidRequest
from mlx_serving.server.generation import worded
from mlx_serving.server.openai.chunks import ChatAnswer, Heading
from mlx_serving.server.openai.documents import ChatCompletion, ChatCompletionChunk
from mlx_serving.server.openai.requests import parse_chat

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
STATS = GenerationStats(3, 5, 0.01, 100.0, 0.03)
DELTAS = (
    Delta("", (1,), reasoning="hm"),
    Delta("One moment.", (2,)),
    Delta("", (3,), tool_calls=(ToolCallDelta(0, "call_1", "f", '{"x"'),)),
    Delta("", (4,), tool_calls=(ToolCallDelta(0, arguments=": 1}"), ToolCallDelta(1, "call_2", "f", "{}"))),
    Delta("", (), FinishReason.TOOL_CALLS, STATS),
)


def _answer() -> ChatAnswer:
    return ChatAnswer(Heading("chatcmpl-1", 1, "tiny", "fp"), include_usage=False, logprobs=False)


def test_tools_the_choice_and_reasoning_reach_the_engine() -> None:
    asked = parse_chat(
        {
            "messages": [
                dict(USER),
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "hm",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                {"role": "tool", "content": "2", "tool_call_id": "c"},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
            "reasoning_effort": "low",
            "enable_thinking": False,
        }
    )
    [prompt] = asked.prompts
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools == (TOOL,)
    assert prompt.messages[1]["reasoning_content"] == "hm"
    assert prompt.messages[1]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert prompt.template_kwargs["enable_thinking"] is False
    assert prompt.template_kwargs["reasoning_effort"] == "low"
    assert asked.parse_output
    assert asked.tool_choice == ToolChoice("required", "f", parallel=False)
    assert asked.reasoning_budget == 2048


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [1]}, "tools[0]"),
    ],
)
def test_what_contradicts_itself_is_named(parameters: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_chat({"messages": [dict(USER)], **parameters})
    assert refusal.value.field == field


def test_a_whole_answer_has_its_reasoning_and_its_calls() -> None:
    transcript = Transcript()
    for delta in DELTAS:
        transcript.add(delta)
    body = _answer().whole([transcript.completed(FinishReason.TOOL_CALLS, STATS)], Usage(3, 5))
    [choice] = ChatCompletion.model_validate_json(body).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content == "hm"
    assert choice.message.content == "One moment."
    assert [(call.id, call.function.arguments) for call in choice.message.tool_calls or ()] == [
        ("call_1", '{"x": 1}'),
        ("call_2", "{}"),
    ]


def test_a_streamed_answer_has_them_in_pieces() -> None:
    choice = _answer().choice(0)
    events = b"".join(worded(choice, delta) for delta in DELTAS).decode().strip().split("\n\n")
    documents = [json.loads(event.removeprefix("data: ")) for event in events]
    for document in documents:
        ChatCompletionChunk.model_validate(document)
    deltas = [document["choices"][0]["delta"] for document in documents]
    assert deltas[0] == {"reasoning_content": "hm"}
    assert deltas[2]["tool_calls"] == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x"'}}
    ]
    assert deltas[3]["tool_calls"][0] == {"index": 0, "function": {"arguments": ": 1}"}}
    assert documents[-1]["choices"][0]["finish_reason"] == "tool_calls"
