"""Models that a test makes for itself: seeded random weights, or weights that spell a text, and a byte-level tokenizer.

python -m tests.tiny_models DIRECTORY [--seed N]               writes a random llama
python -m tests.tiny_models DIRECTORY --printable [--seed N]   one that only writes text, and never ends
                            [--layers N --width N]             a larger one
python -m tests.tiny_models DIRECTORY --pair [--layers N --width N]   two of that kind, of which one drafts
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx import utils
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
BOS, EOS = 256, 258
SPELLED = "abcdefghijklmnopqrstuvwxyzé€🙈0123456789"
"""What the model of `make_speller` goes on with from any of its characters, before it ends its turn."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# A byte's token id: its place among the printable characters that stand for bytes in byte-level vocabularies.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())

_PRINTABLE_VOCABULARY = 512
_WEIGHT_SCALE = 0.3
_WHISPER = 0.05
_LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
_QWEN3: Mapping[str, Any] = {**_LLAMA, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False}
_GEMMA3: Mapping[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": 16,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 512,
}
_LFM2: Mapping[str, Any] = {
    "model_type": "lfm2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_multiple_of": 16,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "block_ff_dim": 128,
    "layer_types": ["conv", "full_attention"],
}
_MAMBA: Mapping[str, Any] = {
    "model_type": "mamba",
    "hidden_size": 64,
    "intermediate_size": 128,
    "state_size": 8,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
}
_LLAMA4: Mapping[str, Any] = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": 16,
        "head_dim": 16,
        "hidden_size": 64,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 128,
        "intermediate_size_mlp": 128,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "use_qk_norm": True,
        "vocab_size": VOCABULARY,
    },
}


def write_hole(path: Path, size: int) -> None:
    """A file of weights with a tensor of `size` bytes, that takes no room: all of it is a hole in the file."""
    header = json.dumps({"hole": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def make_llama(
    directory: Path,
    *,
    seed: int = 0,
    context_length: int = 512,
    layers: int = 2,
    head_dim: int = 16,
    bits: int | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    generation_config: Mapping[str, object] | None = None,
) -> Path:
    """A random llama of about 100,000 weights, as an MLX model directory; quantised to `bits` if given."""
    config = {
        **_LLAMA,
        "num_hidden_layers": layers,
        "max_position_embeddings": context_length,
        "head_dim": head_dim,
    }
    _write_model(directory, config, _randomise(seed), bits=bits)
    make_tokenizer(directory, chat_template=chat_template)
    if generation_config is not None:
        _write_json(directory / "generation_config.json", generation_config)
    return directory


def make_printable_llama(
    directory: Path, *, context_length: int = 4096, seed: int = 0, layers: int = 2, width: int = 64
) -> Path:
    """A random llama with a vocabulary of 512 that only writes printable text and never ends its turn.

    For measuring: every token is text at once, and an answer is as long as it was asked for.
    """
    characters = [character for character in ALPHABET if " " <= character <= "~"] + ["Ġ"]
    letters = [character for character in characters if character.islower() and character.isascii()]
    pairs = [(first, second) for first in ["Ġ", *letters] for second in letters]
    pairs = pairs[: _PRINTABLE_VOCABULARY - len(SPECIAL) - len(characters)]
    tokens = [*characters, *("".join(pair) for pair in pairs), *SPECIAL]
    end = tokens.index(SPECIAL[2])

    def fill(model: nn.Module) -> None:
        _randomise(seed)(model)
        # A row of zeros in the tied embedding is a logit of 0, which the likeliest of hundreds of others always beats.
        embedding = dict(_flat(model))["model.embed_tokens.weight"]
        special = mx.arange(len(tokens))[:, None] >= len(tokens) - len(SPECIAL)
        model.load_weights([("model.embed_tokens.weight", mx.where(special, 0.0, embedding))], strict=False)

    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    config = {**_LLAMA, **shape, "vocab_size": len(tokens), "max_position_embeddings": context_length}
    _write_model(directory, {**config, "bos_token_id": end - 2, "eos_token_id": end}, fill)
    make_tokenizer(directory, BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs))
    return directory


def make_pair(directory: Path, *, layers: int = 8, width: int = 64) -> tuple[Path, Path]:
    """A printable llama whose layers but the first say little, and one of its first layer: it often agrees."""
    large = make_printable_llama(directory / "large", layers=layers, width=width)
    small = make_printable_llama(directory / "small", layers=1, width=width)
    weights = cast("dict[str, mx.array]", mx.load(str(large / "model.safetensors")))
    quiet = ("o_proj.weight", "down_proj.weight")
    for name, weight in weights.items():
        if name.endswith(quiet) and ".layers.0." not in name:
            weights[name] = weight * _WHISPER
    _save(large, weights)
    _save(small, {name: weight for name, weight in weights.items() if ".layers." not in name or ".layers.0." in name})
    return large, small


def make_qwen3(directory: Path) -> Path:
    """Random; attention with normalised queries and keys, untied output."""
    return _make_random(directory, _QWEN3)


def make_gemma3(directory: Path) -> Path:
    """Random; one layer's cache rotates over the last 16 tokens."""
    return _make_random(directory, _GEMMA3)


def make_lfm2(directory: Path) -> Path:
    """Random; a convolution layer with a state of its own beside an attention layer, correct in batches."""
    return _make_random(directory, _LFM2)


def make_mamba(directory: Path) -> Path:
    """Random; recurrent, and its state takes padding in, so that its prompts must not share a pass."""
    return _make_random(directory, _MAMBA)


def make_llama4(directory: Path) -> Path:
    """Random; caches in chunks of 16 tokens, which cannot be merged into a batch. Its facts are in a `text_config`."""
    return _make_random(directory, _LLAMA4)


def make_speller(directory: Path, *, context_length: int = 512, weight: int = 128) -> Path:
    """A llama that goes on with `SPELLED` from any byte of it, and ends its turn after the last one. A larger `weight`,
    the width of its MLP, makes it larger, and changes nothing about what it says.

    No byte occurs twice in that text. Attention and MLP add nothing, so the state is the last token's embedding, and
    the output row of each token is the embedding of the token that comes before it.
    """
    spelled = token_ids(SPELLED)
    shape = {"tie_word_embeddings": False, "max_position_embeddings": context_length, "intermediate_size": weight}
    _write_model(directory, {**_LLAMA, **shape}, _following([[*spelled, EOS]], VOCABULARY))
    make_tokenizer(directory)
    return directory


def make_actor(
    directory: Path, roles: Mapping[str, Sequence[str]], *, chat_template: str, context_length: int = 2048
) -> Path:
    """A llama that goes on with the pieces of a role behind the token of its name, and then ends its turn.

    Names and pieces are tokens, so that no piece may occur twice.
    """
    added = [text for name, pieces in roles.items() for text in (name, *pieces)]
    vocabulary = VOCABULARY + len(added)
    ids = {text: VOCABULARY + number for number, text in enumerate(added)}
    chains = [[*(ids[text] for text in (name, *pieces)), EOS] for name, pieces in roles.items()]
    config = {
        **_LLAMA,
        "tie_word_embeddings": False,
        "max_position_embeddings": context_length,
        "vocab_size": vocabulary,
    }
    _write_model(directory, config, _following(chains, vocabulary))
    make_tokenizer(directory, chat_template=chat_template, added=added)
    return directory


def _following(chains: Sequence[Sequence[int]], vocabulary: int) -> Callable[[nn.Module], None]:
    """Weights with which each token is followed by the next one of its chain. Only the last of a chain may be in
    several of them."""

    def fill(model: nn.Module) -> None:
        mx.random.seed(0)
        embedding = mx.random.normal((vocabulary, int(_LLAMA["hidden_size"])))
        rows = [mx.zeros(embedding.shape[1])] * vocabulary
        for chain in chains:
            for token_id, following in pairwise(chain):
                rows[following] = rows[following] + embedding[token_id]
        weights = dict(_flat(model))
        for name, weight in weights.items():
            silent = name.endswith(("o_proj.weight", "down_proj.weight"))
            weights[name] = mx.zeros_like(weight) if silent else mx.ones_like(weight)
        weights["model.embed_tokens.weight"] = embedding
        weights["lm_head.weight"] = mx.stack(rows)
        model.load_weights(list(weights.items()))

    return fill


def make_adapter(
    directory: Path, model: Path, *, seed: int = 0, rank: int = 4, keys: Sequence[str] = ("self_attn.q_proj",)
) -> Path:
    """A LoRA adapter for `model` in mlx-lm's form, with random weights for the layers named `keys` of all blocks, large
    enough to change what it says."""
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    directory.mkdir(parents=True, exist_ok=True)
    parameters = {"rank": rank, "scale": 4.0, "dropout": 0.1, "keys": list(keys)}
    adapted = load_model(model)[0]
    layers: int = len(cast(Any, adapted).layers)
    linear_to_lora_layers(adapted, layers, parameters)
    mx.random.seed(seed)
    weights = {
        name: mx.random.normal(value.shape) * _WEIGHT_SCALE
        for name, value in _flat(adapted)
        if name.endswith((".lora_a", ".lora_b"))
    }
    cast(Any, mx).save_safetensors(str(directory / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    _write_json(directory / "adapter_config.json", config)
    return directory


def make_tokenizer(
    directory: Path,
    model: BPE | None = None,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    added: Sequence[str] = (),
) -> None:
    """One token a byte, then the special ones, unless another model is given; then the texts that are `added`."""
    bytewise = {character: index for index, character in enumerate(ALPHABET)}
    tokenizer = Tokenizer(BPE(vocab=bytewise, merges=[]) if model is None else model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    cast(Any, tokenizer).add_special_tokens(special)
    cast(Any, tokenizer).add_tokens([AddedToken(text, normalized=False) for text in added])
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[2],
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    _write_json(directory / "tokenizer_config.json", config)


def token_ids(text: str) -> list[int]:
    """What the byte-level tokenizer makes of a text without special tokens."""
    return [ALPHABET.index(character) for character in _as_byte_characters(text)]


def _as_byte_characters(text: str) -> str:
    [(characters, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return characters


def _make_random(directory: Path, config: Mapping[str, Any]) -> Path:
    _write_model(directory, config, _randomise(0))
    make_tokenizer(directory)
    return directory


def _randomise(seed: int) -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        mx.random.seed(seed)
        # Norms of one keep the layers loud enough that greedy texts do not settle on one token.
        weights = [
            (name, mx.ones(value.shape) if "norm" in name else mx.random.normal(value.shape) * _WEIGHT_SCALE)
            for name, value in _flat(model)
        ]
        model.load_weights(weights)

    return fill


def _write_model(
    directory: Path, config: Mapping[str, Any], fill: Callable[[nn.Module], None], *, bits: int | None = None
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, **config}
    architecture: Any = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model: nn.Module = architecture.Model(architecture.ModelArgs.from_dict(described))
    fill(model)
    if bits is not None:
        described["quantization"] = {"group_size": 32, "bits": bits}
        cast(Any, nn).quantize(model, group_size=32, bits=bits)
    _save(directory, dict(_flat(model)))
    _write_json(directory / "config.json", described)


def _save(directory: Path, weights: dict[str, mx.array]) -> None:
    save: Any = mx.save_safetensors  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  untyped stub
    save(str(directory / "model.safetensors"), weights, {"format": "mlx"})


def _flat(model: nn.Module) -> list[tuple[str, mx.array]]:
    return cast(Any, utils).tree_flatten(cast(Any, model).parameters())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--printable", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="of a printable one")
    parser.add_argument("--pair", action="store_true", help="DIRECTORY/large and DIRECTORY/small")
    arguments = parser.parse_args()
    if arguments.pair:
        make_pair(arguments.directory, layers=arguments.layers, width=arguments.width)
        raise SystemExit
    make = partial(make_printable_llama, width=arguments.width) if arguments.printable else make_llama
    make(arguments.directory, context_length=4096, seed=arguments.seed, layers=arguments.layers)
