"""What a row must draw next because its model has thought enough."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_serving.worker.sampling.logits import Rows, add_at
from mlx_serving.worker.sampling.row import SamplingRow


class ForcedTokens:
    """Nothing but the forced token is possible, as soon as the row's grammar allows it. The rows' tokens must have been
    read, see `BatchSampler.follows`."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        self._rows = rows
        self._vocabulary = vocabulary

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.thought is not None and not row.thought.is_over

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        forced: list[tuple[int, int]] = []
        for index, row in self._rows:
            token = None if row.thought is None else row.thought.see(row.drawn)
            if token is not None and (row.matcher is None or row.matcher.allows(token)):
                forced.append((index, token))
        if not forced:
            return logits
        mask = np.full((len(forced), self._vocabulary), -np.inf, dtype=np.float32)
        for place, (_, token) in enumerate(forced):
            mask[place, token] = 0.0
        return add_at(logits, mx.array([index for index, _ in forced]), None, mx.array(mask))
