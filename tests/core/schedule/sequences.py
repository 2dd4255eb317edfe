"""Records for the tests of what works on them."""

from __future__ import annotations

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.scheduled_sequence import RANKS, Caller, Lane, Sequence, State
from mlx_serving.core.schedule.step_cost import StepCost


def lane(model: str = "m", *, kv_bytes_per_token: int = 1, batchable: bool = True, weight: float = 1.0) -> Lane:
    return Lane(model, kv_bytes_per_token, batchable, True, False, weight, StepCost(16))


def sequence(
    name: str,
    *,
    of: Lane | None = None,
    caller: Caller | None = None,
    priority: Priority = "normal",
    prompt: int = 10,
    max_tokens: int = 10,
    arrived: float = 0.0,
    state: State = State.QUEUED,
    rank: int | None = None,
    boosts: int = 0,
    reserved: int = 0,
    computed: int = 0,
) -> Sequence:
    return Sequence(
        id=name,
        lane=of or lane(),
        caller=caller or Caller("somebody"),
        base_rank=RANKS[priority],
        prompt_tokens=prompt,
        max_tokens=max_tokens,
        deadline=None,
        arrived=arrived,
        fork_of=None,
        state=state,
        resident=reserved > 0,
        rank=RANKS[priority] if rank is None else rank,
        boosts=boosts,
        reserved=reserved,
        computed=computed,
    )
