"""A model that makes vectors, in memory, and the forward pass over a batch of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_serving.core.embedding.plan import EmbeddingPlan, Pooling
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.wire.methods import LoadModelResult
from mlx_serving.worker.tokenizing import PromptTokenizer

Vectors: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """Token ids, and to which of two texts each belongs, where there are two."""

    token_ids: list[int]
    types: list[int] | None = None


Forward: TypeAlias = Callable[[mx.array, mx.array, mx.array | None], mx.array]
"""Ids, mask (1 where there is a token) and types, each [rows, tokens], to what the architecture computes:
[rows, tokens, width], or the scores [rows, 1] of a classifier."""


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """`tokenizer` belongs to the tokenizer thread, everything else to the thread that owns MLX. `head` is what follows
    the pooling, `memory` what computing an input takes."""

    facts: LoadModelResult
    plan: EmbeddingPlan
    tokenizer: PromptTokenizer
    forward: Forward
    head: Callable[[mx.array], mx.array]
    memory: PrefillMemory
    pad_token_id: int

    @property
    def model_id(self) -> str:
        return self.facts.model_id

    def encode(self, text: str, query: str | None, max_tokens: int | None) -> EncodedInput:
        """The text alone, or behind its query, cut to `max_tokens` if they are given. Runs on the tokenizer thread."""
        if query is not None:
            return EncodedInput(*self.tokenizer.encode_input(query, text, max_tokens))
        text = self.plan.prompt + text
        text = text.lower() if self.plan.lower_case else text
        return EncodedInput(self.tokenizer.encode_input(text, None, max_tokens)[0])

    def vectors(self, inputs: Sequence[EncodedInput]) -> Vectors:
        """[inputs, dimensions] float32, normalised if the model's are. One forward pass."""
        width = max(len(each.token_ids) for each in inputs)
        ids = np.full((len(inputs), width), self.pad_token_id, np.int32)
        mask = np.zeros((len(inputs), width), np.int32)
        types = np.zeros((len(inputs), width), np.int32)
        for row, each in enumerate(inputs):
            count = len(each.token_ids)
            ids[row, :count], mask[row, :count] = each.token_ids, 1
            types[row, :count] = each.types or 0
        has_types = any(each.types is not None for each in inputs)
        present = mx.array(mask)
        computed = self.forward(mx.array(ids), present, mx.array(types) if has_types else None)
        if self.plan.pooling is None:
            scores = computed.astype(mx.float32)
            return _on_host(mx.sigmoid(scores) if self.plan.sigmoid else scores)
        pooled = self.head(pool(computed.astype(mx.float32), present, self.plan.pooling))
        vectors = _on_host(pooled.astype(mx.float32))
        return normalised(vectors) if self.plan.normalise else vectors


def pool(states: mx.array, mask: mx.array, pooling: Pooling) -> mx.array:
    """[rows, tokens, width] and [rows, tokens] to [rows, width]. Tokens stand at the beginning of their rows."""
    there = mask[:, :, None]
    counts = mx.sum(mask, axis=1, keepdims=True)
    match pooling:
        case "cls":
            return states[:, 0]
        case "last":
            return mx.take_along_axis(states, (counts - 1)[:, :, None], axis=1)[:, 0]
        case "max":
            return mx.max(mx.where(there > 0, states, -mx.inf), axis=1)
        case "mean":
            return mx.sum(states * there, axis=1) / counts
        case "mean_sqrt_len":
            return mx.sum(states * there, axis=1) / mx.sqrt(counts.astype(mx.float32))


def _on_host(array: mx.array) -> Vectors:
    return cast("Vectors", np.array(array))


def normalised(vectors: Vectors) -> Vectors:
    """Each of length 1; a vector of zeros stays one."""
    lengths: Any = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
