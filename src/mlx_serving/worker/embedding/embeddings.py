"""Requests for vectors in flight, over all models: the shell around `core.embedding.queue`.

Each call of `step` computes one forward pass, which the loop does between two steps of the streams.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_serving.core.embedding.pace import Pace, seconds_beside
from mlx_serving.core.embedding.queue import EmbeddingPass, EmbeddingQueue
from mlx_serving.core.generation import FinishReason, Priority
from mlx_serving.core.memory_share import tells_of_memory
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import DeadlineExceeded, EngineError, GenerationError
from mlx_serving.wire.jsonrpc import rpc_error
from mlx_serving.wire.notifications import Aside, Completed, Failed, Row, Stats, StepFrame, Vector
from mlx_serving.worker.embedding.model import EmbeddingModel, EncodedInput, Vectors, normalised


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """The inputs by their places. Of each vector `dimensions` are wanted. Times are monotonic seconds."""

    stream_id: str
    inputs: Mapping[int, EncodedInput]
    started_at: float
    dimensions: int | None = None
    priority: Priority = "normal"
    caller: str = ""
    deadline: float | None = None

    @property
    def tokens(self) -> int:
        return sum(len(each.token_ids) for each in self.inputs.values())


@dataclass(slots=True)
class _Entry:
    model: EmbeddingModel
    job: EmbeddingJob
    left: int
    first_at: float | None = None


@dataclass(slots=True)
class EmbeddingWork:
    """What was done since the start: inputs and their tokens, and the seconds of the device that passes took."""

    inputs: int = 0
    tokens: int = 0
    passes: int = 0
    busy_s: float = 0.0


@dataclass(slots=True)
class _Lane:
    model: EmbeddingModel
    pace: Pace = field(default_factory=Pace)


class Embeddings:
    """Belongs to the thread that owns MLX. `pass_bytes` says what a pass may take besides weights."""

    def __init__(self, policy: SchedulerPolicy, pass_bytes: Callable[[], int]) -> None:
        self._policy = policy
        self._pass_bytes = pass_bytes
        self._queue = EmbeddingQueue(policy)
        self._lanes: dict[str, _Lane] = {}
        self._entries: dict[str, _Entry] = {}
        self.work = EmbeddingWork()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._entries

    @property
    def is_idle(self) -> bool:
        return not self._entries

    def stream_ids(self, model_id: str) -> list[str]:
        """The requests of a model that have not ended."""
        return self._queue.requests(model_id)

    def pass_bytes(self) -> int:
        """What one pass may take."""
        return self._pass_bytes()

    def add_model(self, model: EmbeddingModel) -> None:
        self._lanes[model.model_id] = _Lane(model)
        self._queue.add_model(model.model_id, model.memory)

    def remove_model(self, model_id: str) -> None:
        """Forget a model that has no requests left."""
        del self._lanes[model_id]
        self._queue.remove_model(model_id)

    def submit(self, model: EmbeddingModel, job: EmbeddingJob) -> None:
        """Queue a request. Raises `Overloaded` when too many wait."""
        self._queue.add(
            job.stream_id,
            model.model_id,
            {place: len(each.token_ids) for place, each in job.inputs.items()},
            job.started_at,
            priority=job.priority,
            caller=job.caller,
            deadline=job.deadline,
        )
        self._entries[job.stream_id] = _Entry(model, job, len(job.inputs))

    def abort(self, stream_id: str) -> Row | None:
        """End a request now. None when it is not here."""
        entry = self._entries.pop(stream_id, None)
        if entry is None:
            return None
        self._queue.remove(stream_id)
        return Row(stream_id, [], "", _completed(entry, FinishReason.ABORT, time.monotonic()))

    def step(self, stream_step_s: float) -> StepFrame | None:
        """One forward pass, and what became known: None when that is nothing. `stream_step_s` is what the last step of
        the streams took, 0 when none are there.

        Raises what tells of want of memory, as `Generation.step` does.
        """
        if not self._entries:
            return None
        now = time.monotonic()
        rows = [self._end(stream_id, _expired()) for stream_id in self._queue.expire(now)]
        seconds = seconds_beside(self._policy.target_gap_s, stream_step_s)
        tokens = {model_id: lane.pace.tokens_within(seconds) for model_id, lane in self._lanes.items()}
        step = self._queue.next(now, tokens, self._pass_bytes())
        if step is not None:
            rows += self._carry_out(step)
        return StepFrame(rows) if rows else None

    def _carry_out(self, step: EmbeddingPass) -> list[Row]:
        lane = self._lanes[step.model]
        mx.synchronize()  # what the streams have launched is not this pass's time
        began = time.monotonic()
        try:
            vectors = lane.model.vectors([self._entries[stream_id].job.inputs[place] for stream_id, place in step.rows])
        except Exception as error:
            if tells_of_memory(error):
                raise
            ids = dict.fromkeys(stream_id for stream_id, _ in step.rows)
            return [self._end(stream_id, _failure(step.model, error)) for stream_id in ids]
        now = time.monotonic()
        lane.pace.note(step.tokens, now - began)
        self.work.passes += 1
        self.work.busy_s += now - began
        return self._accept(step, vectors, now)

    def _accept(self, step: EmbeddingPass, vectors: Vectors, now: float) -> list[Row]:
        made: dict[str, list[Vector]] = {}
        for (stream_id, place), vector in zip(step.rows, vectors, strict=True):
            entry = self._entries[stream_id]
            tokens = len(entry.job.inputs[place].token_ids)
            made.setdefault(stream_id, []).append(Vector(place, _cut(vector, entry), tokens))
            self.work.inputs += 1
            self.work.tokens += tokens
        rows: list[Row] = []
        for stream_id, of_stream in made.items():
            entry = self._entries[stream_id]
            entry.left -= len(of_stream)
            entry.first_at = now if entry.first_at is None else entry.first_at
            end = None
            if entry.left == 0:
                end = _completed(entry, FinishReason.STOP, now)
                del self._entries[stream_id]
                self._queue.remove(stream_id)
            rows.append(Row(stream_id, [], "", end, None, Aside("", [], of_stream)))
        return rows

    def _end(self, stream_id: str, error: EngineError) -> Row:
        del self._entries[stream_id]
        self._queue.remove(stream_id)
        return Row(stream_id, [], "", Failed(rpc_error(error)))


def _cut(vector: Vectors, entry: _Entry) -> bytes:
    wanted = entry.job.dimensions
    if wanted is not None and wanted < len(vector):
        vector = normalised(vector[:wanted]) if entry.model.plan.normalise else vector[:wanted]
    return vector.astype("<f4").tobytes()


def _completed(entry: _Entry, reason: FinishReason, now: float) -> Completed:
    first = now if entry.first_at is None else entry.first_at
    started = entry.job.started_at
    return Completed(reason, Stats(entry.job.tokens, 0, 0.0, first - started, now - started))


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("The time for this request was over before it was done")


def _failure(model_id: str, cause: Exception) -> GenerationError:
    return GenerationError(f"A pass of {model_id} failed: {type(cause).__name__}: {cause}", model=model_id)
