from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.sample_utils import LogitsProcessor, Sampler

class GenerationResponse:
    text: str
    token: int
    finish_reason: str | None

class GenerationBatch:
    class Response:
        uid: int
        token: int
        finish_reason: str | None

generation_stream: mx.Stream

class PromptProcessingBatch:
    prompt_cache: list[Any]
    def __init__(self, model: nn.Module, uids: list[int], caches: list[list[Any]]) -> None: ...
    def prompt(self, tokens: list[list[int]]) -> None: ...
    class Response:
        uid: int
        progress: tuple[int, int]
        end_of_prompt: bool

class BatchGenerator:
    def __init__(
        self,
        model: nn.Module,
        *,
        max_tokens: int = 128,
        stop_tokens: Sequence[Sequence[int]] | None = None,
        sampler: Sampler | None = None,
        completion_batch_size: int = 32,
        prefill_batch_size: int = 8,
        prefill_step_size: int = 2048,
    ) -> None: ...
    def insert(
        self,
        prompts: list[list[int]],
        max_tokens: list[int] | None = None,
        *,
        samplers: list[Sampler] | None = None,
        logits_processors: list[list[LogitsProcessor]] | None = None,
    ) -> list[int]: ...
    def remove(self, uids: list[int]) -> dict[int, Any]: ...
    def next(self) -> tuple[list[PromptProcessingBatch.Response], list[GenerationBatch.Response]]: ...
    def close(self) -> None: ...

def generate_step(
    prompt: mx.array,
    model: nn.Module,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    logits_processors: list[LogitsProcessor] | None = None,
    prefill_step_size: int = 2048,
) -> Iterator[tuple[int, mx.array]]: ...
def stream_generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | list[int] | mx.array,
    max_tokens: int = 256,
    *,
    sampler: Sampler | None = None,
    logits_processors: list[LogitsProcessor] | None = None,
) -> Iterator[GenerationResponse]: ...
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | list[int],
    verbose: bool = False,
    *,
    max_tokens: int = 256,
) -> str: ...
