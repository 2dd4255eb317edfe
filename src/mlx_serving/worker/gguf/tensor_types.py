"""The kinds of tensor in GGUF files, as numbered by ggml's `enum ggml_type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorType:
    """A kind of tensor that is read: `block_bytes` bytes hold `block_weights` consecutive weights of a row."""

    name: str
    block_weights: int
    block_bytes: int

    def __str__(self) -> str:
        return self.name


F32 = TensorType("F32", 1, 4)
F16 = TensorType("F16", 1, 2)
BF16 = TensorType("BF16", 1, 2)
Q4_0 = TensorType("Q4_0", 32, 18)
Q4_1 = TensorType("Q4_1", 32, 20)
Q5_0 = TensorType("Q5_0", 32, 22)
Q5_1 = TensorType("Q5_1", 32, 24)
Q8_0 = TensorType("Q8_0", 32, 34)
Q2_K = TensorType("Q2_K", 256, 84)
Q3_K = TensorType("Q3_K", 256, 110)
Q4_K = TensorType("Q4_K", 256, 144)
Q5_K = TensorType("Q5_K", 256, 176)
Q6_K = TensorType("Q6_K", 256, 210)

READABLE: Mapping[int, TensorType] = {
    0: F32,
    1: F16,
    2: Q4_0,
    3: Q4_1,
    6: Q5_0,
    7: Q5_1,
    8: Q8_0,
    10: Q2_K,
    11: Q3_K,
    12: Q4_K,
    13: Q5_K,
    14: Q6_K,
    30: BF16,
}

_UNREADABLE: Mapping[int, str] = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def type_name(number: int) -> str:
    """What ggml calls the kind `number`."""
    readable = READABLE.get(number)
    return readable.name if readable else _UNREADABLE.get(number, f"number {number}")
