"""What computing a chunk of a prompt takes besides weights and caches, until the chunk is done.

    bytes = count x (per_token + per_pair x (start + count))

A layer's activations grow with the tokens of the chunk; the scores of its attention with the tokens times what they
look at, where the backend keeps them: fused attention kernels do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

# Measured on MLX's CPU backend with llama, qwen3, gemma3, lfm2, mamba and llama4 models: at most 12 arrays of the
# layer's width and of its inner width are alive at once, and two of its attention's scores (see test_prefill_memory).
_ACTIVATIONS = 12
_SCORES = 2
_SCORE_BYTES = 4  # softmax is computed in float32


@dataclass(frozen=True, slots=True)
class PrefillMemory:
    """`per_token` bytes, and `per_pair` bytes for each token and each token that it looks at. Zeros are unknown."""

    per_token: float = 0.0
    per_pair: float = 0.0

    def size(self, start: int, count: int) -> float:
        """Bytes for `count` prompt tokens that follow `start` others."""
        return count * (self.per_token + self.per_pair * (start + count))

    def tokens_within(self, size: float, start: int) -> float:
        """How many prompt tokens after the first `start` can be computed in `size` bytes: the inverse of `size`."""
        if size == inf:
            return inf
        linear = self.per_token + self.per_pair * start
        root = linear + sqrt(linear * linear + 4 * self.per_pair * size)
        return 2 * size / root if root else inf


def of_shape(*, width: int, inner_width: int, heads: int, item_bytes: int, fused_attention: bool) -> PrefillMemory:
    """For a model whose layers are `width` wide, `inner_width` in their feed-forward part, with `heads` of attention;
    an activation takes `item_bytes`."""
    return PrefillMemory(
        per_token=float(_ACTIVATIONS * (width + inner_width) * item_bytes),
        per_pair=0.0 if fused_attention else float(_SCORES * heads * _SCORE_BYTES),
    )
