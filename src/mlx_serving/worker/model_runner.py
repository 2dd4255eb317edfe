"""One model on the device: prompts are computed in chunks, sequences whose prompt is done decode together.

Sequences of a model whose caches cannot be merged decode alone; everything else is the same for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.core.scheduling import PrefillChunk
from mlx_serving.worker.batch import DecodeBatch, Token
from mlx_serving.worker.sampler import SamplingRow


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence as the device sees it: `token_ids` of its prompt, and of its answer those that were `drawn` before.
    `seed` decides its draws."""

    stream_id: str
    token_ids: Sequence[int]
    sampling: ResolvedSampling
    seed: int
    drawn: Sequence[int] = ()


class _Prompt:
    """A sequence whose prompt is being computed, in caches of its own.

    Its last token is left to the batch: it is the first thing the sequence is fed there, and that step gives its first
    token. So no chunk pays for logits.
    """

    def __init__(self, row: SamplingRow, model: nn.Module) -> None:
        self.row = row
        self.token_ids = [*row.prompt, *row.drawn]
        self.caches = make_prompt_cache(model)
        self.done = 0

    def advance(self, model: Any, end: int) -> None:
        """Compute up to `end`."""
        if end > self.done:
            model(mx.array([self.token_ids[self.done : end]], dtype=mx.uint32), cache=self.caches)
            cast(Any, mx).eval([cache.state for cache in self.caches])
            self.done = end


class ModelRunner:
    """`batching`: whether sequences may share steps; `vocabulary`: entries of the model's logits."""

    def __init__(self, model: nn.Module, batching: bool, vocabulary: int) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._rows: dict[str, SamplingRow] = {}
        self._prompts: dict[str, _Prompt] = {}
        self._shared = DecodeBatch(model, vocabulary, shared=True) if batching else None
        self._alone: dict[str, DecodeBatch] = {}

    def open(self, job: Job) -> None:
        """Take a sequence in; nothing is computed yet."""
        self._rows[job.stream_id] = SamplingRow(
            job.sampling, job.seed, job.token_ids, drawn=list(job.drawn), position=len(job.drawn)
        )

    def admit(self, stream_id: str) -> None:
        """Give a sequence an empty cache: its prompt is computed from the start."""
        self._prompts[stream_id] = _Prompt(self._rows[stream_id], self._model)

    def run(self, decode: Collection[str], prefill: Sequence[PrefillChunk], ending: Collection[str]) -> list[Token]:
        """One step: the chunks of `prefill`, then a token for `decode` and for whose prompt is complete now.

        Returns the tokens of the launch before; those of this one come with the next call, or with `drain`. Who was
        removed since the step was ordered is passed over.
        """
        begun = [chunk.id for chunk in prefill if self._compute(chunk)]
        if self._shared is not None:
            return self._shared.step(ending) if decode or begun else self._shared.drain()
        batches = {id: batch for id in (*decode, *begun) if (batch := self._alone.get(id)) is not None}  # noqa: A001
        tokens = [token for batch in batches.values() for token in batch.step(ending)]
        return tokens + [
            token for stream_id, batch in self._alone.items() if stream_id not in batches for token in batch.drain()
        ]

    def drain(self) -> list[Token]:
        """Wait for what was launched: the tokens that no call has returned yet."""
        return [token for batch in self._batches() for token in batch.drain()]

    def evict(self, stream_id: str) -> None:
        """Drop a sequence's cache but not the sequence: it is admitted again later. Drain first."""
        self._prompts.pop(stream_id, None)
        self._leave(stream_id)

    def remove(self, stream_id: str) -> None:
        """Forget a sequence, wherever it is. Unknown ids are ignored."""
        self._rows.pop(stream_id, None)
        self._prompts.pop(stream_id, None)
        self._leave(stream_id)

    @property
    def cache_bytes(self) -> int:
        """What the caches of all its sequences take."""
        prompts = sum(cache.nbytes for prompt in self._prompts.values() for cache in prompt.caches)
        return prompts + sum(batch.cache_bytes for batch in self._batches())

    def close(self) -> None:
        """Wait for the device: what it still reads must not be freed. Nothing may be called afterwards."""
        mx.synchronize()

    def _compute(self, chunk: PrefillChunk) -> bool:
        """Whether the sequence decodes from now on."""
        prompt = self._prompts.get(chunk.id)
        if prompt is None:
            return False
        prompt.advance(self._model, chunk.start + chunk.count - (1 if chunk.last else 0))
        if not chunk.last:
            return False
        del self._prompts[chunk.id]
        batch = self._shared
        if batch is None:
            batch = self._alone[chunk.id] = DecodeBatch(self._model, self._vocabulary, shared=False)
        batch.join(chunk.id, prompt.caches, prompt.done, prompt.token_ids[-1], prompt.row)
        return True

    def _leave(self, stream_id: str) -> None:
        if self._shared is not None:
            self._shared.leave(stream_id)
        self._alone.pop(stream_id, None)

    def _batches(self) -> list[DecodeBatch]:
        return list(self._alone.values()) if self._shared is None else [self._shared]


RunnerFactory = Callable[[nn.Module, bool, int], ModelRunner]
"""Called with a model, whether its sequences may share steps, and the size of its vocabulary."""
