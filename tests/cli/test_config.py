import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_serving.cli import config
from mlx_serving.cli.config_arguments import add_config_arguments, load_from_arguments
from mlx_serving.config.assignments import from_flag


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]  pytest finds it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "MLX_SERVING_CONFIG", "MLX_SERVING_ENV"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="mlx-serving config")
    config.add_arguments(parser)
    return config.run(parser.parse_args(arguments))


def test_show_prints_every_value_with_its_origin_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("server:\n  api_key: hunter2\n")
    assert run("show", "--config", "c.yaml", "--set", "server.port=9") == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    found = {path: (value, origin) for path, value, origin in rows}
    assert found["server.port"] == ("9", "flag --set server.port=…")
    assert found["server.api_key"] == ("**********", "file c.yaml line 2")
    assert found["server.admin_key"] == ("null", "default")
    assert found["models.served.0.model"] == ("smollm2-135m", "default")


def test_show_as_json_maps_paths_to_values_and_origins(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("environments: {e: {server: {port: 5}}}\n")
    assert run("show", "--config", "c.yaml", "--env", "e", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["server.port"] == {"value": 5, "origin": "overlay e in c.yaml line 1"}
    assert shown["generation.timeout_s"] == {"value": 300.0, "origin": "default"}


def test_show_draws_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert run("show", "--set", "models.default=x[/b]") == 0
    out = capsys.readouterr().out
    assert "setting" in out
    assert "x[/b]" in out


def test_check_says_in_one_line_that_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mlx-serving.yaml").write_text("server: {port: 1}\nenvironments: {e: {}}\n")
    assert run("check", "--env", "e") == 0
    out = capsys.readouterr().out
    assert out.startswith("the configuration is valid (file mlx-serving.yaml, overlay e; 1 of ")
    assert out.count("\n") == 1


@pytest.mark.parametrize("action", ["check", "show"])
def test_an_invalid_configuration_ends_in_2_with_every_problem_and_its_fix(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(action, "--set", "server.prot=1", "--set", "server.port=x") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "2 problems in the configuration\n\n"
        "server.port: must be a valid integer, unable to parse string as an integer, got x\n"
        "  set by: flag --set server.port=…\n"
        "  fix: set server.port to a whole number, 0 to 65535 (default: 8000)\n\n"
        "server.prot: unknown key\n"
        "  set by: flag --set server.prot=…\n"
        "  fix: did you mean server.port?\n"
    )


def test_check_as_json_lists_the_issues(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--json", "--set", "server.port=x") == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] is False
    assert [issue["path"] for issue in answer["issues"]] == ["server.port"]
    assert run("check", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "file": None, "overlay": None}


def test_schema_prints_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("action", ["show", "check", "schema"])
def test_help_has_an_example(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(action, "--help")
    assert caught.value.code == 0
    assert f"mlx-serving config {action}" in capsys.readouterr().out.partition("example")[2]


def test_the_flags_of_other_verbs_come_before_set() -> None:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    flags = [from_flag("--port", "server.port", "1"), from_flag("--host", "server.host", "h")]
    loaded = load_from_arguments(parser.parse_args(["--set", "server.port=2"]), flags, {})
    assert loaded.config.server.port == 2
    assert str(loaded.provenance["server.host"]) == "flag --host"


def test_importing_the_verb_costs_no_heavy_import() -> None:
    code = "import sys, mlx_serving.cli.config; print([m for m in ('pydantic', 'yaml', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("server.max_body_bytes=1", "must be greater than or equal to 1024, got 1\n"),
        ("server.cors_origins=foo", "server.cors_origins: must match "),
        ("server.host=a b", "server.host: contains a space or a control character, got a b\n"),
    ],
)
def test_what_was_given_is_told_beside_the_limit(setting: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--set", setting) == 2
    assert told in capsys.readouterr().err
