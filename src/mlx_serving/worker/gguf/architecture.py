"""The shape of a llama-architecture model, its config.json, and what of GGUF a llama of mlx-lm cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.metadata import Metadata
from mlx_serving.worker.gguf.reader import Header
from mlx_serving.worker.gguf.tensor_types import READABLE, type_name

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor with one divisor per rotary frequency, by which Llama 3.1 and its descendants reach long contexts."""

RopeScaling: TypeAlias = Mapping[str, str | float]

_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, slots=True)
class Llama:
    """Sizes in elements. `tied`: the output head is the embedding matrix."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    def config(self) -> dict[str, object]:
        """The entries of config.json that describe the model itself."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rope_theta,
            "rope_scaling": dict(self.rope_scaling) if self.rope_scaling else None,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
        }


def check_supported(header: Header, metadata: Metadata) -> None:
    """Refuse, with a `ModelLoadError` that says why, every file whose meaning a llama of mlx-lm cannot have."""
    if metadata.text("general.architecture") != "llama":
        metadata.unsupported("general.architecture", "must be 'llama'")
    if metadata.integer("split.count", 1) > 1:
        metadata.unsupported(
            "split.count", "says that this is one part of a model in several files; merge them with llama-gguf-split"
        )
    if metadata.integer("llama.expert_count", 0) > 0:
        metadata.unsupported("llama.expert_count", "asks for a mixture of experts")
    if metadata.integer("llama.attention.sliding_window", 0) > 0:
        metadata.unsupported("llama.attention.sliding_window", "asks for attention in a sliding window")
    for key in ("llama.logit_scale", "llama.embedding_scale", "llama.residual_scale", "llama.attention.scale"):
        if metadata.real(key, 0.0) not in (0.0, 1.0):
            metadata.unsupported(key, "asks for a factor that a llama does not have")
    unreadable: dict[str, list[str]] = {}
    for tensor in header.tensors:
        if tensor.type is None:
            unreadable.setdefault(type_name(tensor.type_number), []).append(tensor.name)
    if unreadable:
        kinds = "; ".join(f"{kind}: {', '.join(names[:3])}{_more(names[3:])}" for kind, names in unreadable.items())
        raise ModelLoadError(
            f"{header.path} has tensors of kinds that are not supported ({kinds}); "
            f"supported: {', '.join(map(str, READABLE.values()))}",
            path=str(header.path),
            unsupported=sorted(unreadable),
            tensors=[name for names in unreadable.values() for name in names[:3]],
        )


def read_architecture(header: Header, metadata: Metadata, rope_factors: tuple[float, ...] | None) -> Llama:
    """The shape of the model. `rope_factors` is the content of the tensor `ROPE_FACTORS`, if there is one.

    Raises `ModelLoadError` for missing or contradictory values and for rotary embeddings that mlx-lm cannot compute.
    """
    names = {tensor.name: tensor for tensor in header.tensors}
    hidden_size = metadata.positive("llama.embedding_length")
    heads = metadata.positive("llama.attention.head_count")
    kv_heads = metadata.positive("llama.attention.head_count_kv", heads)
    if heads % kv_heads:
        metadata.invalid("llama.attention.head_count_kv", f"must divide the {heads} heads")
    head_dim = metadata.positive("llama.attention.key_length", hidden_size // heads)
    if metadata.positive("llama.attention.value_length", head_dim) != head_dim:
        metadata.unsupported("llama.attention.value_length", f"differs from the length of keys, {head_dim}")
    if metadata.positive("llama.rope.dimension_count", head_dim) != head_dim:
        metadata.unsupported(
            "llama.rope.dimension_count", f"rotates a part of the {head_dim} dimensions of a head only"
        )
    if head_dim % 2:
        metadata.invalid("llama.embedding_length", f"gives heads of {head_dim} dimensions, an odd number")
    embedding = names.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelLoadError(f"{header.path} is damaged: it has no matrix token_embd.weight", path=str(header.path))
    layers = metadata.positive("llama.block_count")
    if layers > len(names):  # before anything is counted out for each of them
        metadata.invalid("llama.block_count", f"is more than the file's {len(names)} tensors")
    theta = metadata.real("llama.rope.freq_base", 10000.0)
    return Llama(
        hidden_size=hidden_size,
        intermediate_size=metadata.positive("llama.feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=embedding.shape[0],
        context_length=metadata.positive("llama.context_length"),
        norm_epsilon=metadata.real("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=theta,
        rope_scaling=_rope_scaling(metadata, rope_factors, theta, head_dim),
        tied="output.weight" not in names,
        attention_bias=_any_bias(names, _ATTENTION),
        mlp_bias=_any_bias(names, _MLP),
    )


def _any_bias(names: Mapping[str, object], parts: tuple[str, ...]) -> bool:
    return any(name.endswith(".bias") and name.split(".")[-2] in parts for name in names)


def _more(rest: list[str]) -> str:
    return f" and {len(rest)} more" if rest else ""


def _rope_scaling(
    metadata: Metadata, factors: tuple[float, ...] | None, theta: float, head_dim: int
) -> RopeScaling | None:
    kind_key, factor_key = "llama.rope.scaling.type", "llama.rope.scaling.factor"
    kind = metadata.text(kind_key, "linear")
    factor = metadata.real(factor_key, metadata.real("llama.rope.scale_linear", 0.0))
    unscaled = kind == "none" or factor in (0.0, 1.0)
    if factors is not None:
        if not unscaled:
            metadata.unsupported(kind_key, f"comes on top of the factors in {ROPE_FACTORS}")
        return _llama3_scaling(metadata, factors, theta, head_dim)
    if unscaled:
        return None
    if kind == "yarn":
        return _yarn_scaling(metadata, factor)
    if kind != "linear":
        metadata.unsupported(kind_key, "is none of 'none', 'linear' and 'yarn'")
    return {"rope_type": "linear", "factor": factor}


def _yarn_scaling(metadata: Metadata, factor: float) -> RopeScaling:
    prefix = "llama.rope.scaling."
    for key, neutral in (("attn_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_ext_factor", 1.0)):
        if metadata.real(prefix + key, neutral) != neutral:
            metadata.unsupported(prefix + key, f"must be {neutral}")
    if metadata.real(prefix + "yarn_log_multiplier", 0.0) != 0.0:
        metadata.unsupported(prefix + "yarn_log_multiplier", "must be 0")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.positive(prefix + "original_context_length"),
        "beta_fast": metadata.real(prefix + "yarn_beta_fast", 32.0),
        "beta_slow": metadata.real(prefix + "yarn_beta_slow", 1.0),
    }


def _llama3_scaling(metadata: Metadata, factors: tuple[float, ...], theta: float, head_dim: int) -> RopeScaling | None:
    """The parameters from which Llama 3's formula computes `factors`.

    GGUF keeps the formula's results only. All models in use share three of its four parameters, and the fourth is the
    largest of the results; whether that guess is right shows when the results are computed from it.
    """
    if len(factors) != head_dim // 2:
        raise ModelLoadError(f"{ROPE_FACTORS} must have {head_dim // 2} values, it has {len(factors)}")
    if all(factor == 1.0 for factor in factors):
        return None
    low, high = 1.0, 4.0
    original = metadata.positive("llama.rope.scaling.original_context_length", 8192)
    factor = max(factors)
    for index, given in enumerate(factors):
        expected = _llama3_factor(2 * math.pi * theta ** (2 * index / head_dim), factor, low, high, original)
        if not math.isclose(given, expected, rel_tol=1e-4):
            raise ModelLoadError(
                f"the factors in {ROPE_FACTORS} are not those of Llama 3's formula with a factor of {factor} and an "
                f"original context of {original}: number {index} is {given} instead of {expected:.6g}",
                unsupported=ROPE_FACTORS,
            )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _llama3_factor(wavelength: float, factor: float, low: float, high: float, original: int) -> float:
    """What the frequency of `wavelength` tokens is divided by (`_compute_llama3_parameters` in transformers)."""
    if wavelength < original / high:
        return 1.0
    if wavelength > original / low:
        return factor
    smooth = (original / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
