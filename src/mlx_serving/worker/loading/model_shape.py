"""What a model's config.json says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx

from mlx_serving.core.schedule.prefill_memory import PrefillMemory, of_shape

DEFAULT_CONTEXT_LENGTH = 8192
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "seq_length", "model_max_length")
_WIDTH = ("hidden_size", "d_model", "n_embd", "dim")
_INNER_WIDTH = ("intermediate_size", "intermediate_size_mlp", "block_ff_dim", "ffn_hidden_size", "n_inner")
_HEADS = ("num_attention_heads", "n_heads", "n_head")
_INNER_PER_WIDTH = 4  # the usual proportion, where the config does not tell
# What MLX's fused attention for whole prompts is compiled for (sdpa_full_supported_head_dim in its Metal backend).
_FUSED_HEAD_DIMS = (64, 80, 128)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of it that is about text, where it has several."""
    nested = config.get("text_config")
    return cast(Mapping[str, Any], nested) if isinstance(nested, Mapping) else config


def context_length_of(config: Mapping[str, Any]) -> int:
    """Tokens; `DEFAULT_CONTEXT_LENGTH` where it does not tell."""
    for source in (config, text_config(config)):
        for key in _CONTEXT_KEYS:
            value = source.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return DEFAULT_CONTEXT_LENGTH


def vocabulary_of(config: Mapping[str, Any], tokenizer: Any) -> int:
    """Entries; those of the tokenizer where it does not tell."""
    for source in (config, text_config(config)):
        value = source.get("vocab_size")
        if isinstance(value, int) and value > 0:
            return value
    return len(tokenizer)


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """For people to read; None for weights that are not packed."""
    quantization = config.get("quantization")
    if not isinstance(quantization, Mapping):
        return None
    facts = cast(Mapping[str, Any], quantization)
    mode = facts.get("mode", "affine")
    return f"{facts.get('bits')}-bit, group {facts.get('group_size')}" + (f", {mode}" if mode != "affine" else "")


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
