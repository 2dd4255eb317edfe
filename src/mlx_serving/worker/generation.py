"""The sequences in flight, over all loaded models: the shell around `core.scheduler`.

The scheduler says what the device does next, the runners do it, the sequences turn tokens into text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from mlx_serving.core.generation import Priority
from mlx_serving.core.memory_share import tells_of_memory
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.runtime_telemetry import PrefixTelemetry
from mlx_serving.core.schedule.kv_budget import MEMORY_RETRY_S
from mlx_serving.core.schedule.scheduling import Encode, SchedulerLoad, Step
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.core.speculation.policy import Drafting, SpeculationCounts
from mlx_serving.errors import DeadlineExceeded, EngineError, GenerationError, Overloaded
from mlx_serving.wire.notifications import Completed, Row, StepFrame
from mlx_serving.worker.batch import Token
from mlx_serving.worker.job import Job
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.outcomes import Outcomes
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.sampling.logprobs import name
from mlx_serving.worker.sequence import RunningSequence
from mlx_serving.worker.vision.features import FeatureCache


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a sequence is served. `max_tokens` counts what was drawn before; `deadline` is monotonic seconds,
    `caller` who takes turns with others. `fork_of` is the stream id of one with the same prompt, whose computation of
    it this one may share. Only who names the same `salt` can begin with what is kept of others. A chunk of the prompt
    ends at each of `stops`, counts of tokens behind which others may go on differently."""

    max_tokens: int
    priority: Priority = "normal"
    caller: str = ""
    deadline: float | None = None
    fork_of: str | None = None
    salt: str = ""
    stops: tuple[int, ...] = ()


@dataclass(slots=True)
class _Entry:
    """`begun`: the runner has computed something for it, or is about to. `drafting` is there if that was asked for."""

    model: LoadedModel
    sequence: RunningSequence
    job: Job
    drafting: Drafting | None
    begun: bool = False


class Generation:
    """`prefixes` and `features` must be those that the scheduler asks; without any, nothing is kept."""

    def __init__(
        self, scheduler: Scheduler, prefixes: PrefixCache | None = None, features: FeatureCache | None = None
    ) -> None:
        self._scheduler = scheduler
        self._prefixes = prefixes or PrefixCache(PrefixCachePolicy(enabled=False))
        self._features = FeatureCache() if features is None else features
        self._prefixes.give_way(lambda: scheduler.memory.spare)
        self._models: dict[str, LoadedModel] = {}
        self._entries: dict[str, _Entry] = {}
        self._drafted_by_others = SpeculationCounts()  # by runners that are gone
        self.outcomes = Outcomes()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._entries

    @property
    def is_idle(self) -> bool:
        """Nothing to do before a command comes or `next_deadline` is reached: all sequences that are left are paused.
        One that the scheduler has done with may still have its last token to read."""
        return self._scheduler.is_idle and len(self._scheduler) == len(self._entries)

    @property
    def next_deadline(self) -> float | None:
        """Monotonic seconds; no sequence expires before."""
        return self._scheduler.next_deadline

    @property
    def paused(self) -> int:
        return self._scheduler.load().paused

    def stream_ids(self, model_id: str) -> list[str]:
        """The sequences of a model, waiting or running."""
        return [stream_id for stream_id, entry in self._entries.items() if entry.model.model_id == model_id]

    def load(self) -> SchedulerLoad:
        """What is going on, and what was done."""
        return self._scheduler.load()

    def cache_bytes(self) -> dict[str, int]:
        """What the caches of each model's sequences take, their room to grow included."""
        return {model_id: model.runner.cache_bytes for model_id, model in self._models.items()}

    def prefix_telemetry(self) -> PrefixTelemetry:
        return self._prefixes.telemetry()

    def add_model(self, model: LoadedModel) -> None:
        self._models[model.model_id] = model
        capabilities = model.facts.capabilities
        self._prefixes.add_model(model.model_id, model.fingerprint, exact=not model.cuttable, form=model.options.kv)
        model.runner.offer = self._prefixes.offer
        self._scheduler.add_model(
            model.model_id,
            kv_bytes_per_token=model.kv_bytes_per_token,
            batchable=capabilities.batch,
            trimmable=capabilities.trim,
            exact_prefixes=not model.cuttable,
            prefill_memory=model.prefill_memory,
        )

    def speculation(self) -> SpeculationCounts:
        """What was drafted, over all models since the start."""
        return sum((model.runner.speculator.counts for model in self._models.values()), self._drafted_by_others)

    def remove_model(self, model_id: str) -> None:
        """Forget a model that has no sequences left. Those that it has drafted for go on without."""
        model = self._models.pop(model_id)
        self._drafted_by_others += model.runner.speculator.counts
        model.runner.close()
        for other in self._models.values():
            other.runner.speculator.lose(model_id)
        if all(other.fingerprint != model.fingerprint for other in self._models.values()):
            self._features.remove_model(model.fingerprint)
        self._prefixes.remove_model(model_id)
        self._scheduler.remove_model(model_id)

    def submit(self, model: LoadedModel, sequence: RunningSequence, job: Job, terms: Terms) -> None:
        """Queue a sequence. Raises `Overloaded` when too many wait."""
        self._scheduler.add(
            job.stream_id,
            model.model_id,
            prompt_tokens=len(job.token_ids) + len(job.drawn),
            max_tokens=terms.max_tokens - len(job.drawn),
            now=time.monotonic(),
            priority=terms.priority,
            caller=terms.caller,
            deadline=terms.deadline,
            fork_of=self._parent(model, job, terms.fork_of),
            stops=terms.stops,
            images=tuple(picture.span for picture in job.pictures),
        )
        drafting = model.runner.open(job)
        self._features.open(job.stream_id, model.fingerprint, [picture.digest for picture in job.pictures])
        names = [*job.prepared.names, *job.drawn]
        self._prefixes.open(job.stream_id, model.model_id, names, salt=terms.salt, caller=terms.caller)
        self._entries[job.stream_id] = _Entry(model, sequence, job, drafting)

    def _parent(self, model: LoadedModel, job: Job, fork_of: str | None) -> str | None:
        """Whose prompt it is, if the hint is true."""
        entry = self._entries.get(fork_of) if fork_of is not None else None
        if entry is None or entry.model is not model or entry.job.prepared.names != job.prepared.names:
            return None
        return fork_of

    def abort(self, stream_id: str) -> Row | None:
        """End a stream now; its slot is free at the next step. None when it is not here."""
        entry = self._forget(stream_id)
        if entry is None:
            return None
        row = _with_drafts(entry.sequence.aborted(time.monotonic()), entry.drafting)
        self.outcomes.note([row])
        return row

    def pause(self, stream_id: str) -> list[Row]:
        """Give a sequence no steps until it is resumed; it keeps what was computed while memory lasts. Unknown ids are
        ignored. Returns what was under way in its model."""
        entry = self._entries.get(stream_id)
        if entry is None:
            return []
        rows = self._read(entry.model)
        if stream_id in self._entries:  # else one of those tokens ended it
            self._scheduler.pause(stream_id)
            entry.model.runner.park(stream_id)
        return rows

    def resume(self, stream_id: str) -> None:
        """Let a paused sequence go on. Unknown ids and those that are not paused are ignored."""
        self._scheduler.resume(stream_id)

    def resume_all(self) -> None:
        for stream_id in self._entries:
            self._scheduler.resume(stream_id)

    def step(self) -> StepFrame | None:
        """One step of one model, and what became known of any: None when that is nothing.

        Raises what tells of want of memory. That is nobody's fault: the worker is to end, and the next one, which plans
        with less, goes on with the sequences.
        """
        began = time.monotonic()
        rows = [self._end(stream_id, _expired()) for stream_id in self._scheduler.expire(began)]
        rows += [self._end(stream_id, _too_large()) for stream_id in self._scheduler.refuse_oversized()]
        # How many tokens a check gives must be known to the scheduler before it plans any further.
        rows += [row for model in self._models.values() if model.runner.is_checking for row in self._read(model)]
        step = self._scheduler.schedule(began)
        if step is None:
            rows += self._drain(besides=None)
            rows += self._evict(self._scheduler.take_preempted())
        else:
            rows += self._carry_out(step, began)
        self._release()
        self.outcomes.note(rows)
        return StepFrame(rows) if rows else None

    def _carry_out(self, step: Step, began: float) -> list[Row]:
        model = self._models[step.model]
        rows = [*self._evict(step.preempted), *self._admit(step)]
        self._prefixes.fit()
        if step.encode is not None:
            rows += self._encode(model, step.encode)
            self._scheduler.update(
                step, time.monotonic() - began, [row.stream_id for row in rows if row.end is not None]
            )
            return rows
        for chunk in step.prefill:
            if chunk.last and self._scheduler.has_heirs(chunk.id):
                model.runner.keep(chunk.id)
        try:
            if (every := self._prefixes.running_tokens) is not None:
                model.runner.offer_running(step.decode, every)
            tokens = model.runner.run(step.decode, step.prefill, step.ending)
        except Exception as error:  # noqa: BLE001  a failing step fails its sequences, not the worker
            return rows + self._fail(model, error)
        rows += self._drain(besides=model)  # launched before this step: the device has them first
        rows += self._accept(tokens)
        finished = [row.stream_id for row in rows if row.end is not None]
        self._scheduler.update(step, time.monotonic() - began, finished)
        return rows

    def _encode(self, model: LoadedModel, image: Encode) -> list[Row]:
        rows = self._drain(besides=None)  # launched before it: nobody waits for an image with what is there already
        try:
            model.runner.encode(image.id, image.index)
        except Exception as error:
            if tells_of_memory(error):
                raise
            rows.append(self._end(image.id, _failure(model, "has an image that cannot be encoded", error)))
        return rows

    def _evict(self, preempted: Iterable[str]) -> list[Row]:
        rows: list[Row] = []
        for stream_id in preempted:
            entry = self._entries.get(stream_id)
            if entry is not None:  # else a token that was read for another one ended it
                rows += self._read(entry.model)  # what was launched for it counts
            if entry is not None and stream_id in self._entries:
                entry.model.runner.evict(stream_id)
                self._prefixes.grow(stream_id, entry.model.runner.token_ids(stream_id))
        return rows

    def _admit(self, step: Step) -> list[Row]:
        rows: list[Row] = []
        for admission in step.admitted:
            entry = self._entries.get(admission.id)
            if entry is None:
                continue
            entry.begun = True
            try:
                beginning = self._prefixes.fetch(admission.id, len(entry.job.token_ids))
                entry.model.runner.admit(admission.id, admission.fork_of, beginning)
                entry.sequence.begin(0 if beginning is None else beginning.tokens)
            except Exception as error:
                if tells_of_memory(error):
                    raise
                # A sequence that has no caches fails alone.
                rows.append(self._end(admission.id, _failure(entry.model, "could not begin", error)))
        return rows

    def _release(self) -> None:
        for model in self._models.values():
            for stream_id in [one for one in model.runner.kept if not self._scheduler.has_heirs(one)]:
                model.runner.release(stream_id)

    def _drain(self, besides: LoadedModel | None) -> list[Row]:
        return [row for model in self._models.values() if model is not besides for row in self._read(model)]

    def _read(self, model: LoadedModel) -> list[Row]:
        try:
            tokens = model.runner.drain()
        except Exception as error:  # noqa: BLE001  a launch may fail on the device, which shows when it is read
            return self._fail(model, error)
        return self._accept(tokens)

    def _accept(self, tokens: Iterable[Token]) -> list[Row]:
        now = time.monotonic()
        rows: list[Row] = []
        for stream_id, token_id, logprobs, is_last, error, is_extra in tokens:
            entry = self._entries.get(stream_id)
            if entry is None:
                continue  # a token before it, of the same step, has ended it
            if is_extra:
                self._scheduler.advance(stream_id)
            if error is not None:
                rows.append(self._end(stream_id, error))
                continue
            try:
                named = None if logprobs is None else name(token_id, logprobs, entry.model.token_bytes)
                row = entry.sequence.accept(token_id, now, named, is_last=is_last)
            except Exception as cause:  # noqa: BLE001  a token that cannot become text fails its own stream only
                row = entry.sequence.failed(_failure(entry.model, "could not be decoded", cause))
            if row.end is not None:
                self._forget(stream_id)
            rows.append(_with_drafts(_with_cached(row, entry.sequence), entry.drafting))
        return rows

    def _forget(self, stream_id: str) -> _Entry | None:
        entry = self._entries.pop(stream_id, None)
        if entry is not None:
            entry.model.runner.remove(stream_id)
            self._prefixes.close(stream_id)
            self._features.close(stream_id)
            self._scheduler.abort(stream_id)
        return entry

    def _end(self, stream_id: str, error: EngineError) -> Row:
        sequence = self._entries[stream_id].sequence
        self._forget(stream_id)
        return sequence.failed(error)

    def _fail(self, model: LoadedModel, cause: Exception) -> list[Row]:
        """End all that a model has begun: whatever the failed step left behind must not touch the next one. Raises
        `cause` if it tells of want of memory."""
        if tells_of_memory(cause):
            raise cause
        error = _failure(model, "failed in a step", cause)
        ours = {stream_id: self._entries[stream_id] for stream_id in self.stream_ids(model.model_id)}
        for stream_id, entry in ours.items():
            if entry.begun:
                self._prefixes.close(stream_id)  # what it has computed is not to be trusted
        self._prefixes.clear(model.model_id)
        rows = [self._end(stream_id, error) for stream_id, entry in ours.items() if entry.begun]
        self._drafted_by_others += model.runner.speculator.counts
        model.renew_runner()
        model.runner.offer = self._prefixes.offer
        for entry in ours.values():
            if not entry.begun:
                entry.drafting = model.runner.open(entry.job)
        return rows


def _with_cached(row: Row, sequence: RunningSequence) -> Row:
    """The row, and how much of the prompt was cached if it is the first with tokens."""
    cached = sequence.untold() if row.token_ids else None
    return row if cached is None else msgspec.structs.replace(row, cached_tokens=cached)


def _with_drafts(row: Row, drafting: Drafting | None) -> Row:
    """The row, and if it is the last one, what was drafted."""
    if drafting is None or not isinstance(row.end, Completed):
        return row
    stats = msgspec.structs.replace(
        row.end.stats,
        drafted_tokens=drafting.drafted,
        accepted_tokens=drafting.accepted,
        speculation=drafting.outcome,
    )
    return msgspec.structs.replace(row, end=msgspec.structs.replace(row.end, stats=stats))


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("The time for this request was over before it was done")


def _too_large() -> Overloaded:
    return Overloaded(
        "Memory has become short while this request waited, and it needs more than there is",
        retry_after=MEMORY_RETRY_S,
    )


def _failure(model: LoadedModel, what: str, cause: Exception) -> GenerationError:
    return GenerationError(
        f"A sequence of {model.model_id} {what}: {type(cause).__name__}: {cause}", model=model.model_id
    )
