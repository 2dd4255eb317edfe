from __future__ import annotations

import platform
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_serving.worker.heap import Heap

MIB = 1 << 20
SIZE = 60_000
"""Below what glibc takes from the system, and gives back to it, in one piece."""


@pytest.fixture(autouse=True)
def on_the_processor() -> None:
    if platform.libc_ver()[0] != "glibc" or mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("only glibc's heap is looked after, and only where arrays are in it")


# The heap of a process that has run other tests has holes of its own.
_IN_A_FRESH_PROCESS = f"""
import psutil
from mlx_serving.worker.heap import Heap

MIB, SIZE = {MIB}, {SIZE}
process = psutil.Process()
heap = Heap()
large = bytearray(8 * MIB)
del large  # with which glibc would move its bound
before = process.memory_info().rss
"""


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", _IN_A_FRESH_PROCESS + program], check=True)


def test_holes_in_the_heap_go_back_to_the_system() -> None:
    run("""
blocks = [bytearray(SIZE) for _ in range(2000)]
assert process.memory_info().rss - before > 80 * MIB
del blocks[:-1]  # the last one holds what is before it
assert heap.look(100 * MIB)
assert process.memory_info().rss - before < 40 * MIB
assert not heap.look(100 * MIB), "there is no more"
assert len(blocks[0]) == SIZE
""")


def test_large_pieces_go_back_as_they_are_freed() -> None:
    run("""
blocks = [bytearray(MIB) for _ in range(80)]
del blocks[:-1]
assert process.memory_info().rss - before < 20 * MIB
""")


def test_what_is_in_use_or_small_beside_the_budget_is_left_alone() -> None:
    heap = Heap()
    array = mx.zeros((8 * MIB,))
    mx.eval(array)  # pyright: ignore[reportUnknownMemberType]  MLX's stub leaves its arguments untyped
    assert not heap.look(200 * MIB)
    blocks = [bytearray(SIZE) for _ in range(2000)]
    assert not heap.look(100_000 * MIB)
    assert (array.nbytes, len(blocks)) == (32 * MIB, 2000)
