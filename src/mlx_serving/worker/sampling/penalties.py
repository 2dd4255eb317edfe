"""Penalties: tokens that came before become less likely, or more.

Each class serves the rows of a batch that ask for it and leaves the others' logits as they are. What is fed at a step
is known to the device before the host has read it, so the memory of what came before is kept there.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_serving.worker.sampling.logits import Rows, add_at, column
from mlx_serving.worker.sampling.row import SamplingRow

_LARGEST_FACTOR = 1e20  # beyond, logits over temperature leave the range of float32; nothing outweighs it anyway


class RecentTokens:
    """The last `width` tokens of some sequences, the newest last; where there were none, what `fillers` says."""

    def __init__(self, histories: Sequence[Sequence[int]], width: int, fillers: Sequence[int]) -> None:
        recent = np.empty((len(histories), width), dtype=np.int32)
        for row, (history, filler) in enumerate(zip(histories, fillers, strict=True)):
            kept = history[-width:]
            recent[row, : width - len(kept)] = filler
            recent[row, width - len(kept) :] = kept
        self._recent = mx.array(recent)

    def push(self, tokens: mx.array) -> mx.array:
        """Add the tokens, [rows, 1] int32, and return all, [rows, width]."""
        self._recent = mx.concatenate([self._recent[:, 1:], tokens], axis=1)
        return self._recent


class RepetitionPenalty:
    """Of tokens among the last ones of prompt and answer, positive logits are divided and negative ones multiplied
    (Keskar et al., arXiv:1909.05858)."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        windows = [_window(row) for _, row in rows]
        width = max(windows)
        histories = [row.history(width) for _, row in rows]
        self._index = mx.array([index for index, _ in rows])
        self._first = self._index[:, None] * vocabulary
        # Before the first token of a sequence stands one that came later: it is in the window as long as they are.
        fillers = [(history or row.prompt)[-1] for history, (_, row) in zip(histories, rows, strict=True)]
        self._recent = RecentTokens(histories, width, fillers)
        within = mx.arange(width - 1, -1, -1) < mx.array(windows)[:, None]
        self._within = within if min(windows) < width else None
        self._penalty = column([_factor(row) for _, row in rows])

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.sampling.repetition_penalty != 1.0

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        newest = inputs[self._index].astype(mx.int32)[:, None]
        recent = self._recent.push(newest)
        # A token that counts stands for those that do not: what is written twice must be written the same.
        tokens = recent if self._within is None else mx.where(self._within, recent, newest)
        places, flat = mx.flatten(self._first + tokens), mx.flatten(logits)
        chosen = mx.unflatten(flat[places], 0, tokens.shape)
        penalised = mx.where(chosen > 0, chosen / self._penalty, chosen * self._penalty)
        return mx.unflatten(mx.put_along_axis(flat, places, mx.flatten(penalised), axis=0), 0, logits.shape)


class AnswerPenalties:
    """Subtracted from tokens of the answer: `presence_penalty` once, `frequency_penalty` for every occurrence."""

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        self._rows = [row for _, row in rows]
        self._index = mx.array([index for index, _ in rows])
        self._presence = column([row.sampling.presence_penalty for row in self._rows])
        self._frequency = column([row.sampling.frequency_penalty for row in self._rows])
        counts = [np.bincount(row.answered(), minlength=vocabulary) for row in self._rows]
        self._counts = mx.array(np.stack(counts).astype(np.float32))

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.sampling.presence_penalty != 0 or row.sampling.frequency_penalty != 0

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        # What is fed to a row that has drawn nothing yet is the prompt's last token: no part of its answer.
        answers = mx.array([float(row.position > 0) for row in self._rows])
        self._counts = add_at(self._counts, mx.arange(len(self._rows)), inputs[self._index], answers)
        subtracted = self._frequency * self._counts + self._presence * (self._counts > 0)
        return add_at(logits, self._index, None, -subtracted)


def _window(row: SamplingRow) -> int:
    """Tokens that count: no more than there can be, because memory is taken for them."""
    answer = row.sampling.max_tokens if row.max_tokens is None else row.max_tokens
    most = len(row.prompt) + max(answer, row.position + 1)
    return min(row.sampling.repetition_context_size or most, most)


def _factor(row: SamplingRow) -> float:
    return min(max(row.sampling.repetition_penalty, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)
