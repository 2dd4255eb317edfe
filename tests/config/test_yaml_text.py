import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.config.issues import Issue
from mlx_serving.config.origin import InFile
from mlx_serving.config.tree import Leaf, Node, find, plain
from mlx_serving.config.yaml_text import MAX_NODES, parse

SECRET = "hunter2"


def read(text: str) -> Node:
    node, issues = parse(text, (), lambda line: InFile("f", line))
    assert issues == []
    assert node is not None
    return node


def refuse(text: str) -> Issue:
    node, issues = parse(text, (), lambda line: InFile("f", line))
    assert node is None
    (issue,) = issues
    assert SECRET not in str(issue)
    return issue


@pytest.mark.parametrize("text", ["no", "010", "1e5", "12:30", "2024-01-01", "0x1F", "yes", ".inf", "true", "1_000"])
def test_a_scalar_stays_the_text_that_was_typed(text: str) -> None:
    assert plain(read(f"a: {text}")) == {"a": text}


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_unquoted_null_is_none_and_quoted_null_is_text(text: str) -> None:
    assert plain(read(f"a: {text}")) == {"a": None}
    assert plain(read(f"a: '{text}'")) == {"a": text}


def test_origins_name_the_line_of_the_key() -> None:
    node = read("a: 1\nb:\n  c:\n    - x\n    - y\n")
    assert find(node, ("a",)) == Leaf("1", InFile("f", 1))
    assert find(node, ("b", "c", "1")) == Leaf("y", InFile("f", 5))
    found = find(node, ("b", "c"))
    assert found is not None
    assert found.origin == InFile("f", 3)


def test_a_duplicate_key_names_both_lines() -> None:
    _, issues = parse(f"a: 1\nb: 2\na: {SECRET}\n", (), lambda line: InFile("f", line))
    assert [(issue.path, issue.message, issue.origin) for issue in issues] == [
        (("a",), "is set twice, first on line 1", InFile("f", 3))
    ]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        (f"a: [{SECRET}", "expected ',' or ']', but got '<stream end>' (line 1, column", 1),
        (f"a:\n\tb: {SECRET}", "cannot start any token (line 2, column 1)", 2),
        (f"ok: 1\na: {SECRET}\n b: 2", "mapping values are not allowed here (line 3, column 3)", 3),
        (f"a: 1\nb: {SECRET}\x07", "a character that YAML does not allow (line 2, column 11)", 2),
        (f"a: !!python/object:os.system {SECRET}", "the tag tag:yaml.org,2002:python/object:os.system", 1),
        (f"a: !secret {SECRET}", "the tag !secret is not allowed", 1),
        ("a: !!binary aHVudGVyMg==", "the tag tag:yaml.org,2002:binary is not allowed", 1),
        ("b: &b {c: 1}\na:\n  <<: *b", "merge keys (<<) are not supported", 3),
        ("? [a, b]\n: 1", "a key must be text", 1),
        ("a: 1\n---\nb: 2", "but found another document", 2),
        ("a: *nowhere", "found undefined alias 'nowhere'", 1),
    ],
)
def test_what_is_not_read_says_where_and_why_without_quoting_values(text: str, message: str, line: int) -> None:
    issue = refuse(text)
    assert message in issue.message
    assert issue.origin == InFile("f", line)


def test_an_alias_repeats_its_anchor() -> None:
    assert plain(read("a: &x [1, 2]\nb: *x")) == {"a": ["1", "2"], "b": ["1", "2"]}


def test_a_text_that_stands_for_an_endless_tree_is_refused() -> None:
    assert "nested too deeply" in refuse("a: &a [*a]").message
    assert "nested too deeply" in refuse("[" * 5000).message
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
    assert f"more than {MAX_NODES} values" in refuse(f"l0: &l0 x\n{levels}").message


JSON = st.recursive(
    st.none() | st.text(max_size=8).filter(str.isprintable),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.from_regex("[a-z]{1,3}", fullmatch=True), children, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON)
def test_json_is_read_as_it_is(value: object) -> None:
    assert plain(read(json.dumps(value, ensure_ascii=False))) == value


@given(st.text(max_size=40))
def test_any_text_is_either_read_or_refused(text: str) -> None:
    node, issues = parse(text, (), lambda line: InFile("f", line))
    assert node is None or not issues or all("twice" in issue.message for issue in issues)
