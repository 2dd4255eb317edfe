"""The JSON Schema (draft 2020-12) of a configuration file, for editors."""

from __future__ import annotations

from typing import cast

from pydantic.json_schema import GenerateJsonSchema

from mlx_serving.config.reference import JsonSchema
from mlx_serving.config.schema import Config


def json_schema() -> JsonSchema:
    """The schema of a whole file: `Config`, the overlays in `environments`, and `${VARIABLE}` for any value."""
    schema = cast("JsonSchema", Config.model_json_schema())
    definitions = cast("dict[str, JsonSchema]", schema.pop("$defs"))
    sections = cast("dict[str, JsonSchema]", schema["properties"])
    for definition in definitions.values():
        properties = cast("dict[str, JsonSchema]", definition["properties"])
        definition["properties"] = {name: _or_variable(child) for name, child in properties.items()}
    # A section of which every line is a comment is empty, which YAML reads as null.
    nullable = {name: {"anyOf": [child, {"type": "null"}]} for name, child in sections.items()}
    overlay: JsonSchema = {"type": ["object", "null"], "additionalProperties": False, "properties": nullable}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "mlx-serving",
        "description": schema["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **nullable,
            "environments": {
                "description": "Overlays by name; `--env` or MLX_SERVING_ENV chooses one.",
                "type": ["object", "null"],
                "additionalProperties": {"$ref": "#/$defs/Overlay"},
            },
        },
        "$defs": {
            **definitions,
            "Overlay": overlay,
            "Variable": {
                "description": "Replaced by the value of the environment variable.",
                "type": "string",
                "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$",
            },
        },
    }


def _or_variable(schema: JsonSchema) -> JsonSchema:
    """Scalars that are not text may be given as a reference to a variable, too; text may be one already."""
    if "$ref" in schema or schema.get("type") in ("array", "object") or _is_free_text(schema):
        return schema
    outer = {key: value for key, value in schema.items() if key in ("default", "description", "title")}
    inner = {key: value for key, value in schema.items() if key not in outer}
    options = cast("list[JsonSchema]", inner.get("anyOf", [inner]))
    return {**outer, "anyOf": [*options, {"$ref": "#/$defs/Variable"}]}


def _is_free_text(schema: JsonSchema) -> bool:
    options = cast("list[JsonSchema]", schema.get("anyOf", [schema]))
    return any(option.get("type") == "string" and "enum" not in option for option in options)
