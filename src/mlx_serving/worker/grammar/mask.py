"""What the grammars of a batch's rows allow, applied to their logits in one operation."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np

from mlx_serving.worker.sampling.logits import Rows
from mlx_serving.worker.sampling.row import SamplingRow


class StructureMask:
    """Nothing but what a row's matcher allows is possible. Last of all edits: what they did to other tokens does not
    matter any more."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        self._matchers = [row.matcher for _, row in rows if row.matcher is not None]
        self._index = [index for index, _ in rows]
        self._vocabulary = vocabulary

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.matcher is not None

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        packed = np.concatenate([matcher.mask for matcher in self._matchers])
        bits = np.unpackbits(packed.view(np.uint8), axis=1, count=self._vocabulary, bitorder="little")
        if len(self._index) < logits.shape[0]:
            every = np.ones((logits.shape[0], self._vocabulary), dtype=np.uint8)
            every[self._index] = bits
            bits = every
        allowed = mx.array(cast(Any, bits.view(np.bool_)))
        return mx.where(allowed, logits, -mx.inf)
