from mlx_serving.config.document import Document, choose_overlay, parse_document, with_variables
from mlx_serving.config.origin import DEFAULT, InFile, InFlag, InVariable
from mlx_serving.config.tree import Leaf, Table, find, plain

TEXT = """\
server:
  port: 1
scheduler:
environments:
  production:
    server:
      port: 2
  staging:
"""


def document(text: str) -> Document:
    found, issues = parse_document(text, "c.yaml")
    assert issues == []
    assert found is not None
    return found


def test_sections_and_overlays_are_told_apart_and_origins_name_the_overlay() -> None:
    read = document(TEXT)
    assert plain(read.root) == {"server": {"port": "1"}}
    assert find(read.root, ("server", "port")) == Leaf("1", InFile("c.yaml", 2))
    assert find(read.overlays["production"], ("server", "port")) == Leaf("2", InFile("c.yaml", 7, "production"))


def test_a_section_or_overlay_of_comments_only_is_empty() -> None:
    read = document(TEXT)
    assert "scheduler" not in read.root.entries
    assert plain(read.overlays["staging"]) == {}


def test_an_empty_file_sets_nothing() -> None:
    for text in ("", "# nothing\n", "---\n", "null\n"):
        assert plain(document(text).root) == {}


def test_a_file_that_is_no_mapping_is_refused() -> None:
    read, issues = parse_document("- a\n- b\n", "c.yaml")
    assert read is None
    assert [issue.message for issue in issues] == ["the file must be a mapping of sections"]


def test_overlays_that_are_no_mappings_are_refused() -> None:
    _, issues = parse_document("environments: [a]\n", "c.yaml")
    assert [(issue.path, issue.message) for issue in issues] == [
        (("environments",), "must be a mapping of names to sections")
    ]
    _, issues = parse_document("environments: {a: 1}\n", "c.yaml")
    assert [(issue.path, issue.message) for issue in issues] == [
        (("environments", "a"), "must be a mapping of sections")
    ]


def test_an_unknown_overlay_names_the_closest_one() -> None:
    overlay, issues = choose_overlay(document(TEXT), "prodution", InFlag("--env"))
    assert overlay is None
    assert [(issue.origin, issue.suggestion) for issue in issues] == [(InFlag("--env"), "did you mean 'production'?")]


def test_an_overlay_like_none_gets_the_list_of_all() -> None:
    _, issues = choose_overlay(document(TEXT), "xyz", InFlag("--env"))
    assert [issue.suggestion for issue in issues] == ["choose one of: production, staging"]


def test_an_overlay_without_a_file_is_an_error() -> None:
    _, issues = choose_overlay(None, "production", InVariable("MLX_SERVING_ENV"))
    assert [issue.suggestion for issue in issues] == [
        "add it to a configuration file under `environments`, or choose none"
    ]


def test_a_value_that_is_a_reference_becomes_the_variable_and_says_so() -> None:
    root = Table({"a": Leaf("${KEY}", InFile("f", 1))}, DEFAULT)
    changed, issues = with_variables(root, {"KEY": "x"})
    assert issues == []
    assert find(changed, ("a",)) == Leaf("x", InFile("f", 1, variable="KEY"))


def test_only_whole_values_in_a_file_are_references() -> None:
    entries = {
        "part": Leaf("x${KEY}", InFile("f", 1)),
        "bare": Leaf("$KEY", InFile("f", 2)),
        "variable": Leaf("${KEY}", InVariable("V")),
        "flag": Leaf("${KEY}", InFlag("--set a=…")),
    }
    root = Table(entries, DEFAULT)
    assert with_variables(root, {"KEY": "x"}) == (root, [])


def test_a_reference_to_a_variable_that_is_not_set_is_an_error() -> None:
    root = Table({"a": Table({"b": Leaf("${KEY}", InFile("f", 1))}, DEFAULT)}, DEFAULT)
    _, issues = with_variables(root, {})
    assert [(issue.path, issue.message) for issue in issues] == [
        (("a", "b"), "the environment variable KEY is not set")
    ]
