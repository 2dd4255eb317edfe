"""Grammars that leave nothing but calls, tried with llguidance itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

import pytest
from llguidance import LLMatcher, LLTokenizer

from mlx_serving.core.grammar.thought_grammar import Lead, Thinking, form_rule, thought_lead
from mlx_serving.core.grammar.tool_grammar import BARE, FORCIBLE, tool_grammar
from mlx_serving.core.output.output_formats import HARMONY, TOOL_STYLES, output_format
from mlx_serving.core.output.output_parser import FormFormat, MarkedFormat, OutputFormat, OutputParser
from mlx_serving.core.output.tool_arguments import Schemas
from mlx_serving.errors import GuidanceError

from ..output.test_output_parser import THINK

SCHEMAS: Schemas = {
    "f": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False},
    "g": {},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
ANSWERS = {
    "json_tools": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    "llama": '{"name": "f", "parameters": {"x": 1}}',
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"x": 1}<|tool_call_end|><|tool_calls_section_end|>',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"x": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">1'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "glm47": "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "pythonic": "<|tool_call_start|>[f(x=1)]<|tool_call_end|>",
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
    "laguna": "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    "longcat": "<longcat_tool_call>f\n<longcat_arg_key>x</longcat_arg_key>\n<longcat_arg_value>1</longcat_arg_value>\n"
    "</longcat_tool_call>",
    "minicpm5": '<function name="f"><param name="x">1</param></function>',
    "muse_spark": '<atem:function_calls>\n<atem:invoke name="f">\n<atem:parameter name="x">1</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls>",
    "gemma4": "<|tool_call>call:f{x:1}<tool_call|>",
    "function_gemma": "<start_function_call>call:f{x:1}<end_function_call>",
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument key="x" type="number"<|sep|>'
    "1<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
    "harmony": '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}',
}


def no_token(_: str) -> None:
    """Of a model whose markers are text."""


def fits(grammar: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar))
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def format_of(style: str) -> OutputFormat:
    return output_format(style, THINK.get(style, "think"))


def test_every_style_can_be_forced() -> None:
    assert sorted(FORCIBLE) == sorted([*TOOL_STYLES, HARMONY]) == sorted(ANSWERS)


@pytest.mark.parametrize("style", FORCIBLE)
@pytest.mark.parametrize("thinking", [False, True])
def test_a_call_fits_and_is_read_again(style: str, thinking: bool) -> None:
    output = format_of(style)
    lead = thought_lead(output, Thinking.OPEN if thinking else Thinking.AHEAD, no_token)
    grammar = tool_grammar(style, SCHEMAS, no_token, parallel=True, lead=lead)
    answer = ANSWERS[style]
    start, end = output.think_starts[0], output.think_ends[0]
    before = ("" if thinking else start) + "hm" + end + ("<|start|>assistant" if style == HARMONY else "\n")
    assert fits(grammar, before + answer)
    assert fits(grammar, answer) is not thinking
    assert not fits(grammar, before + "3".join(answer.rsplit("1", 1)))
    assert not fits(grammar, "Hello")
    parser = OutputParser(output, "s", tools=TOOLS, thinking=thinking)
    if style != "llama":
        [call] = parser.feed(before + answer).tool_calls
        assert (call.name, json.loads(call.arguments)) == ("f", {"x": 1})


FORM = {"name": "form", "json_schema": {"const": ["a <tool_call> b"]}}
SAID = '["a <tool_call> b"]'


@pytest.mark.parametrize("style", [style for style in FORCIBLE if style not in BARE])
@pytest.mark.parametrize("thinking", [Thinking.AHEAD, Thinking.OVER])
def test_an_answer_may_be_a_form_or_calls_and_is_read_again(style: str, thinking: Thinking) -> None:
    output = format_of(style)
    lead = thought_lead(output, thinking, no_token)
    form = form_rule(output, no_token)
    grammar = tool_grammar(style, SCHEMAS, no_token, parallel=False, lead=lead, form=form)
    whole = json.dumps({"grammars": [{"lark_grammar": grammar}, FORM]})
    said = ("<|channel|>final<|message|>" if style == HARMONY else "") + SAID
    call = ANSWERS[style]
    twice = f"{call}<|call|><|start|>assistant{call}" if style == HARMONY else f"{call}\n{call}"
    for answer, is_fit in ((said, True), (call, True), (said + call, False), ("no", False)):
        assert LLMatcher.validate_grammar(whole) == ""
        matcher = LLMatcher(LLTokenizer("byte"), whole)
        tokens = list(answer.encode())
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) is is_fit
    read = FormFormat(output) if isinstance(output, MarkedFormat) else output
    for answer, text, names in ((said, SAID, []), (call, "", ["f"]), (twice, "", ["f", "f"])):
        for pieces in ([answer], list(answer)):
            parser = OutputParser(read, "s", tools=TOOLS)
            parts = [*map(parser.feed, pieces), parser.finish()]
            called = [piece.name for part in parts for piece in part.tool_calls if piece.name is not None]
            assert ("".join(part.text for part in parts), called) == (text, names)


def test_several_calls_only_where_they_may_be() -> None:
    two = "\n".join([ANSWERS["json_tools"]] * 2)
    for parallel in (True, False):
        grammar = tool_grammar("json_tools", SCHEMAS, no_token, parallel=parallel, lead=Lead(""))
        assert fits(grammar, two) is parallel


def test_markers_that_are_tokens_are_written_as_tokens() -> None:
    grammar = tool_grammar("mistral", SCHEMAS, len, parallel=True, lead=Lead(""))
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)) == ""
    assert '<[12]> "f" <[6]> args_0' in grammar


TAGGED = [
    "qwen3_coder",
    "glm47",
    "deepseek_v32",
    "pythonic",
    "longcat",
    "minimax_m2",
    "minicpm5",
    "muse_spark",
    "kimi_k3",
]
MIXED: dict[str, object] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "word": {"type": "string", "enum": ["a b", "c"]},
        "short": {"type": "string", "minLength": 1, "maxLength": 3},
        "list": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "same": {"type": "string", "const": "x"},
        "any": True,
    },
    "required": ["word", "list"],
    "$defs": {"n": {"type": "integer", "minimum": 1}},
}
ARGUMENTS: list[dict[str, object]] = [
    {"word": "c", "list": []},
    {"text": "two\nlines, <b> & 'more' </b", "word": "a b", "list": [1, 2]},
    {"short": "ab", "word": "c", "list": [7], "maybe": None, "same": "x", "any": {"a": [True, None, "é"]}},
    {"word": "c", "list": [], "maybe": 'a "b"'},
]


def written(style: str, arguments: Mapping[str, object]) -> str:
    """A call of `f` as a model writes it."""

    def value(key: str) -> str:
        one = arguments[key]
        is_text = key in ("text", "word", "short", "same") and style != "pythonic"
        return str(one) if is_text else json.dumps(one, ensure_ascii=False)

    keys = [key for key in cast("Mapping[str, object]", MIXED["properties"]) if key in arguments]
    match style:
        case "qwen3_coder":
            inside = "".join(f"<parameter={key}>\n{value(key)}\n</parameter>\n" for key in keys)
            return f"<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>"
        case "glm47":
            pairs = [f"<arg_key>{key}</arg_key>\n<arg_value>{value(key)}</arg_value>\n" for key in keys]
            return f"<tool_call>f\n{''.join(pairs)}</tool_call>"
        case "deepseek_v32":
            texts = [str(key in ("text", "word", "short", "same")).lower() for key in keys]
            inside = "".join(
                f'<｜DSML｜parameter name="{key}" string="{is_text}">{value(key)}</｜DSML｜parameter>\n'
                for key, is_text in zip(keys, texts, strict=True)
            )
            section = f'<｜DSML｜invoke name="f">\n{inside}</｜DSML｜invoke>\n'
            return f"<｜DSML｜tool_calls>\n{section}</｜DSML｜tool_calls>"
        case "longcat":
            return "<longcat_" + written("glm47", arguments)[1:].replace("arg_", "longcat_arg_").replace(
                "</tool_call>", "</longcat_tool_call>"
            )
        case "minimax_m2" | "muse_spark":
            tag, section = ("", "minimax:tool_call") if style == "minimax_m2" else ("atem:", "atem:function_calls")
            inside = "".join(f'<{tag}parameter name="{key}">{value(key)}</{tag}parameter>\n' for key in keys)
            return f'<{section}>\n<{tag}invoke name="f">\n{inside}</{tag}invoke>\n</{section}>'
        case "minicpm5":
            texts = {key: value(key) for key in keys}
            if "\n" in texts.get("text", ""):
                texts["text"] = f"<![CDATA[{texts['text']}]]>"
            inside = "".join(f'<param name="{key}">{text}</param>' for key, text in texts.items())
            return f'<function name="f">{inside}</function>'
        case "kimi_k3":
            kinds = {"list": "array", "maybe": "null", "any": "object"}
            inside = "".join(
                f'<|open|>argument key="{key}" type="{kinds.get(key, "string")}"<|sep|>{value(key)}'
                "<|close|>argument<|sep|>"
                for key in keys
            )
            call = f'<|open|>call tool="f" index="1"<|sep|>{inside}<|close|>call<|sep|>'
            return f"<|open|>tools<|sep|>{call}<|close|>tools<|sep|>"
        case _:
            inside = ", ".join(f"{key}={value(key)}" for key in keys)
            return f"<|tool_call_start|>[f({inside})]<|tool_call_end|>"


@pytest.mark.parametrize("style", TAGGED)
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_between_tags_fit_their_schemas(style: str, arguments: dict[str, object]) -> None:
    grammar = tool_grammar(style, {"f": MIXED}, no_token, parallel=True, lead=Lead(""))
    answer = written(style, arguments)
    assert fits(grammar, answer)
    for mistake in ({"list": [0]}, {"list": [1, 2, 3]}, {"word": "b"}, {"short": "abcd"}, {"other": 1}):
        if mistake.keys() <= arguments.keys():
            assert not fits(grammar, written(style, {**arguments, **mistake}))
    assert not fits(grammar, written(style, {key: one for key, one in arguments.items() if key != "word"}))
    tools = [{"type": "function", "function": {"name": "f", "parameters": MIXED}}]
    parser = OutputParser(output_format(style, None), "s", tools=tools)
    [call] = parser.feed(answer).tool_calls
    assert json.loads(call.arguments) == arguments


GEMMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "word": {"enum": ["a b", 1, None, ["x", {"b": 2.5, "a": "y"}]]},
        "short": {"type": "string", "minLength": 1, "maxLength": 3},
        "list": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2},
        "some": {"type": "array", "items": {"type": "boolean"}, "minItems": 1},
        "none": {"type": "array", "maxItems": 0},
        "in": {"type": "object", "properties": {"a: b": {"type": "number"}, "c d": {"type": "string"}}},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "empty": {"type": "object"},
    },
    "required": ["word", "list"],
    "$defs": {"n": {"type": "integer", "minimum": 1}},
}


@pytest.mark.parametrize(("style", "quote"), [("gemma4", '<|"|>'), ("function_gemma", "<escape>")])
@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ("list:[],word:1", {"list": [], "word": 1}),
        ("in:{},list:[1,2],word:~a b~", {"in": {}, "list": [1, 2], "word": "a b"}),
        (
            (
                "empty:{},in:{~a: b~:1.5,c d:~x, {y}~},list:[3],maybe:null,none:[],"
                "short:~ab~,some:[true,false],text:~two\nlines, <b> 'more'~,word:[~x~,{a:~y~,b:2.5}]"
            ),
            {
                "empty": {},
                "in": {"a: b": 1.5, "c d": "x, {y}"},
                "list": [3],
                "maybe": None,
                "none": [],
                "short": "ab",
                "some": [True, False],
                "text": "two\nlines, <b> 'more'",
                "word": ["x", {"a": "y", "b": 2.5}],
            },
        ),
    ],
)
def test_arguments_in_gemmas_notation_fit_their_schemas(
    style: str, quote: str, inside: str, arguments: dict[str, object]
) -> None:
    grammar = tool_grammar(style, {"f": GEMMA}, no_token, parallel=True, lead=Lead(""))
    answer = ANSWERS[style].replace("x:1", inside.replace("~", quote))
    assert fits(grammar, answer)
    for good, bad in (("list:[", "list:[0,"), (",word:", ",other:1,word:"), ("~ab~", "~abcd~"), ("[true", "[1")):
        mistaken = answer.replace(good.replace("~", quote), bad.replace("~", quote))
        assert mistaken == answer or not fits(grammar, mistaken)
    tools = [{"type": "function", "function": {"name": "f", "parameters": GEMMA}}]
    [call] = OutputParser(output_format(style, None), "s", tools=tools).feed(answer).tool_calls
    assert json.loads(call.arguments) == arguments


def test_gemmas_quotes_may_be_tokens() -> None:
    grammar = tool_grammar("gemma4", {"f": GEMMA}, {'<|"|>': 7}.get, parallel=True, lead=Lead(""))
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)) == ""
    assert "<[7]> ARGS_0_TEXT <[7]>" in grammar


def test_kimis_calls_follow_every_schema_in_one_object() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x+$"}}, "required": ["a"]}
    grammar = tool_grammar("kimi_k3", {"f": schema}, no_token, parallel=True, lead=Lead(""))
    start, end = (
        '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>',
        "<|close|>call<|sep|><|close|>tools<|sep|>",
    )
    for text, is_fit in (("xx", True), ("y", False)):
        block = f'<|open|>json type="object"<|sep|>{{"a": "{text}"}}<|close|>json<|sep|>'
        assert fits(grammar, start + block + end) is is_fit
    assert not fits(grammar, f'{start}<|open|>argument key="a" type="string"<|sep|>xx<|close|>argument<|sep|>{end}')


def test_texts_of_one_line_with_markup_stand_in_sections_where_there_are_any() -> None:
    schema = {"properties": {"a": {"type": "string", "enum": ["a", "b & c"]}}, "required": ["a"]}
    grammar = tool_grammar("minicpm5", {"f": schema}, no_token, parallel=True, lead=Lead(""))
    for text, is_fit in (("a", True), ("<![CDATA[b & c]]>", True), ("b & c", False)):
        assert fits(grammar, f'<function name="f"><param name="a">{text}</param></function>') is is_fit


@pytest.mark.parametrize("style", TAGGED)
def test_a_tool_may_have_no_arguments_or_none_that_must_be(style: str) -> None:
    grammar = tool_grammar(style, {"f": {}}, no_token, parallel=True, lead=Lead(""))
    assert fits(grammar, written(style, {}))
    free = {key: each for key, each in MIXED.items() if key != "required"}
    grammar = tool_grammar(style, {"f": free}, no_token, parallel=False, lead=Lead(""))
    for arguments in ({}, {"any": 1}, {"text": "a", "short": "b"}):
        assert fits(grammar, written(style, arguments))


def test_a_tag_that_is_a_token_is_one() -> None:
    grammar = tool_grammar("deepseek_v32", {"f": MIXED}, {"｜DSML｜": 7}.get, parallel=True, lead=Lead(""))
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)) == ""
    assert '"<" <[7]> "parameter name=\\"text\\" string=\\"true\\">" ARGS_0_0 <[7]> "parameter>"' in grammar
    assert r"ARGS_0_0: /(.|\n)*<\//" in grammar


@pytest.mark.parametrize(
    ("schema", "words", "keywords"),
    [
        ({"oneOf": []}, "schema of f has what", ["oneOf"]),
        ({"required": ["a"]}, "requires a", ["required"]),
        ({"properties": {"a": False}}, "no value", []),
        ({"properties": {"a b": {}}}, "'a b'", []),
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "of a has what", ["pattern"]),
    ],
)
def test_what_tags_cannot_follow_is_refused(schema: dict[str, object], words: str, keywords: list[str]) -> None:
    with pytest.raises(GuidanceError, match=words) as refused:
        tool_grammar("glm47", {"f": schema}, no_token, parallel=True, lead=Lead(""))
    assert (refused.value.field, refused.value.details.get("keywords", [])) == ("tools", keywords)
