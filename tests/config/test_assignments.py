import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.config.assignments import Assignment, from_flag, from_set_flags, from_variables
from mlx_serving.config.origin import DEFAULT, InFlag, InVariable, variable_name, variable_path
from mlx_serving.config.reference import ANY_INDEX, read_reference
from mlx_serving.config.tree import leaves, plain

PATHS = sorted(tuple("0" if part == ANY_INDEX else part for part in path) for path in read_reference().settings)


@given(st.sampled_from(PATHS))
def test_names_of_variables_round_trip_in_any_case(path: tuple[str, ...]) -> None:
    assert variable_path(variable_name(path)) == path
    assert variable_path(variable_name(path).lower()) == path


@pytest.mark.parametrize(
    "name",
    [
        "MLX_SERVING_CONFIG",
        "MLX_SERVING_ENV",
        "MLX_SERVING_CACHE",
        "MLX_SERVING_BLAS",
        "MLX_SERVING_BLAS_SETTLED",
        "PATH",
        "XMLX_SERVING_A__B",
    ],
)
def test_other_variables_are_no_settings(name: str) -> None:
    assert variable_path(name) is None
    assert from_variables({name: "x"}) == ([], [])


def test_what_kubernetes_tells_of_a_service_of_our_name_is_no_setting() -> None:
    told = {
        "MLX_SERVING_SERVICE_HOST": "10.0.0.1",
        "MLX_SERVING_SERVICE_PORT": "8000",
        "MLX_SERVING_SERVICE_PORT_HTTP": "8000",
        "MLX_SERVING_PORT": "tcp://10.0.0.1:8000",
        "MLX_SERVING_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "MLX_SERVING_PORT_8000_TCP_PROTO": "tcp",
    }
    assert from_variables(told) == ([], [])
    assert [each.path for each in from_variables({"MLX_SERVING_PORT": "9000"})[0]] == [("port",)]


def value(text: str) -> object:
    table, issues = Assignment(("a", "b"), text, DEFAULT).read()
    assert issues == []
    ((path, found),) = leaves(plain(table)) if table is not None else [((), None)]
    assert path[:2] == ("a", "b")
    return found


@pytest.mark.parametrize("text", ["sk-#1: *x", "@x", "%x", "!x", "a: b", "&x", " x ", "no", "0123", "`x`"])
def test_a_plain_value_is_taken_literally(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize("text", ["", "~", "null", " null "])
def test_an_empty_value_and_null_are_null(text: str) -> None:
    assert value(text) is None


def test_quotes_protect_null() -> None:
    assert value('"null"') == "null"


def test_brackets_and_braces_are_yaml() -> None:
    table, issues = Assignment(("a",), "[{b: 1}, x]", DEFAULT).read()
    assert issues == []
    assert table is not None
    assert plain(table) == {"a": [{"b": "1"}, "x"]}


def test_broken_yaml_is_an_issue_at_the_setting_that_does_not_quote_it() -> None:
    table, issues = Assignment(("server", "api_key"), "[hunter2", InVariable("V")).read()
    assert table is None
    assert [(issue.path, issue.origin) for issue in issues] == [(("server", "api_key"), InVariable("V"))]
    assert "hunter2" not in str(issues)


def test_variables_become_assignments() -> None:
    assignments, issues = from_variables({"MLX_SERVING_SERVER__PORT": "1", "mlx_serving_worker__backoff__jitter": "0"})
    assert issues == []
    assert assignments == [
        Assignment(("server", "port"), "1", InVariable("MLX_SERVING_SERVER__PORT")),
        Assignment(("worker", "backoff", "jitter"), "0", InVariable("mlx_serving_worker__backoff__jitter")),
    ]


def test_two_spellings_of_one_variable_are_an_error() -> None:
    _, issues = from_variables({"MLX_SERVING_SERVER__PORT": "1", "mlx_serving_server__port": "2"})
    assert [(issue.path, issue.message) for issue in issues] == [
        (("server", "port"), "is set twice, by MLX_SERVING_SERVER__PORT and mlx_serving_server__port")
    ]


@pytest.mark.parametrize("name", ["MLX_SERVING___PORT", "MLX_SERVING_SERVER__", "MLX_SERVING_A____B"])
def test_a_variable_with_an_empty_part_is_an_error(name: str) -> None:
    assignments, issues = from_variables({name: "x"})
    assert assignments == []
    assert [issue.origin for issue in issues] == [InVariable(name)]


def test_set_flags_become_assignments_in_order_and_keep_what_follows_the_first_equals_sign() -> None:
    assignments, issues = from_set_flags(["a.b=c=d", "models.served.0.name=x", "a.b="])
    assert issues == []
    assert [(assignment.path, assignment.text) for assignment in assignments] == [
        (("a", "b"), "c=d"),
        (("models", "served", "0", "name"), "x"),
        (("a", "b"), ""),
    ]
    assert str(assignments[0].origin) == "flag --set a.b=…"


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("server.port", "has no '='"),
        ("=x", "has no key before the '='"),
        ("a..b=x", "has a malformed key 'a..b'"),
        (".a=x", "has a malformed key '.a'"),
        ("a b=x", "has a malformed key 'a b'"),
    ],
)
def test_a_malformed_set_flag_says_what_is_wrong(argument: str, problem: str) -> None:
    assignments, issues = from_set_flags([argument])
    assert assignments == []
    assert [(issue.message, issue.origin) for issue in issues] == [(f"an argument of --set {problem}", InFlag("--set"))]


def test_a_flag_of_its_own_is_its_own_origin() -> None:
    assert from_flag("--port", "server.port", "1") == Assignment(("server", "port"), "1", InFlag("--port"))
