"""A model in memory, with everything that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.weight_options import AS_THEY_ARE, WeightOptions
from mlx_serving.wire.methods import LoadModelResult
from mlx_serving.worker.grammar.structure import StructureCompiler
from mlx_serving.worker.loading.weights import Base
from mlx_serving.worker.model_runner import ModelRunner, RunnerFactory
from mlx_serving.worker.output_style import OutputStyle
from mlx_serving.worker.packed_kv import make_caches
from mlx_serving.worker.token_bytes import TokenBytes
from mlx_serving.worker.tokenizing import Decode, PromptTokenizer


@dataclass(slots=True)
class LoadedModel:
    """`tokenizer` belongs to the tokenizer thread, `structures` to the grammar thread, everything
    else to the thread that owns MLX.

    `generation_config` is the model's own file of sampling defaults, empty when it has none. `kv_bytes_per_token` is
    what a token takes in the caches of all layers, `prefill_memory` what computing a prompt takes besides. XTC sampling
    never removes `spared_token_ids`: the end of the turn and line breaks. `output` is how its answers are marked,
    `knows_tools` whether its template tells it of tools; `decode_marked` gives the markers with the text. Models of one
    `fingerprint` compute the same KV from the same tokens. Pieces can be cut out of the caches of one that is
    `cuttable`. `blind` says why it takes no images, None if it does. `base` are the weights that it shares with others,
    or will, in the form that `options` say; None if it shares none. `own_bytes` it has besides.
    """

    facts: LoadModelResult
    model: nn.Module
    tokenizer: PromptTokenizer
    structures: StructureCompiler
    decode: Decode
    token_bytes: TokenBytes
    generation_config: Mapping[str, object]
    eos_token_ids: frozenset[int]
    spared_token_ids: frozenset[int]
    make_runner: RunnerFactory
    kv_bytes_per_token: int
    prefill_memory: PrefillMemory
    output: OutputStyle
    knows_tools: bool
    decode_marked: Decode
    fingerprint: str
    cuttable: bool
    blind: str | None = "it reads text only"
    options: WeightOptions = AS_THEY_ARE
    base: Base | None = None
    own_bytes: int = 0
    runner: ModelRunner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = self._new_runner()

    @property
    def model_id(self) -> str:
        return self.facts.model_id

    def make_caches(self) -> list[Any]:
        """Empty ones, as its sequences have them."""
        return make_caches(self.model, self.options.kv)

    def renew_runner(self) -> None:
        self.runner.close()
        self.runner = self._new_runner()

    def _new_runner(self) -> ModelRunner:
        # As many tokens take as much memory in the caches as the weights do: reading either costs a step the same.
        padding_tokens = self.facts.memory_bytes / self.kv_bytes_per_token if self.kv_bytes_per_token else math.inf
        return self.make_runner(self.model, self.facts.capabilities, padding_tokens, self.options.kv)
