"""Sampling parameters as the samplers and logits processors that mlx-lm's batch classes take, one per sequence.

Randomness is a function of (seed, position): the key of a draw is mixed from both, so a seeded sequence gives the same
tokens whoever shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import LogitsProcessor, apply_min_p, apply_top_k, apply_top_p, make_logits_processors

from mlx_serving.core.sampling_defaults import ResolvedSampling

Sampler = Callable[[mx.array], mx.array]
_MASK = (1 << 64) - 1

# Colder than this is greedy: the reciprocal would leave the range of the logits' type.
_COLDEST = 1e-5


def greedy(logprobs: mx.array) -> mx.array:
    """[rows, vocabulary] -> [rows]. One function for all greedy rows: a batch that shares its sampler is one launch."""
    return mx.argmax(logprobs, axis=-1)


def position_key(seed: int, position: int) -> mx.array:
    """The key of the draw at `position`. The mixing is splitmix64's: Steele, Lea and Flood, OOPSLA 2014."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return mx.random.key(z ^ (z >> 31))


class SeededSampler:
    """Draws one token a call, each at the next position. Filters as mlx-lm does: top-p, min-p, top-k, temperature."""

    def __init__(self, sampling: ResolvedSampling, seed: int, vocabulary: int, position: int = 0) -> None:
        self._sampling = sampling
        self._seed = seed
        self._vocabulary = vocabulary
        self._position = position

    def __call__(self, logprobs: mx.array) -> mx.array:
        chosen = self._sampling
        if chosen.top_p < 1.0:
            logprobs = apply_top_p(logprobs, chosen.top_p)
        if chosen.min_p > 0.0:
            logprobs = apply_min_p(logprobs, chosen.min_p)
        if 0 < chosen.top_k < self._vocabulary:
            logprobs = apply_top_k(logprobs, chosen.top_k)
        key = position_key(self._seed, self._position)
        self._position += 1
        return mx.random.categorical(logprobs * (1.0 / chosen.temperature), key=key)


def make_sampler(sampling: ResolvedSampling, seed: int, vocabulary: int) -> Sampler:
    return greedy if sampling.temperature < _COLDEST else SeededSampler(sampling, seed, vocabulary)


def make_processors(sampling: ResolvedSampling) -> list[LogitsProcessor]:
    """Bias and penalties; empty when none is asked for, which keeps the row on the fast path."""
    return make_logits_processors(
        logit_bias=dict(sampling.logit_bias) or None,
        repetition_penalty=sampling.repetition_penalty if sampling.repetition_penalty != 1.0 else None,
        presence_penalty=sampling.presence_penalty or None,
        frequency_penalty=sampling.frequency_penalty or None,
    )
