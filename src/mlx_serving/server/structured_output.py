"""The form that an answer must have, as OpenAI (`response_format`) and vLLM (`structured_outputs`, `guided_*`) ask
for it. A schema is always followed to the letter: `strict` makes no difference."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field

from mlx_serving.core.generation import Structure
from mlx_serving.core.grammar.structure import check
from mlx_serving.errors import GuidanceError
from mlx_serving.server.request_fields import Body


class JsonSchemaFormat(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, object] | None = Field(default=None, alias="schema", description="Any value if none is given.")
    strict: bool | None = Field(default=None, description="Makes no difference: the schema always holds.")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(default=None, description="Required for type json_schema.")


class StructuredOutputs(Body):
    """vLLM's: one of these."""

    json_: dict[str, object] | str | None = Field(default=None, alias="json", description="A JSON Schema, or its text.")
    json_object: bool | None = Field(default=None, description="Any JSON object.")
    regex: str | None = Field(default=None, description="A regular expression that the whole answer matches.")
    choice: list[str] | None = Field(default=None, description="The answer is one of these.")
    grammar: str | None = Field(default=None, description="A grammar in Lark's notation or GBNF.")


class StructureFields(Body):
    """What a generation may be asked for; one of these."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, object] | str | None = Field(default=None, description="As structured_outputs.json.")
    guided_regex: str | None = Field(default=None, description="As structured_outputs.regex.")
    guided_choice: list[str] | None = Field(default=None, description="As structured_outputs.choice.")
    guided_grammar: str | None = Field(default=None, description="As structured_outputs.grammar.")


def structure_of(fields: StructureFields) -> Structure | None:
    """Raises `GuidanceError`, which names the parameter, for what contradicts itself or is no description of a form."""
    asked = [*_openai(fields.response_format), *_vllm(fields.structured_outputs), *_guided(fields)]
    if len(asked) > 1:
        names = " and ".join(structure.field for structure in asked)
        raise GuidanceError(f"An answer can have one form only, got {names}", field=asked[1].field)
    for structure in asked:
        check(structure)
        return structure
    return None


def _openai(asked: ResponseFormat | None) -> list[Structure]:
    if asked is None:
        return []
    if (asked.json_schema is not None) != (asked.type == "json_schema"):
        raise GuidanceError(
            "response_format.json_schema must be given for type json_schema, and for no other",
            field="response_format.json_schema",
        )
    if asked.json_schema is not None:
        schema = asked.json_schema.schema_
        return [Structure("json_schema", {} if schema is None else schema, "response_format.json_schema.schema")]
    return [Structure("json_object", field="response_format")] if asked.type == "json_object" else []


def _vllm(asked: StructuredOutputs | None) -> list[Structure]:
    if asked is None:
        return []
    found = _described("structured_outputs.", asked.json_, asked.regex, asked.choice, asked.grammar)
    if asked.json_object:
        found.append(Structure("json_object", field="structured_outputs.json_object"))
    if not found:
        raise GuidanceError("structured_outputs must have one of its parameters", field="structured_outputs")
    return found


def _guided(fields: StructureFields) -> list[Structure]:
    return _described("guided_", fields.guided_json, fields.guided_regex, fields.guided_choice, fields.guided_grammar)


def _described(
    prefix: str,
    schema: dict[str, object] | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Structure]:
    found: list[Structure] = []
    if schema is not None:
        found.append(Structure("json_schema", _read(schema, prefix + "json"), prefix + "json"))
    if regex is not None:
        found.append(Structure("regex", regex, prefix + "regex"))
    if choice is not None:
        found.append(Structure("choice", tuple(choice), prefix + "choice"))
    if grammar is not None:
        found.append(Structure("grammar", grammar, prefix + "grammar"))
    return found


def _read(schema: dict[str, object] | str, field: str) -> dict[str, object]:
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise GuidanceError(f"{field} is no JSON Schema: {error}", field=field) from None
