"""Equal names are equal beginnings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.prefix.token_chain import TokenChain, common, next_key, root_key

ROOT = root_key("model")
TOKENS = st.lists(st.integers(0, 3), max_size=70)


def chain(token_ids: list[int], root: bytes = ROOT, block: int = 16) -> TokenChain:
    return TokenChain("m", root, token_ids, block)


@given(TOKENS, TOKENS)
def test_two_beginnings_have_the_same_key_if_they_are_the_same(one: list[int], other: list[int]) -> None:
    a, b = chain(one), chain(other)
    for count in range(min(len(one), len(other)) + 1):
        assert (a.key_of(count) == b.key_of(count)) == (one[:count] == other[:count])


@given(TOKENS, TOKENS)
def test_what_two_sequences_share_is_their_common_beginning(one: list[int], other: list[int]) -> None:
    naive = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert chain(one).shared(chain(other)) == naive == common(one, other)


@given(TOKENS, st.integers(0, 70))
def test_a_sequence_that_grows_has_the_keys_of_what_it_became(token_ids: list[int], first: int) -> None:
    grown = chain(token_ids[:first])
    grown.grow(token_ids)
    grown.grow(token_ids[:first])  # an earlier state of it says nothing new
    assert (grown.keys, grown.token_ids, len(grown)) == (chain(token_ids).keys, token_ids, len(token_ids))


@pytest.mark.parametrize("other", [root_key("model", "tenant"), root_key("another"), root_key("mode", "l")])
def test_models_and_tenants_share_nothing(other: bytes) -> None:
    tokens = list(range(40))
    assert chain(tokens).shared(chain(tokens, other)) == 0
    assert not set(chain(tokens).keys) & set(chain(tokens, other).keys)


def test_what_kv_depends_on_besides_tokens_makes_another_key() -> None:
    assert next_key(ROOT, [1, 2], b"image") != next_key(ROOT, [1, 2]) != next_key(ROOT, [1, 2], b"other image")


def test_token_ids_may_be_negative() -> None:
    assert next_key(ROOT, [-1]) != next_key(ROOT, [1])
