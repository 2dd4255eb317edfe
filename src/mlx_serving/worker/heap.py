"""What the C library keeps of memory that was freed: the arrays of a CPU come and go in sizes that leave holes, and
after hours of that a process takes a third more than what is in it."""

from __future__ import annotations

import ctypes
import os

import mlx.core as mx
import psutil

from mlx_serving.core.heap_use import gives_back

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BYTES = 128 << 10
"""Where glibc begins."""


class Heap:
    """Belongs to the thread that owns MLX. Does nothing where arrays are not in the heap, or the library cannot give
    back what it keeps (only glibc can)."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._library = _heap_library() if mx.default_device() == mx.Device(mx.cpu) else None
        if self._library is not None:
            _keep_large_pieces_out(self._library)
        self._before = self._kept()

    def look(self, capacity: int) -> bool:
        """Give back what is kept if that is much beside a budget of `capacity` bytes; whether it was."""
        if self._library is None:
            return False
        kept = self._kept()
        if not gives_back(kept, self._before, capacity):
            self._before = min(self._before, kept)
            return False
        self._library.malloc_trim(0)
        self._before = self._kept()
        return True

    def _kept(self) -> int:
        """Bytes that this process takes beside its arrays: the holes, and all else."""
        return self._process.memory_info().rss - mx.get_active_memory() - mx.get_cache_memory()


def _heap_library() -> ctypes.CDLL | None:
    """The C library, if it can give back what it keeps."""
    try:
        library = ctypes.CDLL(None)
        trim, option = library.malloc_trim, library.mallopt
    except (AttributeError, OSError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    option.argtypes, option.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return library


def _keep_large_pieces_out(library: ctypes.CDLL) -> None:
    """Keep large pieces out of the heap: left alone, glibc moves that bound up to 32 MiB with the pieces that are
    freed, and arrays then leave holes."""
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
