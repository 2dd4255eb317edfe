"""Blocks of keys and values are cut anew without a token lost, and not copied where they need not be."""

from __future__ import annotations

from typing import cast

import mlx.core as mx
import pytest

from mlx_serving.worker.prefix.kv import Cutter, KvBlock, within


def _block(start: int, end: int) -> KvBlock:
    """Whose values say which token they are of."""
    tokens = mx.arange(start, end)[None, None, :, None]
    return KvBlock([(tokens, tokens + 1000), (tokens + 2000, tokens + 3000)])


def _tokens(block: KvBlock) -> list[list[int]]:
    return [cast("list[int]", array[0, 0, :, 0].tolist()) for layer in block.layers for array in layer]


def _expected(start: int, end: int) -> list[list[int]]:
    return [[token + layer for token in range(start, end)] for layer in (0, 1000, 2000, 3000)]


@pytest.mark.parametrize("lengths", [[4, 4, 4], [12], [1, 5, 6], [3, 1, 1, 1, 6]])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 12])
def test_blocks_are_cut_to_any_size(lengths: list[int], size: int) -> None:
    begin, blocks, end = 8, list[KvBlock](), 8
    for length in lengths:
        blocks.append(_block(end, end + length))
        end += length
    cutter = Cutter(blocks, begin)
    for start in range(begin, end, size):
        stop = min(start + size, end)
        assert _tokens(cutter.cut(start, stop)) == _expected(start, stop)


def test_what_need_not_be_cut_is_not_copied() -> None:
    blocks = [_block(0, 4), _block(4, 8)]
    cutter = Cutter(blocks, 0)
    assert cutter.cut(0, 4) is blocks[0]
    assert cutter.cut(4, 8) is blocks[1]
    assert within(blocks[0], 0, 4) is blocks[0]
    assert _tokens(within(blocks[0], 1, 3)) == _expected(1, 3)
