"""What a safetensors file says it holds: its header, read without its weights.

The file begins with the length of the header (8 bytes, little endian), then the header as JSON, then the tensors
without a gap: https://github.com/huggingface/safetensors describes the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dtype` in the format's words (`F32`, `BF16`, `U32`), and the bytes that it takes."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def weight_files(directory: Path) -> list[Path]:
    """Those of a model's directory that it is loaded from. What lies beside them, such as the same weights in the form
    of whoever trained it (`consolidated.safetensors`), is not read."""
    return sorted(directory.glob("model*.safetensors")) or sorted(directory.glob("*.safetensors"))


def read_header(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by their names.

    Raises `ValueError`, which says what is wrong, for a file that cannot be what it says: a header that is none, or
    tensors that do not fill the file to its end exactly. Raises `OSError` for one that cannot be read.
    """
    with file.open("rb") as source:
        size = source.seek(0, 2)
        source.seek(0)
        length = int.from_bytes(source.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 2 <= length <= min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise ValueError(f"it has no header: {size:,} bytes, of which the header would take {length:,}")
        text = source.read(length)
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries.pop(_METADATA, None)
        tensors = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
    except msgspec.MsgspecError as error:
        raise ValueError(f"its header is damaged: {error}") from None
    _require_whole(tensors, size - _LENGTH_BYTES - length)
    return {
        name: Tensor(entry.dtype, tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0])
        for name, entry in tensors.items()
    }


def _require_whole(tensors: Mapping[str, _Entry], size: int) -> None:
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != position or end < begin:
            raise ValueError(f"its header is damaged: {name} begins at {begin:,}, not at {position:,}")
        position = end
    if position != size:
        raise ValueError(
            f"it is {'cut off' if size < position else 'too long'}: {position:,} bytes of tensors are "
            f"expected, and there are {size:,}"
        )
