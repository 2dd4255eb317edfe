from __future__ import annotations

import ctypes
import platform

import mlx.core as mx
import psutil
import pytest

from mlx_serving.worker.heap import Heap

MIB = 1 << 20
SIZE = 60_000
"""Below what glibc takes from the system, and gives back to it, in one piece."""


@pytest.fixture(autouse=True)
def on_the_processor() -> None:
    if platform.libc_ver()[0] != "glibc" or mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("only glibc's heap is looked after, and only where arrays are in it")


def test_holes_in_the_heap_go_back_to_the_system() -> None:
    process = psutil.Process()
    ctypes.CDLL(None).malloc_trim(0)  # else holes that tests before left take the blocks
    heap = Heap()
    before = process.memory_info().rss
    blocks = [bytearray(SIZE) for _ in range(2000)]
    full = process.memory_info().rss
    assert full - before > 80 * MIB
    del blocks[:-1]  # the last one holds what is before it
    assert heap.look(100 * MIB)
    assert process.memory_info().rss - before < 40 * MIB
    assert not heap.look(100 * MIB)  # there is no more
    assert len(blocks[0]) == SIZE


def test_large_pieces_go_back_as_they_are_freed() -> None:
    process = psutil.Process()
    Heap()
    del (large := {0: bytearray(8 * MIB)})[0]  # with which glibc would move its bound
    before = process.memory_info().rss
    blocks = [bytearray(MIB) for _ in range(80)]
    del blocks[:-1]
    assert process.memory_info().rss - before < 20 * MIB
    assert (large, len(blocks)) == ({}, 1)


def test_what_is_in_use_or_small_beside_the_budget_is_left_alone() -> None:
    heap = Heap()
    array = mx.zeros((8 * MIB,))
    mx.eval(array)  # pyright: ignore[reportUnknownMemberType]  MLX's stub leaves its arguments untyped
    assert not heap.look(200 * MIB)
    blocks = [bytearray(SIZE) for _ in range(2000)]
    assert not heap.look(100_000 * MIB)
    assert (array.nbytes, len(blocks)) == (32 * MIB, 2000)
