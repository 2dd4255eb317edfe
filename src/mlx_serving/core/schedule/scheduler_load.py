"""What the scheduler has to do at the moment, for telemetry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mlx_serving.core.schedule.scheduled_sequence import Lane, Sequence, State
from mlx_serving.core.schedule.scheduling import ModelLoad, SchedulerLoad, WorkDone
from mlx_serving.core.schedule.sequence_pool import SequencePool


def load_of(
    pool: SequencePool, lanes: Mapping[str, Lane], sequences: Iterable[Sequence], done: WorkDone
) -> SchedulerLoad:
    """`lanes` by their models, `sequences` of these, `done` since the start."""
    states = {model: Counter[State]() for model in lanes}
    for sequence in sequences:
        states[sequence.lane.model][sequence.state] += 1
    models = {model: _load_of_one(lane, states[model]) for model, lane in lanes.items()}
    loads = models.values()
    return SchedulerLoad(
        queued=sum(load.queued for load in loads),
        running=sum(load.running for load in loads),
        prefilling=sum(load.prefilling for load in loads),
        paused=sum(load.paused for load in loads),
        kv_held_bytes=pool.kv.held,
        kv_reserved_bytes=pool.kv.reserved,
        preemptions=pool.preemptions,
        done=done,
        models=models,
    )


def _load_of_one(lane: Lane, states: Counter[State]) -> ModelLoad:
    return ModelLoad(
        queued=states[State.QUEUED] + states[State.HELD] + states[State.SHELVED],
        running=states[State.RUNNING] + states[State.ENDING],
        prefilling=states[State.PREFILLING],
        paused=states[State.PAUSED],
        done=lane.work.read(),
        decode_step_s=lane.cost.decode_s(len(lane.running)),
        prefill_tokens_per_s=1 / lane.cost.base_s if lane.cost.base_s else 0.0,
    )
