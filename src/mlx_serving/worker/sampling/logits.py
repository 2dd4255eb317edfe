"""Changing single entries of the logits of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, cast

import mlx.core as mx

from mlx_serving.worker.sampling.row import SamplingRow

Rows: TypeAlias = Sequence[tuple[int, SamplingRow]]
"""Some rows of a batch, each with its place in it."""


class LogitEdit(Protocol):
    """A change that some rows of a batch ask for. Rows that do not ask come out as they went in."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        """`rows` are those that ask."""
        ...

    @staticmethod
    def is_asked(row: SamplingRow) -> bool: ...

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """[rows, vocabulary] float32 and the tokens that were fed, [rows] -> [rows, vocabulary]. Called once a step."""
        ...


def column(values: Sequence[float]) -> mx.array:
    """[values, 1] float32."""
    return mx.array(list(values), dtype=mx.float32)[:, None]


def add_at(matrix: mx.array, rows: mx.array, columns: mx.array | None, values: mx.array) -> mx.array:
    """`matrix` with `values` added at `[rows, columns]`, or to whole rows; the same place may occur more than once."""
    place: Any = matrix.at[rows] if columns is None else matrix.at[rows, columns]
    return cast(mx.array, place.add(values))
