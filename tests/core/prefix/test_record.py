from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.prefix.record import (
    KEY_DIGITS,
    TOKEN_BYTES,
    DiskRecord,
    chain_key,
    pack,
    root_key,
    shared_bytes,
    unpack,
)

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=12)


@given(TOKENS)
def test_packed_tokens_come_out_as_they_went_in(token_ids: list[int]) -> None:
    assert unpack(pack(token_ids)) == tuple(token_ids)


def test_a_root_is_that_of_its_model_its_salt_and_its_kind() -> None:
    roots = [root_key("m", "", "blocks"), root_key("m", "", "state"), root_key("n", "", "blocks")]
    roots += [root_key("m", "s", "blocks"), root_key("ms", "", "blocks")]
    assert len(set(roots)) == len(roots)
    assert root_key("m", "s", "blocks") == roots[3]
    assert all(len(root) == KEY_DIGITS for root in roots)


def test_a_key_is_that_of_all_tokens_so_far() -> None:
    root = root_key("m", "", "blocks")
    first = chain_key(root, pack([1, 2]))
    keys = [first, chain_key(first, pack([3])), chain_key(root, pack([3])), chain_key(root, pack([1, 2, 3])), root]
    assert len(set(keys)) == len(keys)
    assert chain_key(first, pack([3])) == keys[1]


@given(TOKENS, TOKENS, TOKENS)
def test_what_two_begin_with_is_counted_in_whole_tokens(beginning: list[int], one: list[int], other: list[int]) -> None:
    left, right = [*beginning, *one], [*beginning, *other]
    expected = 0
    while expected < min(len(left), len(right)) and left[expected] == right[expected]:
        expected += 1
    assert shared_bytes(pack(left), pack(right)) == expected * TOKEN_BYTES


def test_a_record_knows_where_it_ends() -> None:
    record = DiskRecord("k", "p", "m", start=5, tokens=pack([1, 2, 3]), size=1, used_at=0)
    assert (record.count, record.end) == (3, 8)
