"""The sequences in flight, over all loaded models: who waits, who runs, and one round of steps for those who run."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from mlx_serving.errors import GenerationError, Overloaded
from mlx_serving.wire.notifications import Row, StepFrame
from mlx_serving.worker.loaded_model import LoadedModel
from mlx_serving.worker.runner import Job
from mlx_serving.worker.sequence import RunningSequence


@dataclass(frozen=True, slots=True)
class SchedulingLimits:
    """`max_num_seqs` sequences run at once, over all models; `max_queue` more may wait for a slot."""

    max_num_seqs: int = 16
    max_queue: int = 256


@dataclass(slots=True)
class _Entry:
    model: LoadedModel
    sequence: RunningSequence
    job: Job


@dataclass(slots=True)
class Generation:
    limits: SchedulingLimits
    _waiting: deque[_Entry] = field(default_factory=deque["_Entry"])
    _running: dict[str, _Entry] = field(default_factory=dict[str, "_Entry"])

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._running or any(entry.sequence.stream_id == stream_id for entry in self._waiting)

    def count(self, model_id: str) -> int:
        """How many sequences of a model wait or run."""
        return sum(entry.model.model_id == model_id for entry in (*self._waiting, *self._running.values()))

    def submit(self, model: LoadedModel, sequence: RunningSequence, job: Job) -> None:
        """Queue a sequence. Raises `Overloaded` when every slot is taken and the queue is full."""
        if len(self) >= self.limits.max_num_seqs + self.limits.max_queue:
            raise Overloaded(
                f"{len(self._running)} requests are running and {len(self._waiting)} are waiting, which is the limit",
                retry_after=1.0,
                limit=self.limits.max_queue,
            )
        self._waiting.append(_Entry(model, sequence, job))

    def abort(self, stream_id: str) -> Row | None:
        """End a stream now; its slot is free at the next step. None when it is not here."""
        entry = self._running.pop(stream_id, None)
        if entry is not None:
            entry.model.runner.remove(stream_id)
        else:
            entry = next((waiting for waiting in self._waiting if waiting.sequence.stream_id == stream_id), None)
            if entry is None:
                return None
            self._waiting.remove(entry)
        return entry.sequence.aborted(time.monotonic())

    def stream_ids(self, model_id: str) -> list[str]:
        return [
            entry.sequence.stream_id
            for entry in (*self._running.values(), *self._waiting)
            if entry.model.model_id == model_id
        ]

    def step(self) -> StepFrame | None:
        """Admit who fits, then one step for every model that has running sequences."""
        rows = self._admit()
        for model in {entry.model.model_id: entry.model for entry in self._running.values()}.values():
            try:
                tokens = model.runner.step()
            except Exception as error:  # noqa: BLE001  a failing step fails its sequences, not the worker
                rows += self._fail_all(model, error)
            else:
                now = time.monotonic()
                rows += [self._accept(stream_id, token_id, now) for stream_id, token_id in tokens]
        return StepFrame(rows) if rows else None

    def _admit(self) -> list[Row]:
        failed: list[Row] = []
        while self._waiting and len(self._running) < self.limits.max_num_seqs:
            entry = self._waiting.popleft()
            try:
                entry.model.runner.add(entry.job)
            except Exception as error:  # noqa: BLE001  what cannot begin fails alone
                failed.append(entry.sequence.failed(_failure(entry.model, "could not begin", error)))
            else:
                self._running[entry.sequence.stream_id] = entry
        return failed

    def _accept(self, stream_id: str, token_id: int, now: float) -> Row:
        entry = self._running[stream_id]
        try:
            row = entry.sequence.accept(token_id, now)
        except Exception as error:  # noqa: BLE001  a token that cannot become text fails its own stream only
            row = entry.sequence.failed(_failure(entry.model, "could not be decoded", error))
        if row.end is not None:
            del self._running[stream_id]
            entry.model.runner.remove(stream_id)
        return row

    def _fail_all(self, model: LoadedModel, cause: Exception) -> list[Row]:
        failed = [entry for entry in self._running.values() if entry.model is model]
        for entry in failed:
            del self._running[entry.sequence.stream_id]
        model.renew_runner()  # whatever the failed step left behind must not touch the next one
        error = _failure(model, "failed in a step", cause)
        return [entry.sequence.failed(error) for entry in failed]


def _failure(model: LoadedModel, what: str, cause: Exception) -> GenerationError:
    return GenerationError(
        f"A sequence of {model.model_id} {what}: {type(cause).__name__}: {cause}", model=model.model_id
    )
