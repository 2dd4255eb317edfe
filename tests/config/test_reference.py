import json
from pathlib import Path
from typing import cast

from mlx_serving.config.json_schema import json_schema
from mlx_serving.config.load import values
from mlx_serving.config.markdown import markdown
from mlx_serving.config.origin import NO_SETTINGS
from mlx_serving.config.reference import ANY_INDEX, read_reference
from mlx_serving.config.schema import Config
from mlx_serving.config.tree import leaves

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_every_value_of_a_config_is_a_documented_setting_and_the_other_way_round() -> None:
    config = Config.model_validate({"models": {"aliases": [{"name": "other", "model": "smollm2-135m"}]}})
    found = {tuple(ANY_INDEX if part.isdecimal() else part for part in path) for path, _ in leaves(values(config))}
    lists = {path for path, setting in read_reference().settings.items() if setting.type == "a list"}
    assert found - lists == read_reference().settings.keys() - lists


def test_defaults_in_the_reference_are_those_of_the_config() -> None:
    for path, value in leaves(values(Config())):
        setting = read_reference().find(path)
        assert setting is not None
        if setting.has_default:
            assert setting.default == value, path


def test_every_setting_is_described_with_its_unit() -> None:
    for path, setting in read_reference().settings.items():
        assert setting.description.endswith("."), path
        if path[-1].endswith("_s"):
            assert "second" in setting.description, path
        if path[-1].endswith("_bytes"):
            assert "bytes" in setting.description, path


def test_every_number_has_a_limit() -> None:
    for path, setting in read_reference().settings.items():
        if "number" in setting.type:
            assert setting.limits, path


def test_secrets_are_what_the_schema_says_and_whatever_holds_or_belongs_to_one() -> None:
    reference = read_reference()
    assert {path for path, setting in reference.settings.items() if setting.is_secret} == {
        ("server", "api_key"),
        ("server", "admin_key"),
        ("keys", "inline"),
    }
    assert reference.holds_secret(("server",))
    assert reference.holds_secret(("server", "api_key", "x"))
    assert not reference.holds_secret(("server", "port"))


def test_the_page_in_the_documentation_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        "write it with: python -m mlx_serving.config.markdown > docs/configuration.md"
    )


def test_the_schema_for_editors_knows_sections_overlays_and_variables() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    properties = cast("dict[str, dict[str, object]]", schema["properties"])
    assert list(properties) == [*Config.model_fields, "environments"]
    definitions = cast("dict[str, dict[str, object]]", schema["$defs"])
    assert list(cast("dict[str, object]", definitions["Overlay"]["properties"])) == list(Config.model_fields)
    server = cast("dict[str, dict[str, object]]", definitions["ServerConfig"]["properties"])
    assert server["port"]["anyOf"] == [
        {"type": "integer", "minimum": 0, "maximum": 65535},
        {"$ref": "#/$defs/Variable"},
    ]
    assert "anyOf" not in server["host"]


def test_every_reference_in_the_schema_has_its_definition() -> None:
    schema = json_schema()
    definitions = cast("dict[str, object]", schema["$defs"])
    text = json.dumps(schema)
    targets = {part.partition('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert targets == set(definitions)


def test_variables_that_are_no_settings_have_no_name_of_one() -> None:
    assert not NO_SETTINGS & {path[0] for path in read_reference().settings}
