"""One model on the device: prompts are computed in chunks, sequences whose prompt is done decode together.

Sequences of a model whose caches cannot be merged decode alone; everything else is the same for them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, QuantizedKVCache, trim_prompt_cache

from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.scheduling import PrefillChunk
from mlx_serving.core.speculation.policy import Drafting
from mlx_serving.wire.methods import ModelCapabilities
from mlx_serving.worker.batch import DecodeBatch, Place, Token
from mlx_serving.worker.job import Job
from mlx_serving.worker.packed_kv import make_caches
from mlx_serving.worker.prefix.cache import Beginning
from mlx_serving.worker.prompts import Prompt, advance_all
from mlx_serving.worker.sampling.row import SamplingRow
from mlx_serving.worker.speculation.model_drafter import ModelDrafter, weight_bytes
from mlx_serving.worker.speculation.speculator import Speculator


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What the caches of a sequence held after exactly these tokens. MLX shares the memory until one of them writes."""

    token_ids: Sequence[int]
    caches: list[Any]


class Offer(Protocol):
    """Takes what the caches of a sequence hold after exactly `token_ids`. They are the sequence's: whatever is to be
    kept must be copied at once. `whole`: all of it is of use to others, not only what was complete before."""

    def __call__(self, stream_id: str, token_ids: Sequence[int], caches: Sequence[Any], *, whole: bool) -> None: ...


def _decline(stream_id: str, token_ids: Sequence[int], caches: Sequence[Any], *, whole: bool) -> None:
    pass


class ModelRunner:
    """`padding_tokens`: as many tokens of padding in the caches of a batch cost what a pass over the weights costs.
    `kv` is the form of the caches, None as they are computed."""

    def __init__(
        self,
        model: nn.Module,
        capabilities: ModelCapabilities,
        padding_tokens: float = math.inf,
        kv: KvForm | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._capabilities = capabilities
        self._padding_tokens = padding_tokens
        self._spare_tokens = padding_tokens
        self._rows: dict[str, SamplingRow] = {}
        self._prompts: dict[str, Prompt] = {}
        self._parked: dict[str, list[Any]] = {}  # stream id -> the caches of a sequence that left the batch with them
        self._keeping: set[str] = set()
        self._offered: dict[str, int] = {}  # stream id -> how much of its answer was offered while it ran
        self._kept: dict[str, _Snapshot] = {}
        self._batches: list[DecodeBatch] = []
        self._place: Place | None = None
        takes_drafts = capabilities.draft and capabilities.batch and _takes_runs(make_caches(model, kv), capabilities)
        self.speculator = Speculator(ModelDrafter, able=takes_drafts, weight_bytes=weight_bytes(model))
        self.offer: Offer = _decline
        """Called with what was computed of a sequence: as its prompt goes on, and when it leaves."""

    def open(self, job: Job) -> Drafting | None:
        """Take a sequence in; nothing is computed yet. Returns what tells of its drafts, if it wants any."""
        row = self._rows[job.stream_id] = SamplingRow(
            job.sampling,
            job.seed,
            job.token_ids,
            list(job.drawn),
            len(job.drawn),
            rules=job.rules,
            matcher=job.matcher,
            thought=job.thought,
            max_tokens=job.max_tokens,
        )
        self.speculator.open(job.stream_id, row, job.speculation)
        return row.drafting

    def admit(self, stream_id: str, fork_of: str | None = None, beginning: Beginning | None = None) -> None:
        """Give a sequence caches: empty ones, so that its prompt is computed from the start; with `fork_of`, what that
        one's hold of all but the last token of the same prompt. Where that cannot be had, they are empty, too. With
        `beginning`, those, and what they hold is not computed."""
        prompt = self._prompts[stream_id] = self._prompt(stream_id)
        if beginning is not None:
            prompt.caches, prompt.done = beginning.caches, beginning.tokens
        elif fork_of is not None:
            self._copy(fork_of, prompt)

    def token_ids(self, stream_id: str) -> list[int]:
        """What names a sequence so far: its prompt, and what of its answer was read."""
        row = self._rows[stream_id]
        return [*row.prompt, *row.drawn]

    def keep(self, stream_id: str) -> None:
        """Forks of a sequence will come whose prompt is complete in the next step: keep what they need until `release`,
        or until the sequence is gone or evicted."""
        if not self._capabilities.trim:  # else its caches can be cut back to its prompt at any time
            self._keeping.add(stream_id)

    @property
    def kept(self) -> Collection[str]:
        """For whose forks something is kept."""
        return self._keeping

    def release(self, stream_id: str) -> None:
        """No forks of it will come."""
        self._keeping.discard(stream_id)
        self._kept.pop(stream_id, None)

    def run(self, decode: Collection[str], prefill: Sequence[PrefillChunk], ending: Collection[str]) -> list[Token]:
        """One step: the chunks of `prefill`, then a token for `decode` and for whose prompt is complete now.

        Returns the tokens of the launch before; those of this one come with the next call, or with `drain`. Who was
        removed since the step was ordered is passed over.
        """
        for stream_id in [stream_id for stream_id in self._parked if stream_id in decode]:
            self._unpark(stream_id)
        begun = self._compute([chunk for chunk in prefill if chunk.id in self._prompts]) if prefill else []
        # All who run are named, unless the model cannot be batched: then one is, and the others wait for their turns.
        named = {*decode, *begun}
        for stream_id in ending:
            self._offer_row(stream_id)  # with its last step it leaves
        turn = [batch for batch in self._batches if not batch.slots.isdisjoint(named)]
        others = [batch for batch in self._batches if batch not in turn]
        tokens = [token for batch in turn for token in batch.step(ending)]
        tokens += [token for batch in others for token in batch.drain()]
        self._batches = [batch for batch in self._batches if not batch.is_done]
        return tokens

    def offer_running(self, stream_ids: Collection[str], every: int) -> None:
        """Offer what those of these that decode have computed, if it is `every` tokens more than the last time."""
        if self.is_checking:  # which of the last tokens stay is not known
            return
        for stream_id in stream_ids:
            row = self._rows.get(stream_id)
            if row is not None and len(row.drawn) >= self._offered.get(stream_id, 0) + every:
                self._offered[stream_id] = len(row.drawn)
                self._offer_row(stream_id, whole=False)

    @property
    def is_checking(self) -> bool:
        """Whether drafts are being checked: `drain` tells how many tokens that gives."""
        return any(batch.is_checking for batch in self._batches)

    def drain(self) -> list[Token]:
        """Wait for what was launched: the tokens that no call has returned yet."""
        return [token for batch in self._batches for token in batch.drain()]

    def spans(self, job: Job) -> tuple[ImageSpan, ...]:
        """Where images stand in its prompt."""
        return ()

    def encode(self, stream_id: str, index: int) -> None:
        """Encode an image of a sequence, unless it is gone. Only models that see are given any."""
        raise NotImplementedError(f"{stream_id} has an image {index}, and this model does not see")

    def park(self, stream_id: str) -> None:
        """Take a sequence out of the batch with its caches: it joins again in the next step that decodes it. Drain
        first. A prompt stays where it stopped. Unknown ids are ignored."""
        # A sequence of a model that cannot be batched is alone anyway: nothing happens to it that it is not named for.
        if not self._capabilities.batch:
            return
        for batch in self._batches:
            if (caches := batch.slots.extract(stream_id)) is not None:
                batch.leave(stream_id)
                self._parked[stream_id] = caches

    def evict(self, stream_id: str) -> None:
        """Drop a sequence's cache but not the sequence: it is admitted again later. Drain first."""
        if (snapshot := self._snapshot(stream_id, peek=True)) is not None and snapshot.token_ids:
            self.offer(stream_id, snapshot.token_ids, snapshot.caches, whole=True)
        self._prompts.pop(stream_id, None)
        self._parked.pop(stream_id, None)
        self.speculator.rest(stream_id)
        self.release(stream_id)
        for batch in self._batches:
            batch.leave(stream_id)

    def remove(self, stream_id: str) -> None:
        """Forget a sequence, wherever it is. Unknown ids are ignored."""
        self.evict(stream_id)
        self.speculator.close(stream_id)
        self._rows.pop(stream_id, None)
        self._offered.pop(stream_id, None)

    def spare(self, tokens: float) -> None:
        """From now on, take no memory for more than so many tokens in a batch that are not there: padding, or room to
        grow."""
        self._spare_tokens = min(self._padding_tokens, tokens)
        for batch in self._batches:
            batch.slots.lengths.spare_tokens = self._spare_tokens

    def shrink(self) -> None:
        """Give back the room to grow that batches have."""
        for batch in self._batches:
            batch.slots.shrink()

    @property
    def cache_bytes(self) -> int:
        """What the caches of all its sequences take, what is kept for forks, and the caches of draft models."""
        apart = [*(prompt.caches for prompt in self._prompts.values()), *self._parked.values()]
        apart += [snapshot.caches for snapshot in self._kept.values()]
        own = sum(cache.nbytes for caches in apart for cache in caches)
        return own + sum(batch.slots.nbytes for batch in self._batches) + self.speculator.nbytes

    def close(self) -> None:
        """Wait for the device: what it still reads must not be freed. Nothing may be called afterwards."""
        mx.synchronize()

    def _compute(self, chunks: Sequence[PrefillChunk]) -> list[str]:
        """Who decodes from now on."""
        pieces = [(self._prompts[chunk.id], chunk.start + chunk.count - chunk.last) for chunk in chunks]
        advance_all(self._model, pieces, together=self._capabilities.batch_prefill)
        for chunk, (prompt, _) in zip(chunks, pieces, strict=True):
            if prompt.done:
                whole = chunk.last or chunk.shared
                self.offer(chunk.id, prompt.token_ids[: prompt.done], prompt.caches, whole=whole)
        begun = [chunk.id for chunk in chunks if chunk.last]
        for stream_id in begun:
            self._join(stream_id, self._prompts.pop(stream_id))
        return begun

    def _join(self, stream_id: str, prompt: Prompt) -> None:
        if stream_id in self._keeping:
            self._kept[stream_id] = _Snapshot(prompt.token_ids[: prompt.done], copy.deepcopy(prompt.caches))
        self._enter(stream_id, prompt.caches, prompt.token_ids)

    def _unpark(self, stream_id: str) -> None:
        self._enter(stream_id, self._parked.pop(stream_id), self.token_ids(stream_id))

    def _enter(self, stream_id: str, caches: list[Any], token_ids: Sequence[int]) -> None:
        """Let a sequence decode whose caches hold all these tokens but the last."""
        count = len(token_ids) - 1
        padding, batch = min(
            ((batch.slots.padding_with(count), batch) for batch in self._batches),
            key=lambda choice: choice[0],
            default=(math.inf, None),
        )
        if batch is None or padding > self._spare_tokens or math.isinf(padding):
            batch = DecodeBatch(
                self._model,
                shared=self._capabilities.batch,
                runs=_takes_runs(caches, self._capabilities),
                place=self._place,
                speculator=self.speculator if self.speculator.able else None,
            )
            batch.slots.lengths.spare_tokens = self._spare_tokens
            self._batches.append(batch)
        shift = self._shift(stream_id)
        batch.slots.join(stream_id, caches, count, token_ids[-1], self._rows[stream_id], shift=shift)

    def _prompt(self, stream_id: str) -> Prompt:
        return Prompt(self._model, self.token_ids(stream_id), self._kv)

    def _shift(self, stream_id: str) -> int:
        """By how much the positions of its answer are beyond their numbers."""
        return 0

    def _copy(self, parent: str, prompt: Prompt) -> None:
        wanted = prompt.token_ids[:-1]
        source = self._kept.get(parent) or self._snapshot(parent)
        if source is None or source.token_ids[: len(wanted)] != wanted:
            return
        caches = copy.deepcopy(source.caches)
        surplus = len(source.token_ids) - len(wanted)
        if surplus == 0 or (self._capabilities.trim and trim_prompt_cache(caches, surplus) == surplus):
            prompt.caches, prompt.done = caches, len(wanted)

    def _offer_row(self, stream_id: str, *, whole: bool = True) -> None:
        """Offer what one that decodes has computed."""
        for batch in self._batches:
            token_ids = self._held(stream_id, batch)
            if token_ids and (caches := batch.slots.peek(stream_id)) is not None:
                self.offer(stream_id, token_ids, caches, whole=whole)

    def _held(self, stream_id: str, batch: DecodeBatch) -> Sequence[int] | None:
        """The tokens that the caches of a row hold; None when it is not in that batch, or what it was fed last is no
        token of its answer: what could not be chosen has no name."""
        if (length := batch.slots.length(stream_id)) is None:
            return None
        token_ids = self.token_ids(stream_id)
        return token_ids[:length] if length <= len(token_ids) else None

    def _snapshot(self, stream_id: str, *, peek: bool = False) -> _Snapshot | None:
        """What the caches of a sequence hold now, wherever it is. With `peek`, until the next step only."""
        if (prompt := self._prompts.get(stream_id)) is not None:
            return _Snapshot(prompt.token_ids[: prompt.done], prompt.caches)
        if stream_id not in self._rows:
            return None
        if (parked := self._parked.get(stream_id)) is not None:
            return _Snapshot(self.token_ids(stream_id)[:-1], parked)
        for batch in self._batches:
            held = self._held(stream_id, batch)
            caches = None if held is None else (batch.slots.peek if peek else batch.slots.extract)(stream_id)
            if held is not None and caches is not None:
                return _Snapshot(held, caches)
        return None


RunnerFactory = Callable[[nn.Module, ModelCapabilities, float, KvForm | None], ModelRunner]
"""Called with a model, what it can do, its `padding_tokens`, and the form of its caches."""


def _takes_runs(caches: Sequence[Any], capabilities: ModelCapabilities) -> bool:
    """Whether the rows of a batch may be fed different numbers of tokens: padding must leave no trace in its caches,
    which a row alone has none of."""
    plain = all(type(cache) in (KVCache, QuantizedKVCache) for cache in caches)
    return not capabilities.batch or (capabilities.batch_prefill and plain)
