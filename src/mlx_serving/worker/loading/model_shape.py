"""What a model's config.json says of the memory that computing a prompt takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_serving.core.schedule.prefill_memory import PrefillMemory, of_shape

_WIDTH = ("hidden_size", "d_model", "n_embd", "dim")
_INNER_WIDTH = ("intermediate_size", "intermediate_size_mlp", "block_ff_dim", "ffn_hidden_size", "n_inner")
_HEADS = ("num_attention_heads", "n_heads", "n_head")
_INNER_PER_WIDTH = 4  # the usual proportion, where the config does not tell
# What MLX's fused attention for whole prompts is compiled for (sdpa_full_supported_head_dim in its Metal backend).
_FUSED_HEAD_DIMS = (64, 80, 128)


def prefill_memory_of(config: Mapping[str, Any], activation_bytes: int, *, packed_kv: bool = False) -> PrefillMemory:
    """`config` is that of the text model. Unknown (nothing is bounded) when it does not even tell the width.
    `packed_kv`: attention computes its scores from packed caches."""
    width = _largest(config, _WIDTH)
    if not width:
        return PrefillMemory()
    heads = _largest(config, _HEADS)
    experts = _largest(config, ("num_experts_per_tok", "moe_topk")) or 1
    inner = max(
        _largest(config, _INNER_WIDTH) or _INNER_PER_WIDTH * width,
        _largest(config, ("moe_intermediate_size",)) * experts,
    )
    head_dim = _largest(config, ("head_dim",)) or (width // heads if heads else 0)
    is_gpu = mx.default_device() == mx.Device(mx.gpu)
    return of_shape(
        width=width,
        inner_width=inner,
        heads=heads,
        item_bytes=activation_bytes,
        fused_attention=is_gpu and not packed_kv and head_dim in _FUSED_HEAD_DIMS,
    )


def _largest(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The largest of these numbers that the config has; 0 when it has none."""
    values = [config.get(name) for name in names]
    return max((value for value in values if isinstance(value, int)), default=0)
