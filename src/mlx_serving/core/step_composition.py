"""One step of one model: who decodes, and which pieces of prompts stand beside."""

from __future__ import annotations

from mlx_serving.core.prefill_chunk import allowance, divide, in_turn
from mlx_serving.core.scheduled_sequence import Lane, Sequence
from mlx_serving.core.scheduling import PrefillChunk, SchedulerPolicy, Step
from mlx_serving.core.sequence_pool import SequencePool

_MAX_REPEATS = 64  # of the same step, so that its expected duration stays up to date


def compose(pool: SequencePool, lane: Lane, policy: SchedulerPolicy) -> Step:
    """The next step of a model that has work, with every token in it counted as computed."""
    rows = list(lane.running.values()) if lane.batchable else _one_in_turn(lane)
    if lane.batchable:
        decode = lane.batch = lane.batch or tuple(lane.running)
    else:
        decode = tuple(row.id for row in rows)
    decode_s = lane.cost.decode_s(len(rows))
    may_prefill = lane.prefilling and (lane.batchable or not rows)
    pieces = _pieces(pool, lane, policy, decode_s) if may_prefill else []
    assert rows or pieces, "make_room and admit leave room for the smallest piece"
    expected_s = decode_s + sum(lane.cost.prefill_s(one.computed, count) for one, count in pieces)
    # Rows first: whoever computes the last piece of its prompt in this step decodes from the next one on.
    ending = [row.id for row in rows if pool.advance(row, 1)]
    prefill: list[PrefillChunk] = []
    for one, count in pieces:
        end = one.computed + count
        shared = one.is_shared_at(end)
        prefill.append(PrefillChunk(one.id, one.computed, count, last=end == one.target, shared=shared))
        if pool.advance(one, count):
            ending.append(one.id)
    step = Step(
        lane.model,
        tuple(pool.preempted),
        tuple(pool.admitted.values()),
        decode,
        tuple(prefill),
        tuple(ending),
        expected_s,
    )
    can_repeat = lane.batchable and not (prefill or ending or step.preempted or step.admitted or lane.prefilling)
    lane.steady = step if can_repeat else None
    if can_repeat:
        lane.steady_left = min(_MAX_REPEATS, *(row.limit - row.computed - 1 for row in rows))
    pool.preempted.clear()
    pool.admitted.clear()
    return step


def _one_in_turn(lane: Lane) -> list[Sequence]:
    """Who decodes in a model that computes one sequence a step; nobody when it is the prompts' turn, once a round."""
    if lane.prefilling and lane.decodes_since_prefill >= len(lane.running):
        lane.decodes_since_prefill = 0
        return []
    lane.decodes_since_prefill += 1
    id, row = next(iter(lane.running.items()))  # noqa: A001
    del lane.running[id]
    lane.running[id] = row
    return [row]


def _pieces(pool: SequencePool, lane: Lane, policy: SchedulerPolicy, decode_s: float) -> list[tuple[Sequence, int]]:
    growth = len(lane.running) * lane.kv_bytes_per_token
    room = (pool.kv.room - growth) / lane.kv_bytes_per_token if lane.kv_bytes_per_token else float("inf")
    allowed = allowance(
        policy,
        lane.cost,
        # Unbatched rows decode one after the other between two pieces of a prompt.
        decode_s=decode_s if lane.batchable else len(lane.running) * lane.cost.decode_s(1),
        disturbs=any(busy.running for busy in pool.turns.busy),
        share=pool.turns.share(lane),
        room=room,
        size=pool.prefill_bytes,
    )
    order = in_turn(lane.prefilling.values(), lane.prefill_turns, policy)
    lane.prefill_turns += 1
    return divide(order if lane.batchable else order[:1], allowed, lane.cost, policy)
