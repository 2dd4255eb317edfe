"""Choosing the next token of every row of a batch, in one go.

Parameters are arrays, rebuilt only when the membership of the batch changes; greedy and sampled rows share the launch.
The order is the field's: bias, penalties, temperature, then top-k, top-p and min-p, then one draw.

Randomness is a function of (seed, position): the host computes one uniform number a row and step, so a seeded sequence
gives the same tokens alone, in any crowd, and after it was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx

from mlx_serving.core.sampling_defaults import ResolvedSampling

_MIN_TEMPERATURE = 1e-5  # below, logits over temperature leave the range of float32; the likeliest token is taken
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1) for the draw at `position`. The mixing is splitmix64's: Steele, Lea and Flood, OOPSLA 2014."""
    z = seed
    for value in (_GOLDEN, (position + 1) * _GOLDEN):  # the seed is mixed alone first: seeds are often small and close
        z = (z + value) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return ((z >> 40) + 0.5) / (1 << 24)  # never 0, which would choose a token without any share


@dataclass(slots=True)
class SamplingRow:
    """One sequence's parameters and what its penalties look at: the prompt, and the tokens drawn so far."""

    sampling: ResolvedSampling
    seed: int
    prompt: Sequence[int]
    drawn: list[int] = field(default_factory=list[int])
    position: int = 0

    @property
    def is_sampled(self) -> bool:
        return self.sampling.temperature >= _MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        chosen = self.sampling
        return chosen.repetition_penalty != 1.0 or chosen.presence_penalty != 0 or chosen.frequency_penalty != 0


class BatchSampler:
    """The sampler of one membership of a batch."""

    def __init__(self, rows: Sequence[SamplingRow], vocabulary: int) -> None:
        self._rows = rows
        chosen = [row.sampling for row in rows]
        sampled = [row.is_sampled for row in rows]
        self._any_sampled = any(sampled)
        self._all_sampled = all(sampled)
        self._temperatures = _column([row.sampling.temperature if row.is_sampled else 1.0 for row in rows])
        self._sampled = mx.array(sampled)
        self._filters = any(0 < one.top_k < vocabulary or one.top_p < 1 or one.min_p > 0 for one in chosen)
        self._top_k = mx.array([[min(one.top_k or vocabulary, vocabulary)] for one in chosen])
        # The sum of all shares may come out above 1 by rounding, and 1 is to keep them all.
        self._top_p = _column([one.top_p if one.top_p < 1 else math.inf for one in chosen])
        self._min_p = _column([one.min_p for one in chosen])
        self._bias = _Bias(chosen)
        self._penalties = _Penalties(rows, vocabulary) if any(row.has_penalties for row in rows) else None

    def __call__(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """[rows, vocabulary] and the tokens that were fed, [rows] -> the next tokens, [rows]."""
        logits = self._bias.apply(logits)
        if self._penalties is not None:
            logits = self._penalties.apply(logits, inputs)
        greedy = mx.argmax(logits, axis=-1)
        draws = [uniform(row.seed, row.position) if row.is_sampled else 0.0 for row in self._rows]
        for row in self._rows:
            row.position += 1
        if not self._any_sampled:
            return greedy
        drawn = self._draw(logits.astype(mx.float32) / self._temperatures, _column(draws))
        return drawn if self._all_sampled else mx.where(self._sampled, drawn, greedy)

    def _draw(self, logits: mx.array, uniforms: mx.array) -> mx.array:
        """Inverse transform sampling: the token in whose share of the cumulative probability the number falls.

        Shares stand in the order of the vocabulary whether filtered or not, so a row's draw does not depend on what
        the other rows ask for.
        """
        weights = mx.exp(logits - mx.max(logits, axis=-1, keepdims=True))
        if self._filters:
            weights = mx.where(self._kept(weights), weights, 0.0)
        return _pick(weights, uniforms)

    def _kept(self, weights: mx.array) -> mx.array:
        """[rows, vocabulary] bool: what top-k, top-p and min-p leave."""
        shares = weights / mx.sum(weights, axis=-1, keepdims=True)
        ordered = -mx.sort(-shares, axis=-1)
        before = mx.cumsum(ordered, axis=-1, inclusive=False)
        keep = (mx.arange(ordered.shape[-1]) < self._top_k) & (before < self._top_p)
        keep = keep & (ordered >= self._min_p * ordered[:, :1])
        # What is kept is a beginning of the order, so its last share tells it all. What ties with it stays, too.
        last = mx.maximum(keep.sum(axis=-1, keepdims=True), 1) - 1
        return shares >= mx.take_along_axis(ordered, last, axis=-1)


def _pick(weights: mx.array, uniforms: mx.array) -> mx.array:
    """[rows, n] shares and a number in (0, 1] a row -> the index of the first share whose end reaches the number.

    An index without a share is never taken: its end is that of the one before.
    """
    ends = mx.cumsum(weights, axis=-1)
    return (ends < uniforms * ends[:, -1:]).sum(axis=-1)


class _Bias:
    """`logit_bias` of all rows as one sparse addition."""

    def __init__(self, chosen: Sequence[ResolvedSampling]) -> None:
        entries = [(row, token, bias) for row, one in enumerate(chosen) for token, bias in one.logit_bias.items()]
        self._entries = bool(entries)
        self._row = mx.array([entry[0] for entry in entries], dtype=mx.int32)
        self._token = mx.array([entry[1] for entry in entries], dtype=mx.int32)
        self._value = mx.array([entry[2] for entry in entries], dtype=mx.float32)

    def apply(self, logits: mx.array) -> mx.array:
        if not self._entries:
            return logits
        return _add_at(logits, self._row, self._token, self._value.astype(logits.dtype))


class _Penalties:
    """Repetition over prompt and answer (Keskar et al., arXiv:1909.05858), presence and frequency over the answer."""

    def __init__(self, rows: Sequence[SamplingRow], vocabulary: int) -> None:
        chosen = [row.sampling for row in rows]
        self._repetition = _column([one.repetition_penalty for one in chosen])
        self._presence = _column([one.presence_penalty for one in chosen])
        self._frequency = _column([one.frequency_penalty for one in chosen])
        self._index = mx.arange(len(rows))
        self._ones = mx.ones((len(rows),))
        # The last token launched is fed next and counted then, whether or not the host has read it by now.
        drawn = [row.drawn[: max(row.position - 1, 0)] for row in rows]
        self._seen = _counts([[*row.prompt, *ids] for row, ids in zip(rows, drawn, strict=True)], vocabulary)
        self._drawn = _counts(drawn, vocabulary)
        # What is fed to a row that has drawn nothing yet is the prompt's last token: no part of its answer.
        self._answers = [row.position > 0 for row in rows]

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        self._seen = _add_at(self._seen, self._index, inputs, self._ones)
        self._drawn = _add_at(self._drawn, self._index, inputs, mx.array(self._answers, dtype=mx.float32))
        self._answers = [True] * len(self._answers)
        seen = self._seen > 0
        penalised = mx.where(logits > 0, logits / self._repetition, logits * self._repetition)
        logits = mx.where(seen, penalised, logits)
        return logits - self._frequency * self._drawn - self._presence * (self._drawn > 0)


def _counts(tokens: Sequence[Sequence[int]], vocabulary: int) -> mx.array:
    """[rows, vocabulary] float32: how often each token occurs."""
    counts = mx.zeros((len(tokens), vocabulary))
    for row, ids in enumerate(tokens):
        if ids:
            counts = _add_at(counts, mx.full((len(ids),), row), mx.array(list(ids)), mx.ones((len(ids),)))
    return counts


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)[:, None]


def _add_at(matrix: mx.array, rows: mx.array, columns: mx.array, values: mx.array) -> mx.array:
    """`matrix` with `values[i]` added at `[rows[i], columns[i]]`; the same place may occur more than once."""
    add: Any = matrix.at[rows, columns].add  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  untyped in MLX's stub
    return cast(mx.array, add(values))
