"""Answers that must have a form, of a random model that left alone writes noise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml
from llguidance import LLMatcher, LLTokenizer

from mlx_serving.wire.methods import ModelCapabilities
from mlx_serving.worker.grammar.limits import grammar_limits
from mlx_serving.worker.grammar.matcher import Ends, Matcher

from ..driver import WorkerProcess

SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "kind", "age"],
    "additionalProperties": False,
}
ANSWER = {"mode": "json_schema", "schema": SCHEMA}


@pytest.fixture(scope="module")
def structured_worker(cache: Path, llama: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess.by_hand(cache) as process:
        process.call("load_model", model_id=str(llama))
        yield process


@pytest.fixture
def worker(structured_worker: WorkerProcess) -> WorkerProcess:
    structured_worker.forget()
    return structured_worker


def ask(worker: WorkerProcess, llama: Path, guidance: Mapping[str, object] | None, **params: object) -> str:
    given = {"temperature": 1.0, "seed": 1, "max_tokens": 200, "prompt": "Hello"}
    return worker.generate(model_id=str(llama), guidance=guidance, **{**given, **params})


def answer(worker: WorkerProcess, stream_id: str) -> tuple[str, str]:
    """The text, and why it ended."""
    events = list(worker.notifications(stream_id))
    return "".join(event.get("token", "") for event in events), events[-1]["finish_reason"]


@pytest.mark.parametrize("seed", range(5))
def test_every_draw_fits_the_schema_and_ends_by_itself(worker: WorkerProcess, llama: Path, seed: int) -> None:
    text, reason = answer(worker, ask(worker, llama, ANSWER, seed=seed))
    jsonschema.validate(json.loads(text), SCHEMA)
    assert reason == "stop"


@pytest.mark.parametrize(
    ("guidance", "pattern"),
    [
        ({"mode": "regex", "schema": r"[a-f]{3}-\d{2}"}, r"[a-f]{3}-\d{2}"),
        ({"mode": "regex", "schema": r"\d\w\d/\w{9}"}, "[0-9][0-9A-Za-z_][0-9]/[0-9A-Za-z_]{9}"),
        ({"mode": "choice", "schema": ["yes", 'a "quoted" no', "ünsure"]}, r'yes|a "quoted" no|ünsure'),
        ({"mode": "grammar", "schema": 'start: pair ("," pair)~2\npair: /[a-z]/ "=" /[0-9]/'}, r"([a-z]=[0-9],?){3}"),
        ({"mode": "grammar", "schema": 'root ::= "<" [a-c]+ ">"'}, r"<[abc]+>"),
    ],
)
def test_expressions_choices_and_grammars_are_followed(
    worker: WorkerProcess, llama: Path, guidance: Mapping[str, object], pattern: str
) -> None:
    text, reason = answer(worker, ask(worker, llama, guidance))
    assert re.fullmatch(pattern, text)
    assert reason == "stop"


DTD = "<!ELEMENT pet (name, kind)><!ELEMENT name (#PCDATA)><!ELEMENT kind EMPTY><!ATTLIST kind is (cat|dog) #REQUIRED>"


@pytest.mark.parametrize("seed", range(3))
def test_xml_and_yaml_are_written_as_their_parsers_read_them(worker: WorkerProcess, llama: Path, seed: int) -> None:
    likes_to_end = {"logit_bias": {str(ord("<") - ord("!")): 30}, "seed": seed}
    text, reason = answer(worker, ask(worker, llama, {"mode": "xml", "schema": DTD}, **likes_to_end))
    assert reason == "stop"
    assert [child.tag for child in ElementTree.fromstring(text)] == ["name", "kind"]
    text, reason = answer(worker, ask(worker, llama, {"mode": "yaml", "schema": SCHEMA}, seed=seed))
    assert reason == "stop"
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


def test_max_tokens_cuts_an_answer(worker: WorkerProcess, llama: Path) -> None:
    text, reason = answer(worker, ask(worker, llama, ANSWER, max_tokens=9))
    assert (text, reason) == ('{"name": ', "length")


@pytest.mark.parametrize(
    "guidance",
    [
        {"mode": "regex", "schema": "(?s:.*)"},
        {"mode": "grammar", "schema": "start: /(.|\\n)*/"},
        {"mode": "json_schema", "schema": {"type": "string"}},
    ],
)
def test_a_form_without_an_end_goes_on_to_max_tokens(
    worker: WorkerProcess, llama: Path, guidance: Mapping[str, object]
) -> None:
    never_ends = {"258": -100, str(ord('"') - ord("!")): -100}
    text, reason = answer(worker, ask(worker, llama, guidance, max_tokens=25, logit_bias=never_ends))
    assert reason == "length"
    assert text


def test_an_answer_that_is_complete_with_its_last_token_ends_with_stop(worker: WorkerProcess, llama: Path) -> None:
    guidance = {"mode": "regex", "schema": "[a-c]{4}"}
    assert answer(worker, ask(worker, llama, guidance, max_tokens=4))[1] == "stop"


def test_a_stop_string_ends_an_answer_where_it_comes(worker: WorkerProcess, llama: Path) -> None:
    text, reason = answer(worker, ask(worker, llama, ANSWER, stop_sequences=['e": ']))
    assert (text, reason) == ('{"nam', "stop")


@pytest.mark.parametrize("rule", [{"ignore_eos": True}, {"min_tokens": 150}])
def test_what_keeps_an_answer_from_ending_holds_as_long_as_the_grammar_has_more(
    worker: WorkerProcess, llama: Path, rule: Mapping[str, object]
) -> None:
    """The random model ends a run of letters within a few of them, if it may."""
    guidance = {"mode": "regex", "schema": "[a-z]*"}
    likes_to_end = {"logit_bias": {"258": 100}, "max_tokens": 150}
    assert answer(worker, ask(worker, llama, guidance, **likes_to_end)) == ("", "stop")
    text, reason = answer(worker, ask(worker, llama, guidance, **likes_to_end, **rule))
    assert re.fullmatch("[a-z]{150}", text)
    assert reason == "length"
    assert answer(worker, ask(worker, llama, {"mode": "regex", "schema": "abc"}, **likes_to_end, **rule)) == (
        "abc",
        "stop",
    )


def test_a_bias_chooses_among_what_the_grammar_allows(worker: WorkerProcess, llama: Path) -> None:
    guidance = {"mode": "regex", "schema": "[a-z]{5}"}
    biased = ask(worker, llama, guidance, logit_bias={str(ord("q") - ord("!")): 100, str(ord("Q") - ord("!")): 100})
    assert answer(worker, biased) == ("qqqqq", "stop")


def test_a_ban_on_all_that_the_grammar_allows_fails_the_stream_and_says_so(worker: WorkerProcess, llama: Path) -> None:
    banned = [letter - ord("!") for letter in b"ab"]
    stream = ask(worker, llama, {"mode": "regex", "schema": "x[ab]"}, banned_token_ids=banned)
    *_, error = worker.notifications(stream)
    assert error["method"] == "stream.event"
    assert error["code"] == -32004


def test_free_streams_are_the_same_beside_constrained_ones(worker: WorkerProcess, llama: Path) -> None:
    """In every bit: the log-probabilities of each token are compared."""
    capabilities = ModelCapabilities(**worker.call("load_model", model_id=str(llama))["capabilities"])
    assert capabilities.batch

    def crowd(guidance: Mapping[str, object] | None) -> list[list[object]]:
        free = [
            ask(worker, llama, None, prompt="abcdefgh", seed=seed, temperature=temperature, max_tokens=40, logprobs=2)
            for seed, temperature in ((3, 0.0), (4, 1.0))
        ]
        other = ask(worker, llama, guidance, prompt="abcdefgh", max_tokens=40, logit_bias={"258": -100})
        answer(worker, other)
        return [
            [
                (event.get("token_id"), event.get("token"), json.dumps(event.get("logprobs")))
                for event in worker.notifications(one)
                if event["method"] == "stream.chunk"
            ]
            for one in free
        ]

    assert crowd({"mode": "regex", "schema": "[a-z]{40}"}) == crowd(None)


def test_delivered_tokens_are_replayed(worker: WorkerProcess, llama: Path) -> None:
    events = list(worker.notifications(ask(worker, llama, ANSWER, seed=7)))
    whole = "".join(event.get("token", "") for event in events)
    ids = [event["token_id"] for event in events if "token_id" in event]
    for cut in (1, len(ids) // 2, len(ids) - 1):
        rest = answer(worker, ask(worker, llama, ANSWER, seed=7, delivered=ids[:cut]))
        assert rest == ("".join(event.get("token", "") for event in events[cut:]), "stop")
    assert json.loads(whole)
    refused = worker.refusal("generate", model_id=str(llama), prompt="Hello", guidance=ANSWER, delivered=[0, 1])
    assert (refused.code, refused.details["field"]) == (-32004, "delivered")


def test_a_pause_changes_nothing(worker: WorkerProcess, llama: Path) -> None:
    """The sequence leaves the batch with its cache, while another goes on, and comes back."""
    guidance = {"mode": "regex", "schema": "([a-z]{1,9} ){30}"}
    undisturbed = answer(worker, ask(worker, llama, guidance, stream_id="undisturbed"))
    worker.generate(model_id=str(llama), prompt="a", stream_id="other", max_tokens=100, logit_bias={"258": -100})
    stream = ask(worker, llama, guidance, stream_id="paused")
    begun = worker.take(lambda message: message.get("params", {}).get("stream_id") == stream)["params"]
    assert worker.call("pause", stream_id=stream) == {"found": True}
    list(worker.notifications("other"))
    assert worker.call("resume", stream_id=stream) == {"found": True}
    rest, reason = answer(worker, stream)
    assert (begun["token"] + rest, reason) == undisturbed


BOMB: Mapping[str, object] = {
    "mode": "json_schema",
    "schema": {"allOf": [{"type": "string", "pattern": f".*(a|b){{{n}}}.*"} for n in range(40)]},
}
DEEP_GRAMMAR = "start: x0\n" + "".join(f"x{n}: x{n + 1} x{n + 1}\n" for n in range(3000)) + 'x3000: "a"'
REFUSED: list[tuple[Mapping[str, object], str]] = [
    ({"mode": "json_schema", "schema": {"type": "object", "not": {"required": ["a"]}}}, "not"),
    (
        {"mode": "json_schema", "schema": {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}},
        "uniqueItems",
    ),
    ({"mode": "json_schema", "schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum"),
    (
        {"mode": "json_schema", "schema": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
        "$ref",
    ),
    ({"mode": "json_schema", "schema": {"$ref": "https://example.com/schema.json"}}, "example.com"),
    ({"mode": "json_schema", "schema": "{}"}, "must be an object"),
    ({"mode": "json_schema", "schema": {"enum": ["x" * 500] * 10_000}}, "262144"),
    (BOMB, "too complex"),
    ({"mode": "json_object", "schema": {}}, "json_object"),
    ({"mode": "xml", "schema": "<!ELEMENT a (a)>"}, "without an end"),
    ({"mode": "xml"}, "not empty"),
    ({"mode": "yaml", "schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"mode": "yaml", "schema": "a: 1"}, "must be an object"),
    ({"mode": "regex", "schema": "(a"}, "unclosed group"),
    ({"mode": "regex", "schema": "(?=a)b"}, "look-ahead"),
    ({"mode": "regex", "schema": r"[^\s\S]"}, "no answer fits"),
    ({"mode": "regex", "schema": ""}, "not empty"),
    ({"mode": "choice", "schema": []}, "choices"),
    ({"mode": "grammar", "schema": "start: missing"}, "missing"),
    ({"mode": "grammar", "schema": "nonsense"}, "cannot be read"),
    ({"mode": "grammar", "schema": DEEP_GRAMMAR}, "too complex"),
]


@pytest.mark.parametrize(("guidance", "named"), REFUSED)
def test_what_cannot_be_is_refused_and_named(
    worker: WorkerProcess, llama: Path, guidance: Mapping[str, object], named: str
) -> None:
    refused = worker.refusal("generate", model_id=str(llama), prompt="Hello", guidance=guidance)
    assert (refused.code, refused.type) == (-32004, "GuidanceError")
    assert named in refused.message
    assert refused.details["field"] == "guidance.schema"
    assert refused.message.startswith("guidance.schema")
    assert answer(worker, ask(worker, llama, ANSWER))[1] == "stop"


def test_a_form_that_has_become_too_complex_is_not_kept_for_others() -> None:
    schema = json.dumps({"type": "string", "minLength": 3000, "maxLength": 3000})
    tokenizer = LLTokenizer("byte")
    grammar = LLMatcher.grammar_from_json_schema(schema, {"whitespace_flexible": False}, {})
    inner = LLMatcher(tokenizer, grammar, log_level=0, limits=grammar_limits())
    forgotten: list[bool] = []
    matcher = Matcher(inner, -(-tokenizer.vocab_size // 32), Ends(), "guidance", lambda: forgotten.append(True))
    matcher.begin([])
    for byte in b'"' + "é€ab".encode() * 1000:
        matcher.advance(byte)
    assert "too complex to follow" in str(matcher.error)
    assert forgotten == [True]


def test_unknown_modes_are_refused(worker: WorkerProcess, llama: Path) -> None:
    refused = worker.refusal(
        "generate", model_id=str(llama), prompt="Hello", guidance={"mode": "html", "schema": "<a/>"}
    )
    assert refused.code == -32602
    assert "guidance.mode" in refused.message


def test_others_go_on_while_a_bomb_is_defused(worker: WorkerProcess, endless: Path, llama: Path) -> None:
    worker.call("load_model", model_id=str(endless))
    worker.start_endless(endless, "bystander")
    bomb = worker.send(
        "generate",
        {
            "model_id": str(llama),
            "prompt": "Hello",
            "guidance": BOMB,
        },
    )
    came = 0
    while True:
        message = worker.take(lambda message: "method" not in message or message["method"] == "stream.chunk")
        if message.get("id") == bomb:
            break
        came += 1
    assert came > 10
    worker.call("abort", stream_id="bystander")
    list(worker.notifications("bystander"))
