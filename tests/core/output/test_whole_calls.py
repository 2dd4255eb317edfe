"""Calls that are not JSON: what is read, and what cannot be."""

from __future__ import annotations

import pytest

from mlx_serving.core.output.gemma_calls import GEMMA_4
from mlx_serving.core.output.tool_arguments import Schemas, WholeCall, property_of, schemas_of, typed
from mlx_serving.core.output.whole_calls import (
    NamedParameters,
    ReadCalls,
    is_whole_longcat,
    is_whole_xtml,
    read_argument_pairs,
    read_dsml,
    read_longcat,
    read_pythonic,
    read_tagged_parameters,
    read_xtml,
)

SCHEMAS: Schemas = schemas_of(
    [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}}]
)


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (read_tagged_parameters, "f"),
        (read_tagged_parameters, "a b><parameter=x>1</parameter>"),
        (read_argument_pairs, "a b<arg_key>x</arg_key>"),
        (read_dsml, "no name"),
        (GEMMA_4.read, "nothing"),
        (read_longcat, '{"name": "f"}'),
        (read_longcat, '{"name": "f", "arguments": [1]}'),
        (read_longcat, '{"name": "f'),
        (NamedParameters("param").read, "nothing"),
        (GEMMA_4.read, "call:f{x:1"),
        (GEMMA_4.read, 'call:f{x:<|"|>never ends}'),
        (GEMMA_4.read, "call:f{x"),
        (read_pythonic, "f("),
        (read_pythonic, "[1]"),
        (read_pythonic, "f(1)"),
        (read_pythonic, "f(**x)"),
        (read_pythonic, "f()()"),
        (read_pythonic, "f(x=y)"),
        (read_pythonic, "f(x={1: 2})"),
        (read_pythonic, "[]"),
        (read_xtml, " nothing<|sep|>"),
        (read_xtml, ' tool="f"<|sep|><|open|>json<|sep|>[1]<|close|>json<|sep|>'),
        (read_xtml, ' tool="f"<|sep|><|open|>argument type="string"<|sep|>a<|close|>argument<|sep|>'),
    ],
)
def test_what_is_no_call_is_none(read: ReadCalls, body: str) -> None:
    assert read(body, SCHEMAS) is None


@pytest.mark.parametrize(
    ("read", "body", "arguments"),
    [
        (read_tagged_parameters, "f>\n<parameter=x>\n1\n<parameter=x>\n2\n</parameter>", {"x": "2"}),
        (read_argument_pairs, "f", {}),
        (read_dsml, ' name="f">', {}),
        (GEMMA_4.read, "call:f{}", {}),
        (read_longcat, ' {"name": "f", "arguments": {"x": "1"}}', {"x": "1"}),
        (NamedParameters("p", sections=True).read, '"f"><p name="x"><![CDATA[a</p>\n]]></p>', {"x": "a</p>\n"}),
        (NamedParameters("p").read, " name='f' more><p name=x> 1\n</p>\n<p name='y'>2</p>", {"x": " 1\n", "y": 2}),
        (GEMMA_4.read, 'call:f{a:"b", c: {d:[1,true]}, <|"|>e f<|"|>:<|"|>g<|"|>}',
         {"a": "b", "c": {"d": [1, True]}, "e f": "g"}),
        (read_pythonic, "f(a=-1, b=(1, 'x'), c={'k': null}, d=true)",
         {"a": -1, "b": [1, "x"], "c": {"k": None}, "d": True}),
        (read_xtml, ' tool="f"<|sep|><|open|>json<|sep|>{"a": 1}<|close|>json<|sep|>', {"a": 1}),
        (read_xtml, ' tool="f"<|sep|><|open|>argument key="a"<|sep|>1<|close|>argument<|sep|>', {"a": 1}),
    ],
)  # fmt: skip
def test_what_is_a_call_is_read(read: ReadCalls, body: str, arguments: dict[str, object]) -> None:
    assert read(body, SCHEMAS) == [WholeCall("f", arguments)]


def test_names_may_have_dots() -> None:
    assert read_pythonic("a.b.c(x=1)", {}) == [WholeCall("a.b.c", {"x": 1})]


def test_an_end_inside_of_an_argument_is_none_of_the_call() -> None:
    assert is_whole_longcat('{"a": "}"}')
    assert not is_whole_longcat('{"a": "')
    assert not is_whole_longcat("f<longcat_arg_key>x</longcat_arg_key><longcat_arg_value>1")
    assert NamedParameters("p").is_whole('"f">')
    assert not NamedParameters("p").is_whole('"f"><p name="x">1')
    assert is_whole_xtml("no arguments")
    assert not is_whole_xtml("<|open|>argument")
    assert is_whole_xtml("<|open|>…<|close|>argument<|sep|> ")


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("1", {"type": "string"}, "1"),
        ("1", {}, 1),
        ("True", {}, True),
        ("none", {"type": ["null", "string", 3]}, None),
        ("NaN", {}, "NaN"),
        ("2.0", {"type": "integer"}, 2),
        ("2", {"type": "number"}, 2),
        ("2.5", {"type": "integer"}, 2.5),
        ("1", {"anyOf": [{"type": "string"}, {"type": "boolean"}]}, "1"),
        ("1", {"oneOf": [{"type": "integer"}]}, 1),
        ("1", {"enum": ["1", "2"]}, "1"),
        ("[1]", {"type": "array"}, [1]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("true", {"type": "boolean"}, True),
        ("[" * 100_000, {}, "[" * 100_000),
    ],
)
def test_text_becomes_what_the_schema_says_it_may_be(text: str, schema: dict[str, object], value: object) -> None:
    assert typed(text, schema) == value
    assert type(typed(text, schema)) is type(value)


def test_tools_in_another_form_are_passed_over() -> None:
    assert schemas_of([{"type": "function"}, {"function": {"name": 3}}, {"function": {"name": "g"}}]) == {"g": {}}
    assert property_of(SCHEMAS, "g", "x") == {}
