"""What a row is biased to, and what it may not draw.

Each class serves the rows of a batch that ask for it and leaves the others' logits as they are.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_serving.worker.sampling.logits import Rows, add_at
from mlx_serving.worker.sampling.penalties import RecentTokens
from mlx_serving.worker.sampling.row import SamplingRow

_NOTHING = -1  # before the first token of an answer
_ANYTHING = -2  # before the first token of a banned sequence


class Bias:
    """`logit_bias`, and banned tokens as biases that nothing outweighs, in one sparse addition."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        entries = [(index, token, bias) for index, row in rows for token, bias in _biases(row)]
        self._row = mx.array([entry[0] for entry in entries])
        self._token = mx.array([entry[1] for entry in entries])
        self._bias = mx.array([entry[2] for entry in entries])

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return bool(_biases(row))

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        return add_at(logits, self._row, self._token, self._bias)


class AllowedTokens:
    """Nothing but `allowed_token_ids` is possible."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        mask = np.full((len(rows), vocabulary), -np.inf, dtype=np.float32)
        for place, (_, row) in enumerate(rows):
            mask[place, list(row.sampling.allowed_token_ids or ())] = 0.0
        self._index = mx.array([index for index, _ in rows])
        self._mask = mx.array(mask)

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.sampling.allowed_token_ids is not None

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        return add_at(logits, self._index, None, self._mask)


class MinTokens:
    """What would end the answer is impossible before it has `min_tokens` tokens."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        self._rows = rows
        self._short: list[int] = []
        self._row = self._token = mx.array([], dtype=mx.int32)

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.position < row.sampling.min_tokens and bool(row.rules.ends)

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        short = [index for index, row in self._rows if self.is_asked(row)]
        if short != self._short:
            entries = [(index, token) for index, row in self._rows if index in short for token in row.rules.ends]
            self._short = short
            self._row = mx.array([entry[0] for entry in entries])
            self._token = mx.array([entry[1] for entry in entries])
        return add_at(logits, self._row, self._token, mx.array(-mx.inf)) if short else logits


class BannedSequences:
    """The last token of a banned sequence is impossible where the answer ends with the others."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        self._rows = [row for _, row in rows]
        entries = [(place, banned) for place, row in enumerate(self._rows) for banned in row.rules.banned]
        width = max(max(len(banned) for _, banned in entries) - 1, 1)
        before = np.full((len(entries), width), _ANYTHING, dtype=np.int32)
        for entry, (_, banned) in enumerate(entries):
            before[entry, width - len(banned) + 1 :] = banned[:-1]
        self._index = mx.array([index for index, _ in rows])
        self._recent = RecentTokens([row.answered() for row in self._rows], width, [_NOTHING] * len(rows))
        self._place = mx.array([place for place, _ in entries])
        self._before = mx.array(before)
        self._last = mx.array([banned[-1] for _, banned in entries])

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return bool(row.rules.banned)

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        answers = mx.array([row.position > 0 for row in self._rows])
        newest = mx.where(answers, inputs[self._index].astype(mx.int32), _NOTHING)
        recent = self._recent.push(newest[:, None])
        matches = ((self._before == _ANYTHING) | (self._before == recent[self._place])).all(axis=1)
        return add_at(logits, self._index[self._place], self._last, mx.where(matches, -mx.inf, 0.0))


def _biases(row: SamplingRow) -> list[tuple[int, float]]:
    chosen = row.sampling
    return [*chosen.logit_bias.items(), *((token, -np.inf) for token in chosen.banned_token_ids)]
