"""Whether the sequences of a model may share steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

_PROBE_TOKEN = 1
_SHORT, _LONG = 1, 8

# Of the spread of the logits. Rounding in 16 bits stays below a hundredth; a state that took padding in is far above.
_TOLERANCE = 0.05


def can_batch(model: nn.Module) -> bool:
    """Whether a batch gives each of its sequences what it would get alone.

    Attention masks the padding of shorter prompts out. A recurrent layer must leave it out of its state, which some
    models do and some do not: they are tried on a short prompt, beside a long one and alone.
    """
    caches = make_prompt_cache(model)
    if all(isinstance(cache, KVCache | RotatingKVCache) for cache in caches):
        return True
    return all(hasattr(cache, "merge") for cache in caches) and _ignores_padding(model)


def _ignores_padding(model: nn.Module) -> bool:
    try:
        padded, alone = _logits_of_first(model, [_SHORT, _LONG]), _logits_of_first(model, [_SHORT])
        error = mx.sqrt(mx.mean(mx.square(padded - alone)))
        return bool((error <= _TOLERANCE * mx.std(alone)).item())
    except Exception:  # noqa: BLE001  a cache that says it merges and does not: such a model runs alone
        return False


def _logits_of_first(model: nn.Module, lengths: list[int]) -> mx.array:
    """The logits after the first of the prompts of these lengths, read as one batch."""
    caches = [make_prompt_cache(model) for _ in lengths]
    batch = PromptProcessingBatch(model, list(range(len(lengths))), caches)
    batch.prompt([[_PROBE_TOKEN] * length for length in lengths])
    forward = cast("Callable[..., mx.array]", model)
    logits = forward(mx.array([[_PROBE_TOKEN]] * len(lengths)), cache=batch.prompt_cache)
    return logits[0, -1].astype(mx.float32)
