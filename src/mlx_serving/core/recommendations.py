"""Which settings suit a machine, and in which form a model fits into it.

The reasoning, in the order in which it is applied:

- What models may take is what `core.memory_budget` plans with, so that a recommendation and the server never differ.
- Quantisation. On a GPU, a token costs the reading of all weights, so that half the bits are nearly twice the speed,
  and 8 bits cannot be told from 16 by their answers. So 8 bits where the weights then take no more than half of the
  memory, because the other half is for the KV caches of several users; else 4 bits, the least that is commonly used
  without regret; 3 and 2 bits only to make a model fit at all. On a CPU only float32 reaches a BLAS, and packed weights
  are slower whatever they save: as they are while they fit.
- Sequences at a time. Each needs room for a conversation of common length, or it waits for memory instead of a slot.
  More than the device gains from only make each stream slower: a CPU is busy with few, a data-centre GPU with many.
- Prompt tokens at a time. A larger chunk uses a fast device better, and makes the others wait longer on a slow one; the
  scheduler makes chunks smaller while streams run, this is what they may grow to.
- Workers. One for each CUDA device. Elsewhere a second one would only share the same memory and the same device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from mlx_serving.core.memory_budget import Capacity, MemoryPolicy, plan
from mlx_serving.core.quantization import Matrix, Quantization, of, require_packable
from mlx_serving.errors import InvalidRequest

Device: TypeAlias = Literal["cpu", "metal", "cuda"]

TYPICAL_TOKENS = 4096
"""Of a conversation, prompt and answer: what each sequence should have room for."""

_LARGE_MEMORY = 64 << 30
_MAX_SEQUENCES: Mapping[Device, int] = {"cpu": 16, "metal": 32, "cuda": 64}
_BITS = (8, 6, 4, 3, 2)
_GROUPS = (64, 32)  # the usual one first
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model takes. `item_bytes` is what each of its weights takes as they are on disk, `weights` their number;
    a `quantised` model's are packed already, and only `weights_bytes` count. `kv_bytes_per_token` holds for caches in
    the type that the weights are computed in; 0 is a model whose caches do not grow. The rows of its matrices divide
    into groups of `group_size`, None if they do not; the largest of them takes `largest_bytes`, which stands beside
    the packed ones while it is read."""

    name: str
    weights: int
    weights_bytes: int
    item_bytes: int
    kv_bytes_per_token: int
    context_length: int
    quantised: bool = False
    group_size: int | None = 64
    largest_bytes: int = 0

    def packed_bytes(self, quantization: Quantization | None) -> int:
        if quantization is None:
            return self.weights_bytes
        return quantization.packed_bytes(self.weights, self.item_bytes)


@dataclass(frozen=True, slots=True)
class Fit:
    """A model in one form. `kv_tokens` are what KV caches have room for, of all sequences together; 0 does not fit."""

    quantization: Quantization | None
    weights_bytes: int
    kv_bytes: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`fit` is None for a model that this machine cannot serve in any form. `settings` are configuration values by
    their dotted paths; `forms` are all forms that were looked at, best precision first."""

    fit: Fit | None
    forms: tuple[Fit, ...]
    settings: Mapping[str, object]


def recommend(room: Capacity, policy: MemoryPolicy, device: Device, gpus: int, model: ModelSize) -> Recommendation:
    """For one model on a machine that has `room` for models on each of its devices."""
    forms = tuple(_fit(room, policy, model, form) for form in _forms(model))
    fit = _choose(forms, room, device, model)
    settings: dict[str, object] = {
        "scheduler.max_num_seqs": _sequences(fit, device, model),
        "scheduler.prefill_step_size": _prefill_step(room, device),
        "workers": gpus if device == "cuda" and gpus > 1 else 1,
    }
    if fit is not None and fit.quantization is not None:
        settings["models.served.0.quantization"] = str(fit.quantization)
    return Recommendation(fit, forms, settings)


def _forms(model: ModelSize) -> tuple[Quantization | None, ...]:
    if model.quantised or model.group_size is None:
        return (None,)
    return (None, *(of(bits, model.group_size) for bits in _BITS))


def _fit(room: Capacity, policy: MemoryPolicy, model: ModelSize, form: Quantization | None) -> Fit:
    weights = model.packed_bytes(form)
    reading = weights if form is None else weights + model.largest_bytes
    can_be_loaded = plan(room, policy, weights=reading, squeezed=True).kv_caches > 0
    kv_bytes = plan(room, policy, weights=weights).kv_caches if can_be_loaded else 0
    per_token = model.kv_bytes_per_token
    tokens = kv_bytes // per_token if per_token else (model.context_length if kv_bytes else 0)
    return Fit(form, weights, kv_bytes, tokens)


def _choose(forms: tuple[Fit, ...], room: Capacity, device: Device, model: ModelSize) -> Fit | None:
    needed = min(TYPICAL_TOKENS, model.context_length)
    fitting = [fit for fit in forms if fit.kv_tokens >= needed]
    if not fitting:
        return max((fit for fit in forms if fit.kv_tokens > 0), key=lambda fit: fit.kv_tokens, default=None)
    if device == "cpu" or model.quantised:
        return fitting[0]
    packed = [fit for fit in fitting if fit.quantization is not None]
    roomy = [fit for fit in packed if _bits(fit) == 8 and fit.weights_bytes <= room.size // 2]
    common = [fit for fit in packed if _bits(fit) == 4]
    return next(iter((*roomy, *common, *packed)), fitting[0])


def _bits(fit: Fit) -> int | None:
    return None if fit.quantization is None else fit.quantization.bits


def _sequences(fit: Fit | None, device: Device, model: ModelSize) -> int:
    if fit is None:
        return 1
    if not model.kv_bytes_per_token:
        return _MAX_SEQUENCES[device]
    each = min(TYPICAL_TOKENS, model.context_length)
    return max(1, min(_MAX_SEQUENCES[device], fit.kv_tokens // each))


def _prefill_step(room: Capacity, device: Device) -> int:
    if device == "cpu":
        return 512
    return 2048 if device == "cuda" or room.size >= _LARGE_MEMORY else 1024


def size_from_config(
    name: str,
    config: Mapping[str, Any],
    *,
    weights: int,
    weights_bytes: int,
    item_bytes: int,
    kv_item_bytes: int,
    matrices: Sequence[Matrix] = (),
) -> ModelSize:
    """What a config.json says of a model whose weights were counted, among them those `matrices`. What it does not tell
    counts as 0: a recurrent model has no KV cache that grows."""
    nested = config.get("text_config")
    text = cast("Mapping[str, Any]", nested) if isinstance(nested, Mapping) else config
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    kv_heads = _number(text, "num_key_value_heads") or heads
    width = _number(text, "hidden_size", "n_embd", "d_model")
    head_dim = _number(text, "head_dim") or (width // heads if heads else 0)
    return ModelSize(
        name=name,
        weights=weights,
        weights_bytes=weights_bytes,
        item_bytes=item_bytes,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * kv_item_bytes,
        context_length=_number(text, "max_position_embeddings", "n_positions", "max_seq_len") or 8192,
        quantised=any(part.get("quantization") or part.get("quantization_config") for part in (config, text)),
        group_size=next((size for size in _GROUPS if _divides(size, name, matrices)), None),
        largest_bytes=max((matrix.weights * matrix.item_bytes for matrix in matrices), default=0),
    )


def _divides(group_size: int, name: str, matrices: Sequence[Matrix]) -> bool:
    """Whether the server would pack them in such groups."""
    try:
        require_packable(of(None, group_size), matrices, name)
    except InvalidRequest:
        return False
    return True


def _number(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


# Sizes that models come in, with the shape of the attention of a common one of that size.
_SHAPES = (
    ("1B", 1_240_000_000, 16, 8, 64),
    ("4B", 4_020_000_000, 36, 8, 128),
    ("8B", 8_030_000_000, 32, 8, 128),
    ("14B", 14_770_000_000, 40, 8, 128),
    ("32B", 32_760_000_000, 64, 8, 128),
    ("70B", 70_550_000_000, 80, 8, 128),
)


def common_sizes(device: Device) -> tuple[ModelSize, ...]:
    """Models of 1 to 70 billion weights, in 16 bits; on a CPU in the 32 bits that are fast there."""
    item_bytes = 4 if device == "cpu" else 2
    return tuple(
        ModelSize(name, weights, weights * item_bytes, item_bytes, 2 * layers * heads * width * item_bytes, 32_768)
        for name, weights, layers, heads, width in _SHAPES
    )


def wired_limit_mb(memory_bytes: int) -> int:
    """What `iogpu.wired_limit_mb` may be raised to on a Mac: all but what the system and its programs need, a quarter
    of the memory up to 8 GiB, and never less than 3 GiB. More has made Macs panic."""
    spared = min(8 * _GIB, max(3 * _GIB, memory_bytes // 4))
    return max(0, memory_bytes - spared) >> 20
