"""Reasoning and calls of a random model, made to write them by structures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlx_serving.core.grammar.tool_grammar import FORCIBLE

from .. import tiny_models
from .driver import WorkerProcess

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} <tool_call> {% endif %}{% for message in messages %}{{ message['role'] + ':' + "
    "message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% if enable_thinking %}"
    "{{ '<think>' }}{% elif enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
TOOLS: list[dict[str, Any]] = [
    {
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
]
MIXED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["cat", "small dog"]},
        "name": {"type": "string", "minLength": 1, "maxLength": 4},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 99}, "maxItems": 2},
    },
    "required": ["kind", "name", "ages"],
    "additionalProperties": False,
}
MIXED_TOOLS = [{"type": "function", "function": {"name": "note", "parameters": MIXED}}]
MESSAGES = [{"role": "user", "content": "Hi"}]
# Where the prompt has ended the reasoning already, the structure is all that is written, more reasoning included.
ANSWER = (
    "<think>I look.</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "look_up", "arguments": {"what": "cats"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "look_up", "arguments": {"what": "dogs"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_llama(tmp_path_factory.mktemp("caller"), chat_template=TEMPLATE, context_length=1024)


@pytest.fixture(scope="module")
def tool_worker(cache: Path, caller: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess.by_hand(cache) as process:
        process.call("load_model", model_id=str(caller))
        yield process


@pytest.fixture
def worker(tool_worker: WorkerProcess) -> WorkerProcess:
    tool_worker.forget()
    return tool_worker


def ask(worker: WorkerProcess, caller: Path, answer: str | None = ANSWER, **params: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"messages": MESSAGES, "tools": TOOLS, "parse_output": True, "max_tokens": 300, "seed": 1}
    if answer is not None:
        given["guidance"] = {"mode": "choice", "schema": [answer]}
    given["template_kwargs"] = {"enable_thinking": answer is None}
    return list(worker.notifications(worker.generate(model_id=str(caller), **{**given, **params})))


def said(events: list[dict[str, Any]], key: str = "token") -> str:
    return "".join(event.get(key, "") for event in events)


def calls(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    found: dict[int, list[str]] = {}
    for event in events:
        for piece in event.get("tool_calls", ()):
            call = found.setdefault(piece["index"], [piece["id"], piece["name"], ""])
            call[2] += piece["arguments"]
    return [(call[0], call[1], call[2]) for _, call in sorted(found.items())]


def test_reasoning_text_and_calls_come_apart(worker: WorkerProcess, caller: Path) -> None:
    events = ask(worker, caller)
    assert said(events, "reasoning") == "I look."
    assert said(events) == "One moment."
    assert [(name, json.loads(arguments)) for _, name, arguments in calls(events)] == [
        ("look_up", {"what": "cats"}),
        ("look_up", {"what": "dogs"}),
    ]
    assert events[-1]["finish_reason"] == "tool_calls"


def test_arguments_come_while_they_are_written(worker: WorkerProcess, caller: Path) -> None:
    pieces = [piece for event in ask(worker, caller) for piece in event.get("tool_calls", ()) if piece["index"] == 0]
    assert len(pieces) > 5


@pytest.mark.parametrize("count", [3, 20, 60, 90, 120])
def test_an_answer_goes_on_where_it_was(worker: WorkerProcess, caller: Path, count: int) -> None:
    whole = ask(worker, caller)
    tokens = [event["token_id"] for event in whole if "token_id" in event]
    rest = ask(worker, caller, delivered=tokens[:count])
    begun = [event for event in whole if "token_id" in event][:count]
    for key in ("token", "reasoning"):
        assert said(begun, key) + said(rest, key) == said(whole, key)
    assert calls([*begun, *rest]) == calls(whole)


def test_one_call_is_enough_where_no_more_are_wanted(worker: WorkerProcess, caller: Path) -> None:
    events = ask(worker, caller, parallel_tool_calls=False)
    assert len(calls(events)) == 1
    assert events[-1]["finish_reason"] == "tool_calls"


def test_without_tools_calls_are_text(worker: WorkerProcess, caller: Path) -> None:
    events = ask(worker, caller, tool_choice="none")
    assert "<tool_call>" in said(events)
    assert said(events, "reasoning") == "I look."
    assert events[-1]["finish_reason"] == "stop"


def test_what_is_not_parsed_is_text(worker: WorkerProcess, caller: Path) -> None:
    assert said(ask(worker, caller, parse_output=False)) == ANSWER


@pytest.mark.parametrize("params", [{"tool_choice": "required"}, {"named_tool": "look_up"}])
def test_a_call_can_be_forced(worker: WorkerProcess, caller: Path, params: dict[str, Any]) -> None:
    for seed in range(3):
        sampling = {"temperature": 1.0, "seed": seed, "reasoning_budget": 5}
        events = ask(worker, caller, None, parallel_tool_calls=False, **sampling, **params)
        [(_, name, arguments)] = calls(events)
        assert name == "look_up"
        assert json.loads(arguments)["what"] in ("cats", "dogs")
        assert events[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("style", [style for style in FORCIBLE if style != "harmony"])
def test_calls_of_every_style_can_be_forced_and_are_read(worker: WorkerProcess, caller: Path, style: str) -> None:
    worker.call("unload_model", model_id=str(caller))
    worker.call("load_model", model_id=str(caller), tool_parser=style)
    asked: list[dict[str, Any]] = [{"reasoning_budget": 3}, {"template_kwargs": {}}]
    for params in asked:
        sampling = {"temperature": 1.0, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 500}
        events = ask(worker, caller, None, tools=MIXED_TOOLS, **sampling, **params)
        [(_, name, arguments)] = calls(events)
        assert name == "note"
        jsonschema.validate(json.loads(arguments), MIXED)
        assert events[-1]["finish_reason"] == "tool_calls"
    worker.call("unload_model", model_id=str(caller))
    worker.call("load_model", model_id=str(caller))


def test_reasoning_ends_with_its_budget(worker: WorkerProcess, caller: Path) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40, "reasoning_budget": 5, "ignore_eos": True}
    events = ask(worker, caller, None, **params)
    tokens = [event["token_id"] for event in events if "token_id" in event]
    assert tokens[5:13] == tiny_models.token_ids("</think>")
    rest = ask(worker, caller, None, delivered=tokens[:9], **params)
    assert [event["token_id"] for event in rest if "token_id" in event] == tokens[9:]


SCHEMA = TOOLS[0]["function"]["parameters"]


@pytest.mark.parametrize("thinking", [True, None])
def test_a_form_holds_behind_the_reasoning(worker: WorkerProcess, caller: Path, thinking: bool | None) -> None:
    """The model may think where the prompt leaves it open, and does where that has begun it."""
    thoughts: list[str] = []
    for seed in range(4):
        events = ask(
            worker,
            caller,
            None,
            tools=[],
            guidance={"mode": "json_schema", "schema": SCHEMA},
            template_kwargs={} if thinking is None else {"enable_thinking": thinking},
            reasoning_budget=12,
            temperature=1.0,
            seed=seed,
        )
        assert json.loads(said(events)) in ({"what": "cats"}, {"what": "dogs"})
        assert events[-1]["finish_reason"] == "stop"
        thoughts.append(said(events, "reasoning"))
    assert all(thoughts) is bool(thinking)


@pytest.mark.parametrize("budget", [0, 7, None])
def test_reasoning_before_a_form_has_its_budget_and_goes_on_where_it_was(
    worker: WorkerProcess, caller: Path, budget: int | None
) -> None:
    params: dict[str, Any] = {
        "tools": [],
        "guidance": {"mode": "json_schema", "schema": SCHEMA},
        "reasoning_budget": budget,
        "temperature": 1.0,
        "max_tokens": 60,
    }
    whole = ask(worker, caller, None, **params)
    tokens = [event["token_id"] for event in whole if "token_id" in event]
    end = tiny_models.token_ids("</think>")
    if budget is None:  # nothing ends it: not even the end of the turn, which is none before the form
        assert len(tokens) == 60
        assert (said(whole), whole[-1]["finish_reason"]) == ("", "length")
    else:
        # A character may have to be completed first.
        assert end in [tokens[start : start + len(end)] for start in range(budget, budget + 4)]
        assert json.loads(said(whole)) in ({"what": "cats"}, {"what": "dogs"})
    for cut in (1, 9, 12, len(tokens) - 2):
        rest = ask(worker, caller, None, delivered=tokens[:cut], **params)
        assert [event["token_id"] for event in rest if "token_id" in event] == tokens[cut:]
        assert rest[-1]["finish_reason"] == whole[-1]["finish_reason"]


def test_a_form_is_all_of_an_answer_that_is_not_taken_apart(worker: WorkerProcess, caller: Path) -> None:
    params: dict[str, Any] = {"tools": [], "guidance": {"mode": "json_schema", "schema": SCHEMA}, "reasoning_budget": 5}
    text = said(ask(worker, caller, None, parse_output=False, **params))
    assert json.loads(text) in ({"what": "cats"}, {"what": "dogs"})


def test_with_tools_an_answer_has_the_form_or_is_a_call(worker: WorkerProcess, caller: Path) -> None:
    color = {"type": "object", "properties": {"color": {"enum": ["red", "<tool_call>"]}}, "required": ["color"]}
    form = {"mode": "json_schema", "schema": {**color, "additionalProperties": False}}
    ends: set[str] = set()
    for seed in range(8):
        params: dict[str, Any] = {"temperature": 1.0, "seed": seed, "reasoning_budget": 3}
        events = ask(worker, caller, None, guidance=form, parallel_tool_calls=False, **params)
        ends.add(events[-1]["finish_reason"])
        called = [(name, json.loads(arguments)) for _, name, arguments in calls(events)]
        if called:
            assert said(events) == ""
            assert {name for name, _ in called} == {"look_up"}
            assert all(arguments["what"] in ("cats", "dogs") for _, arguments in called)
        else:
            assert json.loads(said(events))["color"] in ("red", "<tool_call>")
    assert ends == {"stop", "tool_calls"}


def test_where_a_call_could_not_be_told_from_a_form_there_is_none(worker: WorkerProcess, caller: Path) -> None:
    worker.call("unload_model", model_id=str(caller))
    worker.call("load_model", model_id=str(caller), tool_parser="llama")
    call = {"name": "look_up", "parameters": {"what": "cats"}}
    events = ask(worker, caller, None, guidance={"mode": "json_schema", "schema": {"const": call}}, reasoning_budget=1)
    assert (json.loads(said(events)), calls(events), events[-1]["finish_reason"]) == (call, [], "stop")
    worker.call("unload_model", model_id=str(caller))
    worker.call("load_model", model_id=str(caller))


def test_whose_schema_cannot_be_followed_is_told(worker: WorkerProcess, caller: Path) -> None:
    cannot = {"type": "array", "uniqueItems": True}
    form = {"mode": "json_schema", "schema": {"const": 1}, "field": "response_format"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": cannot}}}}
    given: dict[str, Any] = {"messages": MESSAGES, "parse_output": True}
    for field, asked in (
        ("tools", {"tools": [tool], "guidance": form}),
        ("response_format", {"tools": TOOLS, "guidance": {**form, "schema": cannot}}),
    ):
        refusal = worker.refusal("generate", model_id=str(caller), **given, **asked)
        assert (refusal.details["field"], refusal.details["keywords"]) == (field, ["uniqueItems"])


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"named_tool": "other"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(
    worker: WorkerProcess, caller: Path, params: dict[str, Any], field: str
) -> None:
    given: dict[str, Any] = {"messages": MESSAGES, "tools": TOOLS, "guidance": {"mode": "choice", "schema": ["a"]}}
    refusal = worker.refusal("generate", model_id=str(caller), **{**given, **params})
    assert refusal.details["field"] == field


def test_a_model_whose_template_knows_no_tools_takes_none(worker: WorkerProcess, llama: Path) -> None:
    worker.call("load_model", model_id=str(llama))
    refusal = worker.refusal("generate", model_id=str(llama), messages=MESSAGES, tools=TOOLS)
    assert refusal.details["field"] == "tools"


def test_a_template_in_place_of_the_models_decides_whether_there_are_tools(
    worker: WorkerProcess, caller: Path, llama: Path
) -> None:
    given: dict[str, Any] = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 1}
    untaught = "{{ messages[0].content }}"
    assert worker.refusal("generate", model_id=str(caller), chat_template=untaught, **given).details["field"] == "tools"
    worker.call("load_model", model_id=str(llama))
    assert list(worker.notifications(worker.generate(model_id=str(llama), chat_template=TEMPLATE, **given)))


def test_a_parser_that_does_not_exist_is_refused_with_those_that_do(worker: WorkerProcess, caller: Path) -> None:
    worker.call("unload_model", model_id=str(caller))
    refusal = worker.refusal("load_model", model_id=str(caller), tool_parser="mistrel")
    assert "did you mean 'mistral'?" in refusal.message
    worker.call("load_model", model_id=str(caller))
