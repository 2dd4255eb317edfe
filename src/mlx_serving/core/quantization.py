"""How a model's weights are packed when it is loaded, and what they take then.

MLX packs each row of a matrix in groups: so many bits a weight, and for each group a scale, in mode `affine` also an
offset, both in the type that the weights had. The other modes have scales of 8 bits and one choice of bits and group
each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlx_serving.errors import InvalidRequest

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
_FIXED = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
_DEFAULT_GROUP = 64
_AFFINE = re.compile(r"(?:int)?(?P<bits>\d{1,4})(?:[ -]?bits?)?(?:-g(?P<group>\d{1,6}))?")
_WORDS = "none, 4bit, 4bit-g32 (2, 3, 4, 5, 6 or 8 bits, groups of 32, 64 or 128), mxfp4, mxfp8 or nvfp4"

# What may stay unpacked because its rows cannot be divided into groups: gates and the like. Of more than this share of
# the weights somebody would notice that they take as much as before.
MAX_UNPACKED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Quantization:
    """One that MLX has: `parse` and `of` make no others."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __str__(self) -> str:
        """As `parse` understands it."""
        return f"{self.bits}bit-g{self.group_size}" if self.mode == "affine" else self.mode

    def packed_bytes(self, weights: int, item_bytes: int) -> int:
        """What so many weights take, of which each took `item_bytes` before."""
        groups = weights // self.group_size
        of_group = 2 * item_bytes if self.mode == "affine" else 1
        return math.ceil(weights * self.bits / 8) + groups * of_group


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of `width` weights, of `item_bytes` each, in a tensor of so many `weights` in all. `name` is for people."""

    name: str
    width: int
    weights: int
    item_bytes: int


def parse(text: str | None, field: str = "quantization") -> Quantization | None:
    """What somebody wrote: `4bit`, `int4`, `4bit-g32`, `mxfp4`. None for None and `none`: as the weights are.

    Raises `InvalidRequest`, which names `field`, for what MLX cannot do.
    """
    given = (text or "none").strip().lower()
    if given == "none":
        return None
    if given in _FIXED:
        bits, group_size = _FIXED[given]
        return Quantization(bits, group_size, given)
    match = _AFFINE.fullmatch(given)
    if match is None:
        raise InvalidRequest(
            f"{field} must be {_WORDS}, got {str(text)[:100]!r}", field=field, limit=_WORDS, given=str(text)[:100]
        )
    return of(int(match["bits"]), int(match["group"]) if match["group"] else None, field=field)


def of(
    bits: int | None, group_size: int | None = None, mode: str = "affine", field: str = "quantization"
) -> Quantization:
    """The quantization with these values; those that are None are the mode's own. Raises `InvalidRequest`."""
    if mode in _FIXED:
        fixed = _FIXED[mode]
        if (bits or fixed[0], group_size or fixed[1]) != fixed:
            raise InvalidRequest(
                f"{field}: {mode} has {fixed[0]} bits in groups of {fixed[1]}, got {bits} bits and groups of "
                f"{group_size}",
                field=field,
                limit=list(fixed),
                given=[bits, group_size],
            )
        return Quantization(*fixed, mode)
    if mode != "affine":
        modes = ["affine", *_FIXED]
        raise InvalidRequest(
            f"{field}: the mode must be one of {', '.join(modes)}, got {mode[:100]!r}",
            field=field,
            limit=modes,
            given=mode[:100],
        )
    for name, value, allowed in (("bits", bits or 4, AFFINE_BITS), ("group size", group_size or 64, AFFINE_GROUPS)):
        if value not in allowed:
            raise InvalidRequest(
                f"{field}: the {name} must be one of {', '.join(map(str, allowed))}, got {value}",
                field=field,
                limit=list(allowed),
                given=value,
            )
    return Quantization(bits or 4, group_size or _DEFAULT_GROUP)


def can_pack(quantization: Quantization, width: int) -> bool:
    """Whether rows of this many weights divide into groups."""
    return width % quantization.group_size == 0


def require_packable(quantization: Quantization, matrices: Iterable[Matrix], model: str) -> None:
    """Refuse a model of whose weights too many would stay as they are. Raises `InvalidRequest`, which names one of
    them, and the groups that would do."""
    packed: list[Matrix] = []
    left: list[Matrix] = []
    for matrix in matrices:
        (packed if can_pack(quantization, matrix.width) else left).append(matrix)
    unpacked = sum(matrix.weights for matrix in left)
    everything = unpacked + sum(matrix.weights for matrix in packed)
    if not everything:
        raise InvalidRequest(f"{model} has no weights that could be quantised", field="quantization")
    if unpacked <= MAX_UNPACKED_SHARE * everything:
        return
    worst = max(left, key=lambda matrix: matrix.weights)
    fitting = [f"groups of {size}" for size in AFFINE_GROUPS if worst.width % size == 0]
    if worst.width % _FIXED["nvfp4"][1] == 0:
        fitting.append("nvfp4")
    hint = f"{' or '.join(fitting)} would do" if fitting else "no group size of MLX divides it"
    raise InvalidRequest(
        f"{model} cannot be quantised to {quantization}: rows of {worst.name} have {worst.width} weights, which "
        f"{quantization.group_size} does not divide; {hint}",
        field="quantization",
        limit=quantization.group_size,
        given=worst.width,
    )


def predicted_bytes(quantization: Quantization, matrices: Iterable[Matrix], other_bytes: int) -> int:
    """What a model of these matrices will take: `other_bytes` for the rest of it."""
    return other_bytes + sum(
        quantization.packed_bytes(matrix.weights, matrix.item_bytes)
        if can_pack(quantization, matrix.width)
        else matrix.weights * matrix.item_bytes
        for matrix in matrices
    )
