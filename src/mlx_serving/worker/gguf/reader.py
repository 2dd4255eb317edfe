"""The header of a GGUF file. Everything it says is checked against the file's size before it is believed.

    "GGUF", version u32, number of tensors u64, number of metadata entries u64
    metadata entries: key, type u32, value
    tensors: name, number of dimensions u32, dimensions u64 (innermost first), type u32, offset u64 into the data
    padding to `general.alignment`, data

All little-endian; strings are a u64 length and UTF-8 bytes; an array is its element type u32, its length u64, its
elements.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.tensor_types import READABLE, TensorType, type_name

Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = Scalar | tuple[Scalar, ...]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 1 << 16
_STRING, _ARRAY = 8, 9
_NUMBERS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_SMALLEST_ENTRY = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` outermost first, as in numpy; `start` is its first byte in the file.

    `type_number` is the file's; `type` is None for kinds that are not read, and then `size` is 0.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    type: TensorType | None
    start: int
    size: int

    @property
    def weights(self) -> int:
        """The number of weights."""
        total = 1
        for dimension in self.shape:
            total *= dimension
        return total


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself. `tensors` in the file's order."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> Header:
    """Read the header of the GGUF file `path`.

    Raises `ModelLoadError` for what is no GGUF file, a version other than 2 and 3, a damaged header, and a file that
    ends before its last tensor does.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < len(_MAGIC):
                raise ModelLoadError(f"{path} is no GGUF file: it has {size} bytes", path=str(path))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).header()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error


class _Parser:
    """Goes once through the header. Every read checks that the bytes are there."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = 0

    def header(self) -> Header:
        version = self._version()
        tensor_count = self._count("tensors", _SMALLEST_TENSOR)
        entry_count = self._count("metadata entries", _SMALLEST_ENTRY)
        metadata: dict[str, Value] = {}
        for _ in range(entry_count):
            key = self._string("a metadata key", _MAX_NAME_BYTES)
            if key in metadata:
                self._damaged(f"the metadata has {key!r} twice")
            metadata[key] = self._value(key, self._number("I", f"the type of {key!r}"))
        unplaced = [self._tensor() for _ in range(tensor_count)]
        return Header(self._path, version, metadata, self._placed(unplaced, self._alignment(metadata)))

    def _version(self) -> int:
        magic = self._data[: len(_MAGIC)]
        if magic != _MAGIC:
            raise ModelLoadError(
                f"{self._path} is no GGUF file: it begins with {magic!r} and not with {_MAGIC!r}", path=str(self._path)
            )
        self._at = len(_MAGIC)
        version = self._number("I", "the version")
        if version in _VERSIONS:
            return version
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "big-endian GGUF" if swapped in (1, *_VERSIONS) else f"GGUF version {version}"
        raise ModelLoadError(
            f"{self._path} is {what}; little-endian versions {' and '.join(map(str, _VERSIONS))} are supported",
            path=str(self._path),
            unsupported=what,
        )

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment <= 0 or alignment % 8:
            self._damaged(f"general.alignment must be a positive multiple of 8, it is {alignment!r}")
        return alignment

    def _count(self, what: str, smallest: int) -> int:
        count = self._number("Q", f"the number of {what}")
        if count * smallest > self._size - self._at:
            self._damaged(f"it cannot hold the {count} {what} that its header announces")
        return count

    def _number(self, code: str, what: str) -> int:
        return int(self._numbers(code, 1, what)[0])

    def _numbers(self, code: str, count: int, what: str) -> tuple[int | float | bool, ...]:
        layout = f"<{count}{code}"
        start = self._advance(struct.calcsize(f"<{code}") * count, what)
        return struct.unpack_from(layout, self._data, start)

    def _string(self, what: str, limit: int | None = None) -> str:
        length = self._number("Q", f"the length of {what}")
        if limit is not None and length > limit:
            self._damaged(f"{what} is said to have {length} bytes, more than {limit}")
        start = self._advance(length, what)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            self._damaged(f"{what} is no UTF-8 text")

    def _advance(self, count: int, what: str) -> int:
        """Step over `count` bytes that are about to be read; returns where they begin."""
        if count > self._size - self._at:
            raise ModelLoadError(
                f"{self._path} is cut off: it ends at byte {self._size}, within {what}", path=str(self._path)
            )
        start = self._at
        self._at += count
        return start

    def _value(self, key: str, kind: int) -> Value:
        what = f"the value of {key!r}"
        if kind == _STRING:
            return self._string(what)
        if kind == _ARRAY:
            return self._array(key, what)
        return self._numbers(self._code(kind, what), 1, what)[0]

    def _array(self, key: str, what: str) -> tuple[Scalar, ...]:
        kind = self._number("I", f"the element type of {key!r}")
        if kind == _ARRAY:
            raise ModelLoadError(
                f"{self._path}: {what} is an array of arrays, which is not supported",
                path=str(self._path),
                unsupported=key,
            )
        if kind == _STRING:
            return tuple([self._string(what) for _ in range(self._count(f"strings of {key!r}", 8))])
        code = self._code(kind, what)
        return self._numbers(code, self._count(f"elements of {key!r}", struct.calcsize(f"<{code}")), what)

    def _code(self, kind: int, what: str) -> str:
        code = _NUMBERS.get(kind)
        if code is None:
            self._damaged(f"{what} has the unknown type {kind}")
        return code

    def _tensor(self) -> TensorInfo:
        """The next tensor, `start` still relative to the data."""
        name = self._string("the name of a tensor", _MAX_NAME_BYTES)
        dimensions = self._number("I", f"the number of dimensions of {name!r}")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            self._damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(int(n) for n in reversed(self._numbers("Q", dimensions, f"the dimensions of {name!r}")))
        number = self._number("I", f"the type of tensor {name!r}")
        offset = self._number("Q", f"the offset of tensor {name!r}")
        kind = READABLE.get(number)
        tensor = TensorInfo(name, shape, number, kind, offset, 0)
        if not all(shape):
            self._damaged(f"tensor {name!r} is empty: its shape is {shape}")
        if kind is None:
            return tensor
        if shape[-1] % kind.block_weights:
            self._damaged(
                f"{kind} tensor {name!r} has rows of {shape[-1]} weights, no multiple of {kind.block_weights}"
            )
        return TensorInfo(name, shape, number, kind, offset, tensor.weights // kind.block_weights * kind.block_bytes)

    def _placed(self, tensors: list[TensorInfo], alignment: int) -> tuple[TensorInfo, ...]:
        data_start = -(-self._at // alignment) * alignment
        placed: dict[str, TensorInfo] = {}
        for tensor in tensors:
            if tensor.name in placed:
                self._damaged(f"it has the tensor {tensor.name!r} twice")
            if tensor.start % alignment:
                self._damaged(f"tensor {tensor.name!r} is not aligned to {alignment} bytes")
            start = data_start + tensor.start
            if start + tensor.size > self._size:
                raise ModelLoadError(
                    f"{self._path} is cut off: it has {self._size} bytes, and tensor {tensor.name!r} "
                    f"({type_name(tensor.type_number)}) ends at byte {start + tensor.size}",
                    path=str(self._path),
                    tensor=tensor.name,
                )
            placed[tensor.name] = TensorInfo(
                tensor.name, tensor.shape, tensor.type_number, tensor.type, start, tensor.size
            )
        return tuple(placed.values())

    def _damaged(self, reason: str) -> NoReturn:
        raise ModelLoadError(f"{self._path} is damaged: {reason}", path=str(self._path))
