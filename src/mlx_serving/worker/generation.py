"""The sequences in flight, over all loaded models: the shell around `core.scheduler`.

The scheduler says what the device does next, the runners do it, the sequences turn tokens into text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from mlx_serving.core.memory_share import tells_of_memory
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.runtime_telemetry import PrefixTelemetry
from mlx_serving.core.schedule.kv_budget import MEMORY_RETRY_S
from mlx_serving.core.schedule.scheduling import Encode, SchedulerLoad, Step
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.errors import DeadlineExceeded, EngineError, Overloaded
from mlx_serving.wire.notifications import Row, StepFrame
from mlx_serving.worker.batch import Token
from mlx_serving.worker.in_flight import InFlight, failure
from mlx_serving.worker.job import Job, Terms
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.outcomes import Outcomes
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.running_models import RunningModels
from mlx_serving.worker.sequence import RunningSequence
from mlx_serving.worker.vision.features import FeatureCache


class Generation:
    """`prefixes` and `features` must be those that the scheduler asks; without any, nothing is kept."""

    def __init__(
        self, scheduler: Scheduler, prefixes: PrefixCache | None = None, features: FeatureCache | None = None
    ) -> None:
        self._scheduler = scheduler
        self._prefixes = prefixes or PrefixCache(PrefixCachePolicy(enabled=False))
        self._features = FeatureCache() if features is None else features
        self._prefixes.give_way(lambda: scheduler.memory.spare)
        self.models = RunningModels(scheduler, self._prefixes, self._features)
        self._entries: dict[str, InFlight] = {}
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

    def prefix_telemetry(self) -> PrefixTelemetry:
        return self._prefixes.telemetry()

    def submit(self, model: LoadedModel, sequence: RunningSequence, job: Job, terms: Terms) -> None:
        """Queue a sequence. Raises `Overloaded` when too many wait."""
        names = [*job.prepared.names, *job.drawn]
        self._prefixes.open(job.stream_id, model.model_id, names, salt=terms.salt, caller=terms.caller)
        try:
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
                images=model.runner.spans(job),
            )
        except EngineError:
            self._prefixes.close(job.stream_id)
            raise
        drafting = model.runner.open(job)
        self._features.open(job.stream_id, model.fingerprint, [picture.digest for picture in job.pictures])
        self._entries[job.stream_id] = InFlight(model, sequence, job, drafting)

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
        row = entry.aborted(time.monotonic())
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
        rows += [row for model in self.models.by_id.values() if model.runner.is_checking for row in self._read(model)]
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
        model = self.models.by_id[step.model]
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
            rows.append(self._end(image.id, failure(model, "has an image that cannot be encoded", error)))
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
                rows.append(self._end(admission.id, failure(entry.model, "could not begin", error)))
        return rows

    def _release(self) -> None:
        for model in self.models.by_id.values():
            for stream_id in [one for one in model.runner.kept if not self._scheduler.has_heirs(one)]:
                model.runner.release(stream_id)

    def _drain(self, besides: LoadedModel | None) -> list[Row]:
        return [row for model in self.models.by_id.values() if model is not besides for row in self._read(model)]

    def _read(self, model: LoadedModel) -> list[Row]:
        try:
            tokens = model.runner.drain()
        except Exception as error:  # noqa: BLE001  a launch may fail on the device, which shows when it is read
            return self._fail(model, error)
        return self._accept(tokens)

    def _accept(self, tokens: Iterable[Token]) -> list[Row]:
        now = time.monotonic()
        rows: list[Row] = []
        for token in tokens:
            stream_id = token.stream_id
            entry = self._entries.get(stream_id)
            if entry is None:
                continue  # a token before it, of the same step, has ended it
            if token.is_extra:
                self._scheduler.advance(stream_id)
            if token.error is not None:
                rows.append(self._end(stream_id, token.error))
                continue
            row = entry.accept(token, now)
            if row.end is not None:
                self._forget(stream_id)
            rows.append(row)
        return rows

    def _forget(self, stream_id: str) -> InFlight | None:
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
        error = failure(model, "failed in a step", cause)
        ours = {stream_id: self._entries[stream_id] for stream_id in self.stream_ids(model.model_id)}
        for stream_id, entry in ours.items():
            if entry.begun:
                self._prefixes.close(stream_id)  # what it has computed is not to be trusted
        self._prefixes.clear(model.model_id)
        self.models.renew_runner(model)  # before anything asks the old one, which may fail again
        rows = [self._end(stream_id, error) for stream_id, entry in ours.items() if entry.begun]
        for entry in ours.values():
            if not entry.begun:
                entry.drafting = model.runner.open(entry.job)
        return rows


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("The time for this request was over before it was done")


def _too_large() -> Overloaded:
    return Overloaded(
        "Memory has become short while this request waited, and it needs more than there is",
        retry_after=MEMORY_RETRY_S,
    )
