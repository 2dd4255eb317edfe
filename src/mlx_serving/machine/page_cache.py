"""Files in the system's page cache: brought there before they are needed, and taken out of it to measure what that
costs.

The cache is the system's to give and to take: what is read ahead in vain is dropped when anybody needs the memory.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 8 << 20
_F_RDADVISE = 44  # of macOS's fcntl.h
_MAX_ADVICE_BYTES = 1 << 30  # of macOS: its count is a C int

OnBytes = Callable[[int], bool]
"""Called with the bytes of a file that were read; False ends it."""


def read_into(path: Path, on_bytes: OnBytes) -> None:
    """Read a file, for the sake of its pages: they are there when this returns, as far as memory goes. Blocks without
    the interpreter lock. Raises `OSError`."""
    buffer = bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(buffer)) and on_bytes(count):
            pass


def advise(path: Path) -> None:
    """Have the system read a file when it has nothing better to do. Returns soon. Raises `OSError`."""
    with path.open("rb", buffering=0) as file:
        advise_open(file)


def advise_open(file: io.FileIO) -> None:
    """The same for a file that is open."""
    size = os.fstat(file.fileno()).st_size
    if sys.platform == "linux":
        os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_WILLNEED)
    elif sys.platform == "darwin":
        import fcntl

        for start in range(0, size, _MAX_ADVICE_BYTES):
            wanted = struct.pack("qi", start, min(_MAX_ADVICE_BYTES, size - start))
            fcntl.fcntl(file.fileno(), _F_RDADVISE, wanted)


def drop(path: Path) -> bool:
    """Have the system forget the pages of a file; False where it cannot be told to. Raises `OSError`."""
    if sys.platform != "linux":
        return False
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())  # what is not written yet is not forgotten
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
