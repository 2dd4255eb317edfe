"""What encoders compute, in numpy and 64 bits, written from the papers and the files of the models and from no library.

BERT and XLM-RoBERTa; ModernBERT. Slow, and one text at a time, so that no padding can be wrong.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

Array: TypeAlias = npt.NDArray[np.float64]

# Between points so close, a straight line is within 2e-9 of the error function.
_POINTS = np.linspace(-6, 6, 120_001)
_ERF = np.array([math.erf(point) for point in _POINTS])


class ReferenceEncoder:
    def __init__(self, directory: Path) -> None:
        self.config: Mapping[str, Any] = json.loads((directory / "config.json").read_text())
        with cast(Any, safe_open)(directory / "model.safetensors", "numpy") as file:
            names: list[str] = list(file.keys())  # safetensors has keys and is no mapping
            self._weights: dict[str, Array] = {name: file.get_tensor(name).astype(np.float64) for name in names}

    def states(self, token_ids: Sequence[int], types: Sequence[int] | None = None) -> Array:
        """[tokens, width] behind the last layer."""
        if self.config["model_type"] == "modernbert":
            return self._modernbert(token_ids)
        return self._bert(token_ids, [0] * len(token_ids) if types is None else types)

    def vector(self, token_ids: Sequence[int], pooling: str, *, normalise: bool = True) -> Array:
        pooled = pooled_states(self.states(token_ids), pooling)
        return pooled / np.linalg.norm(pooled) if normalise else pooled

    def score(self, token_ids: Sequence[int], types: Sequence[int]) -> float:
        """Of a BERT classifier with one label, before any sigmoid."""
        first = self.states(token_ids, types)[0]
        return float(self._linear("classifier", np.tanh(self._linear("pooler.dense", first)))[0])

    def _bert(self, token_ids: Sequence[int], types: Sequence[int]) -> Array:
        offset = self.config["pad_token_id"] + 1 if self.config["model_type"] == "xlm-roberta" else 0
        positions = np.arange(len(token_ids)) + offset
        states = (
            self._of("embeddings.word_embeddings.weight")[list(token_ids)]
            + self._of("embeddings.position_embeddings.weight")[positions]
            + self._of("embeddings.token_type_embeddings.weight")[list(types)]
        )
        states = self._norm("embeddings.LayerNorm", states)
        for layer in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}"
            query, key, value = (
                self._linear(f"{name}.attention.self.{each}", states) for each in ("query", "key", "value")
            )
            mixed = self._attention(query, key, value, np.zeros((len(token_ids), len(token_ids))))
            mixed = self._linear(f"{name}.attention.output.dense", mixed)
            states = self._norm(f"{name}.attention.output.LayerNorm", mixed + states)
            inner = _gelu(self._linear(f"{name}.intermediate.dense", states))
            states = self._norm(f"{name}.output.LayerNorm", self._linear(f"{name}.output.dense", inner) + states)
        return states

    def _modernbert(self, token_ids: Sequence[int]) -> Array:
        config = self.config
        count, width = len(token_ids), config["hidden_size"]
        states = self._norm("embeddings.norm", self._of("embeddings.tok_embeddings.weight")[list(token_ids)])
        distance = np.abs(np.arange(count)[:, None] - np.arange(count)[None, :])
        for layer in range(config["num_hidden_layers"]):
            name = f"layers.{layer}"
            local = layer % config["global_attn_every_n_layers"] != 0
            inputs = states if layer == 0 else self._norm(f"{name}.attn_norm", states)
            query, key, value = np.split(self._linear(f"{name}.attn.Wqkv", inputs), 3, axis=1)
            base = config["local_rope_theta"] if local else config["global_rope_theta"]
            mask = np.where(local & (distance > config["local_attention"] // 2), -np.inf, 0.0)
            mixed = self._attention(self._rotated(query, base), self._rotated(key, base), value, mask)
            states = states + self._linear(f"{name}.attn.Wo", mixed)
            inner, gate = np.split(self._linear(f"{name}.mlp.Wi", self._norm(f"{name}.mlp_norm", states)), 2, axis=1)
            states = states + self._linear(f"{name}.mlp.Wo", _gelu(inner) * gate)
        assert states.shape == (count, width)
        return self._norm("final_norm", states)

    def _attention(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
        count = len(query)
        heads = self.config["num_attention_heads"]
        query, key, value = (each.reshape(count, heads, -1).transpose(1, 0, 2) for each in (query, key, value))
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1]) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ value
        return mixed.transpose(1, 0, 2).reshape(count, -1)

    def _rotated(self, states: Array, base: float) -> Array:
        """Pairs are a dimension of the first half and one of the second."""
        count, width = states.shape
        size = width // self.config["num_attention_heads"]
        heads = states.reshape(count, -1, size)
        slowing: Array = np.exp(np.arange(0, size, 2, dtype=np.float64) * (-math.log(base) / size))
        angles: Array = np.arange(count, dtype=np.float64)[:, None] * slowing
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = heads[..., : size // 2], heads[..., size // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1).reshape(count, width)

    def _linear(self, name: str, states: Array) -> Array:
        bias = self._weights.get(self._known(f"{name}.bias"))
        product = states @ self._of(f"{name}.weight").T
        return product if bias is None else product + bias

    def _norm(self, name: str, states: Array) -> Array:
        epsilon = self.config.get("layer_norm_eps", self.config.get("norm_eps", 1e-12))
        centred = states - states.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon) * self._of(f"{name}.weight")
        bias = self._weights.get(self._known(f"{name}.bias"))
        return scaled if bias is None else scaled + bias

    def _of(self, name: str) -> Array:
        return self._weights[self._known(name)]

    def _known(self, name: str) -> str:
        """A classifier's file has the encoder under a prefix."""
        return name if name in self._weights else f"bert.{name}"


def pooled_states(states: Array, pooling: str) -> Array:
    match pooling:
        case "cls":
            return states[0]
        case "last":
            return states[-1]
        case "max":
            return states.max(0)
        case "mean_sqrt_len":
            return states.sum(0) / math.sqrt(len(states))
        case _:
            return states.mean(0)


def cosine(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _gelu(values: Array) -> Array:
    return values * 0.5 * (1 + np.interp(values / math.sqrt(2), _POINTS, _ERF))


def vectors_aside(directory: Path, inputs: Sequence[Sequence[int]], pooling: str) -> list[list[float]]:
    """The vectors of inputs, computed in a process whose BLAS has one thread: where others compute, too, its threads
    wait for each other many times longer than they work."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.reference_encoder", str(directory), pooling],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        input=json.dumps(inputs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout)


if __name__ == "__main__":
    encoder = ReferenceEncoder(Path(sys.argv[1]))
    json.dump([encoder.vector(each, sys.argv[2]).tolist() for each in json.load(sys.stdin)], sys.stdout)
