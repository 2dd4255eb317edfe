from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.config.origin import DEFAULT, InVariable
from mlx_serving.config.tree import (
    Items,
    Leaf,
    Node,
    Table,
    at,
    find,
    leaves,
    map_leaves,
    merge,
    merge_tables,
    nearest,
    plain,
)

KEYS = st.sampled_from(["a", "b", "0", "1", "2"])
TEXTS = st.sampled_from(["x", "y", None])


def leaf(text: str | None) -> Node:
    return Leaf(text, DEFAULT)


def items(children: Sequence[Node]) -> Node:
    return Items({str(index): child for index, child in enumerate(children)}, DEFAULT)


def table(entries: Mapping[str, Node]) -> Table:
    return Table(entries, DEFAULT)


NODES: st.SearchStrategy[Node] = st.recursive(
    TEXTS.map(leaf),
    lambda children: st.lists(children, max_size=3).map(items) | st.dictionaries(KEYS, children, max_size=3).map(table),
    max_leaves=8,
)
TABLES = st.dictionaries(KEYS, NODES, max_size=3).map(table)


ENTRIES = st.dictionaries(KEYS, TEXTS.map(leaf), max_size=2).map(table)
LAYERS = st.fixed_dictionaries(
    {},
    optional={
        "scalar": TEXTS.map(leaf),
        "section": ENTRIES,
        "list": st.lists(ENTRIES, max_size=3).map(items) | st.dictionaries(KEYS, ENTRIES, max_size=2).map(table),
    },
).map(table)
"""Layers that agree on what is a scalar, a list (given whole or changed by index) or a mapping."""


@given(LAYERS, LAYERS, LAYERS)
def test_layers_can_be_merged_in_any_grouping(one: Table, two: Table, three: Table) -> None:
    left = merge_tables(merge_tables(one, two), three)
    right = merge_tables(one, merge_tables(two, three))
    assert left == right
    assert plain(left) == plain(right)


@given(TABLES)
def test_an_empty_layer_changes_nothing(layer: Table) -> None:
    assert merge_tables(layer, table({})) == layer
    assert merge_tables(table({}), layer) == layer


@given(NODES)
def test_merging_a_layer_with_itself_changes_nothing(node: Node) -> None:
    assert merge(node, node) == node


@given(TABLES, TABLES)
def test_what_the_upper_layer_sets_is_what_holds(lower: Table, upper: Table) -> None:
    result = merge_tables(lower, upper)
    for path, _ in leaves(plain(upper)):
        node = find(upper, path)
        if path and isinstance(node, Leaf):
            assert find(result, path) == node


@given(TABLES, TABLES)
def test_what_the_upper_layer_does_not_mention_stays(lower: Table, upper: Table) -> None:
    result = merge_tables(lower, upper)
    for key in lower.entries.keys() - upper.entries.keys():
        assert result.entries[key] == lower.entries[key]


def test_a_list_replaces_a_list() -> None:
    assert plain(merge(items([leaf("x"), leaf("y")]), items([leaf("z")]))) == ["z"]


def test_a_table_of_indices_changes_and_appends_entries_of_a_list() -> None:
    lower = items([table({"a": leaf("x")}), leaf("y")])
    patch = table({"0": table({"b": leaf("z")}), "2": leaf("new")})
    assert plain(merge(lower, patch)) == [{"a": "x", "b": "z"}, "y", "new"]


def test_a_list_with_a_gap_is_no_list() -> None:
    assert plain(merge(items([leaf("x")]), table({"5": leaf("y")}))) == {"0": "x", "5": "y"}


def test_a_list_of_more_than_ten_entries_keeps_its_order() -> None:
    texts: list[str | None] = [str(number) for number in range(12)]
    assert plain(items([leaf(text) for text in texts])) == texts


def test_nearest_is_the_deepest_part_of_the_path_that_was_set() -> None:
    inner = Table({"b": Leaf("x", DEFAULT)}, InVariable("A"))
    root = table({"a": inner})
    assert nearest(root, ("a", "b", "c")) == Leaf("x", DEFAULT)
    assert nearest(root, ("a", "z")) == inner
    assert nearest(root, ("z",)) == root


def test_find_looks_into_no_scalar() -> None:
    assert find(table({"a": leaf("x")}), ("a", "b")) is None


@given(st.lists(KEYS, min_size=1, max_size=4).map(tuple[str, ...]))
def test_at_sets_exactly_one_path(path: tuple[str, ...]) -> None:
    root = at(path, leaf("x"), DEFAULT)
    assert list(leaves(plain(root))) == [(path, "x")]


@given(NODES)
def test_mapping_leaves_keeps_the_shape(node: Node) -> None:
    seen: list[tuple[str, ...]] = []

    def change(path: tuple[str, ...], found: Leaf) -> Leaf:
        seen.append(path)
        assert find(node, path) == found
        return found

    assert map_leaves(node, change) == node
    assert len(seen) == len(set(seen))


def test_leaves_are_scalars_and_empty_containers() -> None:
    value: object = {"a": {"b": 1, "c": []}, "d": [None, {"e": True}], "f": {}}
    assert list(leaves(value)) == [
        (("a", "b"), 1),
        (("a", "c"), []),
        (("d", "0"), None),
        (("d", "1", "e"), True),
        (("f",), {}),
    ]
