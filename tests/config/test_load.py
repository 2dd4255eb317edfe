from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.config.assignments import Assignment, from_flag
from mlx_serving.config.document import Document, parse_document
from mlx_serving.config.load import Loaded, load, resolve, values
from mlx_serving.config.origin import DEFAULT, InFile, InFlag, InVariable, dotted, variable_name
from mlx_serving.config.schema import Config
from mlx_serving.config.tree import leaves
from mlx_serving.errors import InvalidConfig

PLAIN = {dotted(path): value for path, value in leaves(values(Config()))}


def document(text: str) -> Document:
    found, issues = parse_document(text, "c.yaml")
    assert issues == []
    assert found is not None
    return found


def issues(
    text: str = "",
    *,
    environ: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    flags: Sequence[Assignment] = (),
    overlay: str | None = None,
) -> list[dict[str, str]]:
    found, problems = parse_document(text, "c.yaml")
    with pytest.raises(InvalidConfig) as caught:
        resolve(found, problems, environ=environ or {}, sets=sets, flags=flags, overlay=overlay)
    return cast("list[dict[str, str]]", caught.value.details["issues"])


def test_without_any_source_everything_is_default() -> None:
    loaded = resolve(None, environ={})
    assert loaded.config == Config()
    assert set(loaded.provenance.values()) == {DEFAULT}


def test_each_source_wins_over_the_ones_before() -> None:
    text = "server: {port: 1}\nenvironments: {e: {server: {port: 2}}}\n"
    variable = {"MLX_SERVING_SERVER__PORT": "3"}
    flag = [from_flag("--port", "server.port", "4")]

    def port(loaded: Loaded) -> tuple[int, str]:
        return loaded.config.server.port, str(loaded.provenance["server.port"])

    read = document(text)
    assert port(resolve(read, environ={})) == (1, "file c.yaml line 1")
    assert port(resolve(read, environ={}, overlay="e")) == (2, "overlay e in c.yaml line 2")
    assert port(resolve(read, environ=variable, overlay="e")) == (3, "env MLX_SERVING_SERVER__PORT")
    assert port(resolve(read, environ=variable, flags=flag)) == (4, "flag --port")
    loaded = resolve(read, environ=variable, flags=flag, sets=["server.port=5", "server.port=6"])
    assert port(loaded) == (6, "flag --set server.port=…")


def test_sources_merge_value_by_value() -> None:
    loaded = resolve(
        document("server: {port: 1, host: a}\n"), environ={"MLX_SERVING_SERVER__HOST": "b"}, sets=["worker.blas=none"]
    )
    assert (loaded.config.server.port, loaded.config.server.host, loaded.config.worker.blas) == (1, "b", "none")


def test_the_overlay_is_chosen_by_flag_else_by_variable_and_an_empty_variable_chooses_none() -> None:
    read = document("environments: {a: {server: {port: 1}}, b: {server: {port: 2}}}\n")
    variable = {"MLX_SERVING_ENV": "a"}
    assert resolve(read, environ=variable).config.server.port == 1
    assert resolve(read, environ=variable).overlay == "a"
    assert resolve(read, environ=variable, overlay="b").config.server.port == 2
    assert resolve(read, environ={"MLX_SERVING_ENV": ""}).overlay is None


def test_lists_are_replaced_whole_and_changed_by_index() -> None:
    read = document("models:\n  served:\n    - model: a/b\n    - model: c/d\n")
    loaded = resolve(read, environ={"MLX_SERVING_MODELS__SERVED__1__NAME": "x"}, sets=["models.served.2.model=e/f"])
    assert [entry.name for entry in loaded.config.models.served] == ["a/b", "x", "e/f"]
    assert loaded.provenance["models.served.1.model"] == InFile("c.yaml", 4)
    assert loaded.provenance["models.served.1.name"] == InVariable("MLX_SERVING_MODELS__SERVED__1__NAME")
    loaded = resolve(read, environ={"MLX_SERVING_MODELS__SERVED": "[{model: g/h}]"})
    assert [entry.name for entry in loaded.config.models.served] == ["g/h"]


def test_what_follows_from_a_value_has_the_origin_of_that_value() -> None:
    loaded = resolve(
        None,
        environ={},
        flags=[from_flag("--model", "models.default", "./x.gguf")],
        sets=["models.served.0.preload=no"],
    )
    assert {path: str(origin) for path, origin in loaded.provenance.items() if origin != DEFAULT} == {
        "models.default": "flag --model",
        "models.served.0.model": "flag --model",
        "models.served.0.name": "flag --model",
        "models.served.0.preload": "flag --set models.served.0.preload=…",
    }
    loaded = resolve(document("models: {served: [{model: a/b}]}\n"), environ={})
    assert loaded.provenance["models.default"] == InFile("c.yaml", 1)


def test_references_in_the_file_are_replaced_after_merging() -> None:
    read = document("server: {api_key: '${KEY}', port: '${PORT}'}\n")
    loaded = resolve(read, environ={"KEY": "s3cret", "PORT": "9"})
    assert loaded.config.server.port == 9
    assert str(loaded.provenance["server.api_key"]) == "file c.yaml line 1, from ${KEY}"
    assert resolve(read, environ={"PORT": "9"}, sets=["server.api_key=x"]).config.server.api_key is not None


SETTABLE = {
    "server.port": st.integers(0, 65535),
    "server.drain_timeout_s": st.floats(0, 100),
    "server.access_log": st.booleans(),
    "models.default": st.sampled_from(["a/b", "tiny"]),
    "models.served.0.context_length": st.none() | st.integers(1, 10),
    "generation.timeout_s": st.none() | st.floats(0.1, 100),
    "worker.backoff.jitter": st.floats(0, 1),
    "retry.max_attempts": st.integers(1, 9),
    "logging.level": st.sampled_from(["debug", "error"]),
}
SETTINGS = st.fixed_dictionaries({}, optional=SETTABLE)


def text_of(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@given(SETTINGS, SETTINGS)
def test_every_value_is_what_its_origin_says_and_provenance_covers_exactly_the_values(
    variables: dict[str, object], sets: dict[str, object]
) -> None:
    environ = {variable_name(tuple(path.split("."))): text_of(value) for path, value in variables.items()}
    loaded = resolve(None, environ=environ, sets=[f"{path}={text_of(value)}" for path, value in sets.items()])
    found = {dotted(path): value for path, value in leaves(values(loaded.config))}
    assert loaded.provenance.keys() == found.keys()
    for path, value in found.items():
        match loaded.provenance[path]:
            case InFlag() if path in sets:
                assert value == sets[path]
            case InVariable() if path in variables:
                assert value == variables[path]
                assert path not in sets
            case InFlag() | InVariable():
                assert path in ("models.served.0.model", "models.served.0.name")
            case _:
                assert value == PLAIN[path]
                assert path not in sets
                assert path not in variables


def test_all_problems_of_all_sources_are_reported_at_once() -> None:
    found = issues(
        "server: {port: 70000, hots: x}\n",
        environ={"MLX_SERVING_WORKER__MAX_RESTARTS": "few"},
        sets=["nonsense", "logging.level=warn"],
    )
    assert [(issue["path"], issue["origin"]) for issue in found] == [
        ("", "flag --set"),
        ("server.port", "file c.yaml line 1"),
        ("server.hots", "file c.yaml line 1"),
        ("worker.max_restarts", "env MLX_SERVING_WORKER__MAX_RESTARTS"),
        ("logging.level", "flag --set logging.level=…"),
    ]
    assert all(issue["suggestion"] for issue in found)


def test_an_issue_names_path_value_limit_origin_and_fix() -> None:
    (issue,) = issues("server:\n  port: 70000\n")
    assert issue == {
        "path": "server.port",
        "message": "must be less than or equal to 65535",
        "value": "70000",
        "origin": "file c.yaml line 2",
        "suggestion": "set server.port to a whole number, 0 to 65535 (default: 8000)",
    }


@pytest.mark.parametrize(
    ("sets", "suggestion"),
    [
        ("server.prot=1", "did you mean server.port?"),
        ("sever.port=1", "did you mean server?"),
        ("port=1", "did you mean server.port?"),
        ("worker.jitter=1", "did you mean worker.backoff.jitter?"),
        ("retry.jitter=1", "did you mean retry.backoff.jitter?"),
        ("logging.zzz=1", "remove it; known here: level, format"),
        ("models.served.0.nam=x", "did you mean models.served.0.name?"),
        ("server.port.x=1", "set server.port to a whole number, 0 to 65535 (default: 8000)"),
        ("worker.backoff=3", "give it keys: initial_delay_s, multiplier, max_delay_s, jitter"),
        ("logging.level=warn", "did you mean 'warning'?"),
        ("logging.level=zzz", "set logging.level to one of debug, info, warning, error (default: info)"),
        ("models.served.4.name=x", "use the index 1"),
        ("models.served.1.name=x", "set models.served.1.model to text, 1 to 1024 characters"),
        ("models.served=[]", "set models.served to a list, at least 1 entry"),
        ("models.served=x", "set models.served to a list, at least 1 entry"),
        ("models.served=[{model: abcd}, {model: abcd}]", "set models.served.1.name to text, 1 to 256 characters"),
        ("worker.heartbeat_timeout_s=1", "change the values of worker so that this holds"),
    ],
)
def test_every_problem_comes_with_a_fix(sets: str, suggestion: str) -> None:
    (issue,) = issues(sets=[sets])
    assert issue["suggestion"] == suggestion


def test_a_default_that_is_not_served_gets_the_closest_name() -> None:
    (issue,) = issues("models: {default: smollm2-135, served: [{model: smollm2-135m}, {model: a/b}]}\n")
    assert (issue["path"], issue["suggestion"]) == ("models.default", "did you mean 'smollm2-135m'?")


def test_fixes_are_spelled_as_their_source_spells_settings() -> None:
    (issue,) = issues(environ={"MLX_SERVING_SERVER__PROT": "1"})
    assert issue["suggestion"] == "did you mean MLX_SERVING_SERVER__PORT?"
    (issue,) = issues(environ={"MLX_SERVING_SERVER__PORT": "x"})
    assert issue["suggestion"].startswith("set MLX_SERVING_SERVER__PORT to a whole number")


SECRET = "hunter 2"


@pytest.mark.parametrize(
    ("text", "environ", "sets"),
    [
        ("server: {api_key: hunter 2}", {}, []),
        ("server: {api_kye: hunter 2}", {}, []),
        ("server: {api_key: [hunter 2]}", {}, []),
        ("server: hunter 2", {}, []),
        ("server: {admin_key: '${KEY}'}", {"KEY": SECRET}, []),
        ("", {"MLX_SERVING_SERVER__API_KEY": SECRET}, []),
        ("", {"MLX_SERVING_SERVER__API_KEYS": SECRET}, []),
        ("", {"MLX_SERVING_SERVER__API_KEY": f"[{SECRET}"}, []),
        ("", {}, [f"server.api_key={SECRET}"]),
        ("", {}, [f"server.api_key.x={SECRET}"]),
        ("", {}, [f"server.api_key:{SECRET}"]),
    ],
)
def test_no_error_quotes_a_secret(text: str, environ: dict[str, str], sets: list[str]) -> None:
    assert SECRET not in str(issues(text, environ=environ, sets=sets))


def test_a_reference_that_is_not_set_is_one_problem_only() -> None:
    found = issues("server: {port: '${PORT}'}\n")
    assert [(issue["path"], issue["message"]) for issue in found] == [
        ("server.port", "the environment variable PORT is not set")
    ]


def test_given_text_that_a_terminal_would_obey_is_escaped() -> None:
    (issue,) = issues(sets=["logging.level=\x1b[31m\udc80"])
    assert issue["value"] == "\\x1b[31m\\udc80"
    assert issue["message"].isprintable()


@given(
    st.lists(st.text(max_size=20), max_size=3), st.dictionaries(st.text(max_size=12), st.text(max_size=8), max_size=3)
)
def test_anything_given_ends_in_a_config_or_in_issues(sets: list[str], variables: dict[str, str]) -> None:
    environ = {f"MLX_SERVING_{name}": value for name, value in variables.items()}
    try:
        loaded = resolve(None, environ=environ, sets=[*sets, *(f"models.{text}" for text in sets)])
    except InvalidConfig as error:
        loaded = None
        problems = error.details["issues"]
    else:
        problems = None
    if loaded is None:
        assert problems
    else:
        assert loaded.provenance.keys() == {dotted(path) for path, _ in leaves(values(loaded.config))}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    directory, home = tmp_path / "work", tmp_path / "home"
    directory.mkdir()
    (home / ".config" / "mlx-serving").mkdir(parents=True)
    return directory, {"HOME": str(home)}


def test_the_first_file_that_is_found_is_the_only_one_read(places: tuple[Path, dict[str, str]]) -> None:
    directory, environ = places

    def port(config_file: str | None = None) -> int:
        return load(environ=environ, directory=directory, config_file=config_file).config.server.port

    assert port() == 8000
    user = Path(environ["HOME"]) / ".config" / "mlx-serving" / "config.yaml"
    user.write_text("server: {port: 1}\n")
    assert port() == 1
    environ["XDG_CONFIG_HOME"] = str(directory / "xdg")
    assert port() == 8000
    (directory / "xdg" / "mlx-serving").mkdir(parents=True)
    (directory / "xdg" / "mlx-serving" / "config.yaml").write_text("server: {port: 2}\n")
    assert port() == 2
    (directory / "mlx-serving.yaml").write_text("server: {port: 3}\n")
    assert port() == 3
    (directory / "variable.yaml").write_text("server: {port: 4}\n")
    environ["MLX_SERVING_CONFIG"] = "variable.yaml"
    assert port() == 4
    (directory / "flag.yaml").write_text("server: {port: 5}\n")
    assert port("flag.yaml") == 5


def test_no_home_means_no_file_of_the_user(tmp_path: Path) -> None:
    assert load(environ={"XDG_CONFIG_HOME": "relative"}, directory=tmp_path).file is None


def test_the_origin_names_the_file_that_was_read(places: tuple[Path, dict[str, str]]) -> None:
    directory, environ = places
    path = directory / "mlx-serving.yaml"
    path.write_text("\ufeffserver:\n  port: 3\n", encoding="utf-8")
    loaded = load(environ=environ, directory=directory)
    assert loaded.file == str(path)
    assert loaded.provenance["server.port"] == InFile(str(path), 2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read: No such file or directory"), (b"a: \xff", "is not UTF-8 text (byte 3)")],
)
def test_a_file_that_was_asked_for_and_cannot_be_read_is_an_error(
    places: tuple[Path, dict[str, str]], content: bytes | None, problem: str
) -> None:
    directory, environ = places
    if content is not None:
        (directory / "c.yaml").write_bytes(content)
    environ["MLX_SERVING_CONFIG"] = "c.yaml"
    with pytest.raises(InvalidConfig) as caught:
        load(environ=environ, directory=directory)
    (issue,) = cast("list[dict[str, str]]", caught.value.details["issues"])
    assert problem in issue["message"]
    assert issue["origin"] == "env MLX_SERVING_CONFIG"


def test_a_syntax_error_says_file_line_and_column(places: tuple[Path, dict[str, str]]) -> None:
    directory, environ = places
    (directory / "mlx-serving.yaml").write_text("server:\n  port: [1\n")
    with pytest.raises(InvalidConfig, match=r"line 3, column 1") as caught:
        load(environ=environ, directory=directory)
    (issue,) = cast("list[dict[str, str]]", caught.value.details["issues"])
    assert issue["origin"] == f"file {directory / 'mlx-serving.yaml'} line 3"


def test_duplicate_keys_are_reported_together_with_everything_else() -> None:
    found = issues("server:\n  port: 1\n  port: 2\n  zzz: 3\n")
    assert [(issue["path"], issue["message"]) for issue in found] == [
        ("server.port", "is set twice, first on line 2"),
        ("server.zzz", "unknown key"),
    ]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("MLX_SERVING_PORT", "did you mean MLX_SERVING_SERVER__PORT?"),
        ("MLX_SERVING_SERVER_PORT", "did you mean MLX_SERVING_SERVER__PORT?"),
        ("MLX_SERVING_WORKER_MAX_RESTARTS", "did you mean MLX_SERVING_WORKER__MAX_RESTARTS?"),
        ("MLX_SERVING_WORKRS", "did you mean MLX_SERVING_WORKERS?"),
        ("MLX_SERVING_FOO", "remove it; known here: server"),
    ],
)
def test_a_variable_that_means_no_setting_is_an_error(name: str, fix: str) -> None:
    (issue,) = issues(environ={name: "1"})
    assert (issue["message"], issue["origin"]) == ("unknown key", f"env {name}")
    assert issue["suggestion"].startswith(fix)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a file without an end")
def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(environ={}, config_file="/dev/zero", directory=tmp_path)
    (issue,) = cast("list[dict[str, str]]", caught.value.details["issues"])
    assert issue["message"] == "the configuration file /dev/zero has more than 4194304 bytes"
