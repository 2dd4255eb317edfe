"""Vision-language models that a test makes for itself: random weights that depend on their names and a seed only, and a
byte-level tokenizer. About a megabyte each, but for Phi-3-Vision, whose encoder is as wide as it is.

python -m tests.tiny_vision_models FAMILY DIRECTORY [--seed N]
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias, cast, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx import utils
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

Family: TypeAlias = Literal[
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "phi3_v", "gemma3", "gemma4", "gemma4_both_ways", "gemma4_unified"
]
FAMILIES: tuple[Family, ...] = get_args(Family)

_HIDDEN = 64
_VISION_HIDDEN = 64
_BASE = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MEDIA: Mapping[str, Sequence[str]] = {
    "qwen": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "llava": ("<image>",),
    "phi3_v": ("<|user|>", "<|assistant|>", "<|end|>"),
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
    "gemma4": ("<|image>", "<|image|>", "<image|>", "<|audio|>", "<|video|>"),
}
_LINES = [("Ċ", "Ċ"), ("ĊĊ", "Ċ")]
_PARTS_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ 'IMAGE' }}{% elif 'text' in c %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Contents are texts with tags in them.
_TAGS_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def make(
    family: Family,
    directory: Path,
    *,
    seed: int = 0,
    encoder_layers: int = 2,
    max_pixels: int | None = None,
    windows: bool = True,
) -> Path:
    """`encoder_layers` and `max_pixels` are for Qwen's families, `windows` for Gemma 4: whether some layers have them.

    A model directory of this family. A process that is to load a small Phi-3-Vision must call `narrow_phi3_v` first:
    the depth of its encoder stands in mlx-vlm's code."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = next((kind for kind in ("qwen", "gemma3", "gemma4") if family.startswith(kind)), family)
    ids = _write_tokenizer(directory, kind)
    config, processor = _configs(family, ids)
    if kind == "qwen":
        config["vision_config"]["depth"] = encoder_layers
        processor["max_pixels"] = max_pixels or processor["max_pixels"]
    if not windows:
        layers = config["text_config"]["num_hidden_layers"]
        config["text_config"]["layer_types"] = ["full_attention"] * layers
    _write_json(directory / "config.json", config)
    _write_json(directory / "preprocessor_config.json", processor)
    if family == "llava":
        own = {"processor_class": "LlavaProcessor", "patch_size": 14, "image_token": "<image>"}
        own |= {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
        _write_json(directory / "processor_config.json", own)
    if family == "gemma3":
        own = {"processor_class": "Gemma3Processor", "image_seq_length": config["mm_tokens_per_image"]}
        _write_json(directory / "processor_config.json", own)
    model = _build(config)
    weights = {name: mx.array(_drawn(name, value.shape, seed)) for name, value in _flat(model)}
    if kind.startswith("gemma"):  # multiplies what it looks up by this again, and the text would be all that matters
        weights |= {name: one / _HIDDEN**0.5 for name, one in weights.items() if name.endswith("embed_tokens.weight")}
    save: Any = mx.save_safetensors  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  untyped stub
    save(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    return directory


def narrow_phi3_v() -> None:
    """Have mlx-vlm build Phi-3-Vision with two layers of its encoder, in this process."""
    from mlx_vlm.models.phi3_v.vision import VisionModel

    shape = cast(Any, VisionModel).CLIP_VIT_LARGE_PATCH14_336_CONFIG
    narrow: dict[str, object] = {**vars(shape), "num_hidden_layers": 2, "intermediate_size": 128}
    cast(Any, VisionModel).CLIP_VIT_LARGE_PATCH14_336_CONFIG = SimpleNamespace(**narrow)


def _write_tokenizer(directory: Path, kind: str) -> Mapping[str, int]:
    names = [*_BASE, *_MEDIA[kind]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _LINES if kind == "gemma3" else []  # these have a token for several lines, too
    vocabulary = [*_BASE, *alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(BPE(vocab={token: number for number, token in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    cast(Any, tokenizer).add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.save(str(directory / "tokenizer.json"))
    image = {
        "qwen": "<|vision_start|><|image_pad|><|vision_end|>",
        "llava": "<image>",
        "gemma3": "<start_of_image>",
        "gemma4": "<|image|>",
    }.get(kind)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|end|>" if kind == "phi3_v" else "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "chat_template": _TAGS_TEMPLATE if image is None else _PARTS_TEMPLATE.replace("IMAGE", image),
            **({"extra_special_tokens": {"image_token": "<image>"}} if kind == "llava" else {}),
            **({"extra_special_tokens": _gemma_tokens(kind)} if kind.startswith("gemma") else {}),
        },
    )
    return {"vocabulary": tokenizer.get_vocab_size(), **tokenizer.get_vocab(with_added_tokens=True)}


def _gemma_tokens(kind: str) -> Mapping[str, str]:
    return dict(zip(("boi_token", "image_token", "eoi_token", "audio_token"), _MEDIA[kind], strict=False))


def _configs(family: Family, ids: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json."""
    text: dict[str, Any] = {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": 2,
        "intermediate_size": 2 * _HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": ids["vocabulary"],
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    common: dict[str, Any] = {
        "model_type": family,
        "eos_token_id": ids["<|end|>" if family == "phi3_v" else "<|im_end|>"],
        "bos_token_id": ids["<|im_start|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    if family == "llava":
        return _llava(text, common, ids)
    if family == "phi3_v":
        tower = {"name": "clip_vision_model", "image_dim_out": 1024, "num_img_tokens": 144}
        config = {**text, **common, "img_processor": tower}
        config["original_max_position_embeddings"] = 4096
        own = {"image_processor_type": "Phi3VImageProcessor", "num_crops": 1, "num_img_tokens": 144}
        return config, {**own, "processor_class": "Phi3VProcessor", **_CLIP}
    if family == "gemma3":
        return _gemma3(text, common, ids)
    if family == "gemma4_unified":
        return _gemma4_unified(text, common, ids)
    if family.startswith("gemma4"):
        return _gemma4(text, common, ids, both_ways=family == "gemma4_both_ways")
    return _qwen(family, text, common, ids)


def _gemma3(
    text: dict[str, Any], common: dict[str, Any], ids: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """16 tokens an image, and every other layer sees the last 12 tokens only."""
    size, patch = 112, 14
    nested = {**text, "model_type": "gemma3_text", "num_hidden_layers": 4, "head_dim": 16}
    nested |= {"query_pre_attn_scalar": 16, "sliding_window": 12, "sliding_window_pattern": 2}
    tower = {
        "model_type": "siglip_vision_model",
        "num_hidden_layers": 2,
        "hidden_size": _VISION_HIDDEN,
        "intermediate_size": 2 * _VISION_HIDDEN,
        "num_attention_heads": 4,
        "image_size": size,
        "patch_size": patch,
    }
    config = {
        **common,
        "text_config": {**nested, "mm_tokens_per_image": 16},
        "vision_config": tower,
        "hidden_size": _HIDDEN,
        "image_token_index": ids["<image_soft_token>"],
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "mm_tokens_per_image": 16,
        "vocab_size": ids["vocabulary"],
    }
    processor = {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": size, "width": size},
        "do_pan_and_scan": False,
        "processor_class": "Gemma3Processor",
        **_CLIP,
    }
    return config, processor


def _gemma4(
    text: dict[str, Any], common: dict[str, Any], ids: Mapping[str, int], *, both_ways: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """16 tokens an image at most, and every other layer sees the last 12 tokens only. As the larger ones are, whose
    tokens of an image see each other, or as the smaller ones, whose last layers have no keys of their own."""
    nested = {**text, "model_type": "gemma4_text", "num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 32}
    nested |= {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2}
    nested |= {"vocab_size_per_layer_input": ids["vocabulary"], "tie_word_embeddings": True}
    if both_ways:
        nested |= {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0}
        nested |= {"num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
    else:
        nested |= {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}
    tower = {
        "model_type": "gemma4_vision",
        "hidden_size": _VISION_HIDDEN,
        "intermediate_size": 2 * _VISION_HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "global_head_dim": 16,
        "position_embedding_size": 64,
        "default_output_length": 16,
    }
    config = {
        **common,
        "model_type": "gemma4",
        "text_config": nested,
        "vision_config": tower,
        "audio_config": None,
        "hidden_size": _HIDDEN,
        "image_token_id": ids["<|image|>"],
        "boi_token_id": ids["<|image>"],
        "eoi_token_id": ids["<image|>"],
        "audio_token_id": ids["<|audio|>"],
        "video_token_id": ids["<|video|>"],
        "vocab_size": ids["vocabulary"],
    }
    processor = {"processor_class": "Gemma4Processor", "patch_size": 16, "max_soft_tokens": 16}
    return config, {**processor, "pooling_kernel_size": 3}


def _gemma4_unified(
    text: dict[str, Any], common: dict[str, Any], ids: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """As Gemma 4 with tokens that see each other, and with a single layer in the place of an encoder."""
    config, _ = _gemma4(text, common, ids, both_ways=True)
    config["model_type"] = "gemma4_unified"
    config["text_config"]["model_type"] = "gemma4_unified_text"
    tower = {"model_type": "gemma4_unified_vision", "mm_embed_dim": _VISION_HIDDEN, "output_proj_dims": _VISION_HIDDEN}
    config["vision_config"] = {**tower, "mm_posemb_size": 64, "num_soft_tokens": 16}
    return config, {"image_processor": {"max_soft_tokens": 16, "mm_posemb_size": 64}}


def _llava(
    text: dict[str, Any], common: dict[str, Any], ids: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    size, patch = 56, 14
    tower = {
        "model_type": "clip_vision_model",
        "num_hidden_layers": 2,
        "hidden_size": _VISION_HIDDEN,
        "intermediate_size": 2 * _VISION_HIDDEN,
        "num_attention_heads": 4,
        "image_size": size,
        "patch_size": patch,
        "projection_dim": 64,
        "num_channels": 3,
    }
    config = {
        **common,
        "text_config": {"model_type": "llama", **text},
        "vision_config": tower,
        "image_token_index": ids["<image>"],
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": ids["vocabulary"],
    }
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "processor_class": "LlavaProcessor",
        **_CLIP,
    }
    return config, processor


def _qwen(
    family: Family, text: dict[str, Any], common: dict[str, Any], ids: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    patch = 16 if family == "qwen3_vl" else 14
    tower: dict[str, Any] = {
        "model_type": family,
        "depth": 2,
        "num_heads": 4,
        "patch_size": patch,
        "spatial_patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "in_chans": 3,
    }
    tokens = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    sections = [2, 3, 3]  # of half a head
    if family == "qwen2_vl":
        tower |= {"embed_dim": _VISION_HIDDEN, "hidden_size": _HIDDEN, "mlp_ratio": 2}
    else:
        tower |= {"hidden_size": _VISION_HIDDEN, "intermediate_size": 2 * _VISION_HIDDEN, "out_hidden_size": _HIDDEN}
    if family == "qwen2_5_vl":
        tower |= {"window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    config: dict[str, Any] = {**common, **tokens, "vision_config": tower}
    if family == "qwen3_vl":
        tower |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        tower["hidden_act"] = "gelu_pytorch_tanh"
        scaling = {"rope_type": "default", "mrope_section": sections, "mrope_interleaved": True}
        nested = {"model_type": "qwen3_vl_text", "head_dim": _HIDDEN // 4, "rope_scaling": scaling, **text}
        config |= {"text_config": nested, "vocab_size": ids["vocabulary"]}
    else:
        config |= {"rope_scaling": {"type": "mrope", "mrope_section": sections}, **text}
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 4 * (2 * patch) ** 2,
        "max_pixels": 32 * (2 * patch) ** 2,
        "processor_class": {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}.get(
            family, "Qwen3VLProcessor"
        ),
        **_CLIP,
    }
    return config, processor


def _build(config: Mapping[str, Any]) -> nn.Module:
    """As mlx-vlm does when it loads."""
    import mlx_vlm.utils as library

    tools: Any = library
    described: dict[str, Any] = json.loads(json.dumps(config))
    architecture: Any = tools.get_model_and_args(described)[0]
    for part in ("text_config", "vision_config", "audio_config"):
        described.setdefault(part, {})
    shape = architecture.ModelConfig.from_dict(described)
    return architecture.Model(tools.update_module_configs(shape, architecture, described, ["text", "vision"]))


def _drawn(name: str, shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    drawn = generator.standard_normal(tuple(shape), dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if len(shape) == 1:  # norms and biases
        return drawn * np.float32(0.02) + np.float32(leaf == "weight")
    if leaf in ("glb_GN", "sub_GN"):
        return drawn * np.float32(0.02)
    if any(part in name for part in ("embed_tokens", "position_embed", "pos_embed", "class_embedding")):
        return drawn
    return drawn / np.float32(np.sqrt(np.prod(shape[1:])))


def _flat(model: nn.Module) -> list[tuple[str, mx.array]]:
    return cast(Any, utils).tree_flatten(cast(Any, model).parameters())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.family, arguments.directory, seed=arguments.seed)
