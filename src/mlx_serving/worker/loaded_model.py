"""A model in memory, with everything that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.nn as nn

from mlx_serving.wire.methods import LoadModelResult
from mlx_serving.worker.model_runner import ModelRunner, RunnerFactory
from mlx_serving.worker.tokenizing import Decode, PromptTokenizer


@dataclass(slots=True)
class LoadedModel:
    """`tokenizer` belongs to the tokenizer thread, everything else to the thread that owns MLX.

    `generation_config` is the model's own file of sampling defaults, empty when it has none. `kv_bytes_per_token` is
    what a token takes in the caches of all layers.
    """

    facts: LoadModelResult
    model: nn.Module
    tokenizer: PromptTokenizer
    decode: Decode
    generation_config: Mapping[str, object]
    eos_token_ids: frozenset[int]
    make_runner: RunnerFactory
    runner: ModelRunner
    kv_bytes_per_token: int

    @property
    def model_id(self) -> str:
        return self.facts.model_id

    def renew_runner(self) -> None:
        self.runner.close()
        self.runner = self.make_runner(self.model, self.facts.batching, self.facts.vocab_size)
