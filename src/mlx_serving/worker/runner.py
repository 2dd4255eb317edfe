"""Running the sequences of one model: prompts in, one token a sequence and step out.

`BatchRunner` shares every step between all its sequences with mlx-lm's batch classes. `SoloRunner` serves models that
cannot be batched: its sequences take turns, each with a cache of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import LogitsProcessor

from mlx_serving.worker.sampling import Sampler, greedy

# The step's own limit must never bind: the sequence knows when it ends.
_UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence as the device sees it."""

    stream_id: str
    token_ids: list[int]
    sampler: Sampler
    processors: list[LogitsProcessor]


class Runner(Protocol):
    def add(self, job: Job) -> None: ...

    def remove(self, stream_id: str) -> None:
        """Forget a sequence; its slot is free at the next step. Unknown ids are ignored."""
        ...

    def step(self) -> list[tuple[str, int]]:
        """Do one piece of work, a prompt chunk or a decode step: the new tokens as (stream id, token id)."""
        ...

    def close(self) -> None:
        """Wait for the device: what it still reads must not be freed. Nothing may be called afterwards."""
        ...


RunnerFactory = Callable[[nn.Module, bool], Runner]
"""Called with a model and whether its sequences may share steps."""


def make_runner(model: nn.Module, batching: bool, *, prefill_step_size: int, max_num_seqs: int) -> Runner:
    if batching:
        return BatchRunner(model, prefill_step_size, max_num_seqs)
    return SoloRunner(model, prefill_step_size)


class BatchRunner:
    def __init__(self, model: nn.Module, prefill_step_size: int, max_num_seqs: int) -> None:
        self._generator = BatchGenerator(
            model,
            sampler=greedy,
            completion_batch_size=max_num_seqs,
            prefill_batch_size=min(8, max_num_seqs),
            prefill_step_size=prefill_step_size,
        )
        self._uid_of: dict[str, int] = {}
        self._stream_of: dict[int, str] = {}

    def add(self, job: Job) -> None:
        [uid] = self._generator.insert(
            [job.token_ids],
            [_UNLIMITED],
            samplers=[job.sampler],
            logits_processors=[job.processors],
        )
        self._uid_of[job.stream_id] = uid
        self._stream_of[uid] = job.stream_id

    def remove(self, stream_id: str) -> None:
        uid = self._uid_of.pop(stream_id, None)
        if uid is not None:
            del self._stream_of[uid]
            self._generator.remove([uid])

    def step(self) -> list[tuple[str, int]]:
        _, generated = self._generator.next()
        return [(self._stream_of[response.uid], response.token) for response in generated]

    def close(self) -> None:
        self._generator.close()
        mx.synchronize(generation_stream)


class SoloRunner:
    def __init__(self, model: nn.Module, prefill_step_size: int) -> None:
        self._model = model
        self._prefill_step_size = prefill_step_size
        self._turns: deque[_SoloSequence] = deque()

    def add(self, job: Job) -> None:
        self._turns.append(_SoloSequence(self._model, job, self._prefill_step_size))

    def remove(self, stream_id: str) -> None:
        self._turns = deque(sequence for sequence in self._turns if sequence.stream_id != stream_id)

    def step(self) -> list[tuple[str, int]]:
        if not self._turns:
            return []
        sequence = self._turns[0]
        token_id = sequence.advance()
        self._turns.rotate(-1)
        return [] if token_id is None else [(sequence.stream_id, token_id)]

    def close(self) -> None:
        self._turns.clear()
        mx.synchronize(generation_stream)


class _SoloSequence:
    """One sequence with its cache. It does what mlx-lm's `generate_step` does, but a piece at a time."""

    def __init__(self, model: nn.Module, job: Job, prefill_step_size: int) -> None:
        self.stream_id = job.stream_id
        self._model: Callable[..., mx.array] = model
        self._job = job
        self._prefill_step_size = prefill_step_size
        self._cache: list[Any] = make_prompt_cache(model)
        self._prefilled = 0
        self._next: mx.array | None = None
        self._seen = mx.array(job.token_ids[:-1], dtype=mx.uint32)  # what the processors are shown

    def advance(self) -> int | None:
        """Read a chunk of the prompt, or give the next token id."""
        last = len(self._job.token_ids) - 1
        with mx.stream(generation_stream):
            if self._prefilled < last:
                end = min(self._prefilled + self._prefill_step_size, last)
                self._model(mx.array([self._job.token_ids[self._prefilled : end]]), cache=self._cache)
                mx.eval([cache.state for cache in self._cache])  # pyright: ignore[reportUnknownMemberType]  untyped stub
                mx.clear_cache()
                self._prefilled = end
                return None
            token = self._next if self._next is not None else self._launch(mx.array(self._job.token_ids[last:]))
            self._next = self._launch(token)  # before the host looks at the last one
            return cast(int, token.item())

    def _launch(self, token: mx.array) -> mx.array:
        logits = self._model(token[None], cache=self._cache)[:, -1, :]
        if self._job.processors:
            self._seen = mx.concatenate([self._seen, token])
            for process in self._job.processors:
                logits = process(self._seen, logits)
        sampled = self._job.sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.async_eval(sampled)  # pyright: ignore[reportUnknownMemberType]  untyped stub
        return sampled
