"""A llama of a few thousand weights with a byte-level tokenizer, as a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .gguf_files import MetadataValue, Tensor, floats, random_tensor, write_gguf

# Rows of 256 weights: the smallest that every packed kind can have.
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, CONTEXT = 256, 512, 2, 8, 4, 128
HEAD_DIM = HIDDEN // HEADS

BOS, END, USER_DEFINED = "<|bos|>", "<|end|>", "<tool>"
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or")


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE (`bytes_to_unicode` of GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


TOKENS = (*byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), BOS, END, USER_DEFINED)
TOKEN_TYPES = (*[1] * (len(TOKENS) - 3), 3, 3, 4)

METADATA: Mapping[str, MetadataValue] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": LAYERS,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": HEAD_DIM,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TOKEN_TYPES,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": TOKENS.index(BOS),
    "tokenizer.ggml.eos_token_id": TOKENS.index(END),
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
}


def matrices(kind: str) -> dict[str, Tensor]:
    """All tensors of the model, its matrices in the given kind."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"token_embd": (len(TOKENS), HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_q": (queries, HIDDEN),
            f"blk.{layer}.attn_k": (keys, HIDDEN),
            f"blk.{layer}.attn_v": (keys, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, queries),
            f"blk.{layer}.ffn_gate": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, INNER),
        }
    tensors = {f"{name}.weight": random_tensor(kind, shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    for layer in range(LAYERS):
        tensors[f"blk.{layer}.attn_norm.weight"] = floats([1.0] * HIDDEN)
        tensors[f"blk.{layer}.ffn_norm.weight"] = floats([0.9] * HIDDEN)
    return {**tensors, "output_norm.weight": floats([1.1] * HIDDEN)}


@dataclass(frozen=True, slots=True)
class TinyLlama:
    """A file to be written; the `with_…` methods give one that differs."""

    metadata: Mapping[str, MetadataValue] = field(default_factory=lambda: METADATA)
    tensors: Mapping[str, Tensor] = field(default_factory=lambda: matrices("F32"))

    def with_kind(self, kind: str) -> TinyLlama:
        return replace(self, tensors=matrices(kind))

    def with_metadata(self, changes: Mapping[str, MetadataValue]) -> TinyLlama:
        return replace(self, metadata={**self.metadata, **changes})

    def without_metadata(self, *keys: str) -> TinyLlama:
        return replace(self, metadata={key: value for key, value in self.metadata.items() if key not in keys})

    def with_tensors(self, changes: Mapping[str, Tensor]) -> TinyLlama:
        return replace(self, tensors={**self.tensors, **changes})

    def without_tensors(self, *names: str) -> TinyLlama:
        return replace(self, tensors={name: tensor for name, tensor in self.tensors.items() if name not in names})

    def write(self, path: Path) -> Path:
        return write_gguf(path, self.metadata, self.tensors)
