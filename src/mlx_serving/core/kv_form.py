"""In which form the KV caches of a model are kept: as they are computed, or packed into fewer bits.

Packed, each group of numbers along a head has two scales, so that a group of 64 takes 8.5 or 4.5 bits a number with
16-bit scales, and 9 or 5 with 32-bit ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_serving.errors import InvalidRequest

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64


@dataclass(frozen=True, slots=True)
class KvForm:
    """`bits` a number, with scales of their own for each `group_size` of them.

    Raises `InvalidRequest` for a form that there is not.
    """

    bits: int
    group_size: int = DEFAULT_GROUP_SIZE

    def __post_init__(self) -> None:
        _one_of("kv_bits", self.bits, BITS)
        _one_of("kv_group_size", self.group_size, GROUP_SIZES)

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size}"

    def require(self, head_dims: Iterable[int], model_id: str) -> None:
        """Raises `InvalidRequest` when the heads of a model's keys and values, so many numbers wide, do not divide into
        such groups."""
        widths = sorted(set(head_dims))
        if all(width % self.group_size == 0 for width in widths):
            return
        able = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
        hint = f"kv_group_size can be {' or '.join(map(str, able))}" if able else "no group size would do"
        raise InvalidRequest(
            f"The heads of {model_id} are {' and '.join(map(str, widths))} wide, which groups of {self.group_size} do "
            f"not divide: {hint}",
            field="kv_group_size",
            given=self.group_size,
        )


def of(bits: int | None, group_size: int | None) -> KvForm | None:
    """The form that these settings ask for; None for caches as they are computed.

    Raises `InvalidRequest` for a form that there is not, and for a group size without bits.
    """
    if bits is None:
        if group_size is not None:
            raise InvalidRequest("kv_group_size needs kv_bits", field="kv_group_size", given=group_size)
        return None
    return KvForm(bits, DEFAULT_GROUP_SIZE if group_size is None else group_size)


def _one_of(field: str, given: int, allowed: tuple[int, ...]) -> None:
    if given not in allowed:
        raise InvalidRequest(
            f"{field} must be one of {', '.join(map(str, allowed))}; got {given}", field=field, given=given
        )
