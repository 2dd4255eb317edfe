"""What is kept is found again piece by piece, for whoever keeps it elsewhere as well."""

from __future__ import annotations

from mlx_serving.core.prefix.index import PrefixIndex
from mlx_serving.core.prefix.token_chain import TokenChain, root_key

ROOT = root_key("m")


def _chain(*token_ids: int) -> TokenChain:
    return TokenChain("m", ROOT, token_ids, block_tokens=4)


def _insert(index: PrefixIndex, chain: TokenChain, end: int) -> None:
    index.insert_blocks(chain, end, tail=True, token_bytes=1, limit=1000, now=0)


def test_the_blocks_that_hold_some_tokens_are_found() -> None:
    index, chain = PrefixIndex(), _chain(*range(11))
    _insert(index, chain, 10)
    assert _ends(index, chain, 0, 10) == [4, 8, 10]
    assert _ends(index, chain, 5, 8) == [8]
    assert _ends(index, chain, 5, 9) == [8, 10]
    assert index.blocks(chain, 0, 11) is None
    assert index.blocks(_chain(9, 9, 9), 0, 3) is None


def test_a_longer_block_holds_what_a_shorter_one_held() -> None:
    index, chain = PrefixIndex(), _chain(*range(8))
    _insert(index, chain, 6)
    _insert(index, chain, 8)
    assert _ends(index, chain, 0, 6) == [4, 8]


def test_a_state_is_found_after_exactly_its_tokens() -> None:
    index, chain = PrefixIndex(), _chain(*range(8))
    index.insert_state(chain, 6, size=1, limit=1000, now=0)
    state = index.state(chain, 6)
    assert state is not None
    assert state.end == 6
    assert index.state(chain, 7) is None


def _ends(index: PrefixIndex, chain: TokenChain, start: int, end: int) -> list[int]:
    found = index.blocks(chain, start, end)
    assert found is not None
    return [entry.end for entry in found]


def test_what_goes_on_behind_blocks_is_added_only_where_these_are_kept() -> None:
    index, chain = PrefixIndex(), _chain(*range(11))
    lost = index.insert_blocks(chain, 11, tail=True, token_bytes=1, limit=1000, now=0, begin=4)
    assert (lost.added, len(index)) == ([], 0)
    _insert(index, chain, 4)
    more = index.insert_blocks(chain, 11, tail=True, token_bytes=1, limit=1000, now=0, begin=4)
    assert [(entry.end, entry.token_ids) for entry in more.added] == [(8, (4, 5, 6, 7)), (11, (8, 9, 10))]
    found = index.blocks(chain, 0, 11)
    assert found is not None
    assert [entry.end for entry in found] == [4, 8, 11]
    assert found[1].parent is found[0]
