"""Embedding models and rerankers that a test makes for itself: seeded random weights, and a byte-level tokenizer that
puts every text between two special tokens, as BERT's does."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx import utils
from tokenizers import Tokenizer, processors

from .tiny_models import SPECIAL, VOCABULARY, make_tokenizer

CLS, SEP, PAD = 257, 258, 256
WIDTH = 64

_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
}
_BERT: Mapping[str, Any] = {**_SHAPE, "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}
_XLM_ROBERTA: Mapping[str, Any] = {
    **_BERT,
    "model_type": "xlm-roberta",
    "max_position_embeddings": 512 + PAD + 1,
    "type_vocab_size": 1,
}
_MODERNBERT: Mapping[str, Any] = {
    **_SHAPE,
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "global_attn_every_n_layers": 2,
    "local_attention": 8,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
}
_QWEN3: Mapping[str, Any] = {
    **_SHAPE,
    "model_type": "qwen3",
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def make_bert(directory: Path, *, pooling: str = "mean", normalise: bool = True, tokens: int = 512) -> Path:
    """An input of it has at most so many `tokens`."""
    return _make(directory, "bert", _BERT, pooling, normalise=normalise, tokens=tokens)


def make_xlm_roberta(directory: Path) -> Path:
    return _make(directory, "xlm_roberta", _XLM_ROBERTA, "mean")


def make_modernbert(directory: Path) -> Path:
    """Every second layer looks 4 tokens far."""
    return _make(directory, "modernbert", _MODERNBERT, "cls")


def make_qwen3_embedding(directory: Path) -> Path:
    """A decoder: its tokens look back only, and its last one stands for all."""
    return _make(directory, "qwen3_embedding", _QWEN3, "lasttoken")


def make_reranker(directory: Path) -> Path:
    """A BERT that scores pairs of texts."""
    config = {**_BERT, "architectures": ["BertForSequenceClassification"], "num_labels": 1}
    _write_weights(directory, "bert", config, "SequenceClassificationModel", prefix="bert.")
    _write_tokenizer(directory)
    return directory


def _make(
    directory: Path, module: str, config: Mapping[str, Any], pooling: str, *, normalise: bool = True, tokens: int = 512
) -> Path:
    _write_weights(directory, module, config, "Model")
    _write_tokenizer(directory)
    names = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": paths[name], "type": f"sentence_transformers.models.{name}"} for name in names]
    _write(directory / "modules.json", modules)
    _write(directory / "sentence_bert_config.json", {"max_seq_length": tokens})
    (directory / "1_Pooling").mkdir()
    _write(directory / "1_Pooling" / "config.json", {"pooling_mode": pooling})
    return directory


def _write_weights(directory: Path, module: str, config: Mapping[str, Any], name: str, prefix: str = "") -> None:
    directory.mkdir(parents=True)
    architecture: Any = importlib.import_module(f"mlx_vlm.models.{module}")
    model: nn.Module = getattr(architecture, name)(architecture.ModelConfig.from_dict(dict(config)))
    mx.random.seed(0)
    flat: list[tuple[str, mx.array]] = cast(Any, utils).tree_flatten(cast(Any, model).parameters())
    weights = {
        prefix + key if key.startswith(("embeddings", "encoder", "pooler")) else key: (
            1 + mx.random.normal(value.shape) * 0.1 if "norm" in key.lower() else mx.random.normal(value.shape) * 0.3
        )
        for key, value in flat
    }
    save: Any = mx.save_safetensors  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  untyped stub
    save(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    _write(directory / "config.json", config)


def _write_tokenizer(directory: Path) -> None:
    make_tokenizer(directory, chat_template=None)
    tokenizer: Any = Tokenizer.from_file(str(directory / "tokenizer.json"))
    first, last = SPECIAL[1], SPECIAL[2]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, CLS), (last, SEP)],
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    _write(path, {**config, "pad_token": SPECIAL[0], "model_input_names": names})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
