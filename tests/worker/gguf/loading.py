"""Converted directories, loaded by the libraries that they are made for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.utils import load_model


class TransformersTokenizer(Protocol):
    """The part of transformers' tokenizers that the tests use."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, token_ids: list[int]) -> str: ...
    def apply_chat_template(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str: ...


def auto_tokenizer(directory: Path) -> TransformersTokenizer:
    """What `AutoTokenizer` makes of the directory."""
    transformers: Any = importlib.import_module("transformers")
    return transformers.AutoTokenizer.from_pretrained(directory)


def mlx_lm_model(directory: Path) -> Any:
    """What mlx-lm makes of the directory."""
    return load_model(directory)[0]


def arrays(file: Path) -> dict[str, mx.array]:
    """The content of a safetensors file."""
    return cast(dict[str, mx.array], mx.load(str(file)))


def numbers(array: mx.array) -> npt.NDArray[np.float32]:
    """The content of an array."""
    return np.array(array.astype(mx.float32), dtype=np.float32)


def all_equal(some: dict[str, mx.array], others: dict[str, mx.array]) -> bool:
    """Whether both have the same arrays by the same names."""
    return set(some) == set(others) and all(bool(mx.array_equal(some[name], others[name]).item()) for name in some)
