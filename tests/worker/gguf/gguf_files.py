"""Writes GGUF files, valid ones and such that break one rule, from nothing but the format's description."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

MetadataValue: TypeAlias = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True, slots=True)
class Block:
    """A kind of tensor. `halves`: where in a block there are float16 factors, which weights of about 0.05 want to be
    about `scale`.
    """

    number: int
    weights: int
    size: int
    halves: tuple[int, ...] = ()
    scale: float = 0.0


BLOCKS: Mapping[str, Block] = {
    "F32": Block(0, 1, 4),
    "F16": Block(1, 1, 2),
    "Q4_0": Block(2, 32, 18, (0,), 0.01),
    "Q4_1": Block(3, 32, 20, (0, 2), 0.005),
    "Q5_0": Block(6, 32, 22, (0,), 0.005),
    "Q5_1": Block(7, 32, 24, (0, 2), 0.003),
    "Q8_0": Block(8, 32, 34, (0,), 0.0006),
    "Q2_K": Block(10, 256, 84, (80, 82), 0.003),
    "Q3_K": Block(11, 256, 110, (108,), 0.001),
    "Q4_K": Block(12, 256, 144, (0, 2), 0.0001),
    "Q5_K": Block(13, 256, 176, (0, 2), 0.0001),
    "Q6_K": Block(14, 256, 210, (208,), 0.00003),
    "BF16": Block(30, 1, 2),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` outermost first."""

    type_number: int
    shape: tuple[int, ...]
    data: bytes


def random_tensor(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random weights of about 0.05 in the given kind: every code and factor occurs."""
    block = BLOCKS[kind]
    generator = np.random.default_rng(seed)
    count = int(np.prod(shape)) // block.weights
    plain = generator.normal(0, 0.05, count).astype(np.float32)
    match kind:
        case "F32":
            data = plain.tobytes()
        case "F16":
            data = plain.astype(np.float16).tobytes()
        case "BF16":
            data = (plain.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        case _:
            blocks = generator.integers(0, 256, (count, block.size), dtype=np.uint8)
            for at in block.halves:
                values = generator.normal(0, block.scale, (count, 1)).astype(np.float16)
                blocks[:, at : at + 2] = values.view(np.uint8)
            data = blocks.tobytes()
    return Tensor(block.number, shape, data)


def floats(values: Sequence[float]) -> Tensor:
    """A vector of float32."""
    return Tensor(0, (len(values),), struct.pack(f"<{len(values)}f", *values))


def write_gguf(
    path: Path,
    metadata: Mapping[str, MetadataValue],
    tensors: Mapping[str, Tensor],
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Write a GGUF file. Integers become u32, or u64 where they need to; lists of them i32."""
    header = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + _value(value)
    data = bytearray()
    for name, tensor in tensors.items():
        data += bytes(-len(data) % alignment)
        header += _string(name) + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        header += struct.pack("<IQ", tensor.type_number, len(data))
        data += tensor.data
    header += bytes(-len(header) % alignment)
    path.write_bytes(bytes(header + data))
    return path


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: MetadataValue) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value) if value < 2**32 else struct.pack("<IQ", 10, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case _:
            return struct.pack("<I", 9) + _array(value)


def _array(values: Sequence[str] | Sequence[int] | Sequence[float]) -> bytes:
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        return struct.pack("<IQ", 8, len(texts)) + b"".join(map(_string, texts))
    if all(isinstance(value, int) for value in values):
        return struct.pack(f"<IQ{len(values)}i", 5, len(values), *values)
    return struct.pack(f"<IQ{len(values)}f", 6, len(values), *values)
