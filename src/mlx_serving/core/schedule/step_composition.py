"""One step of one model: who decodes, and which pieces of prompts stand beside."""

from __future__ import annotations

from mlx_serving.core.schedule.prefill_chunk import allowance, divide, in_turn
from mlx_serving.core.schedule.scheduled_sequence import Lane, Sequence
from mlx_serving.core.schedule.scheduling import Encode, PrefillChunk, SchedulerPolicy, Step
from mlx_serving.core.schedule.sequence_pool import SequencePool

_MAX_REPEATS = 64  # of the same step, so that its expected duration stays up to date


def compose(pool: SequencePool, lane: Lane, policy: SchedulerPolicy) -> Step:
    """The next step of a model that has work, with every token in it counted as computed."""
    image_of = _image_to_encode(pool, lane, policy)
    prompts = [one for one in lane.prefilling.values() if not one.awaits_image]
    if image_of is not None and not (lane.has_encoded and (lane.running or prompts)):
        return _encoding(pool, lane, image_of)
    lane.has_encoded = False
    rows = list(lane.running.values()) if lane.batchable else _one_in_turn(lane, prompts)
    if lane.batchable:
        decode = lane.batch = lane.batch or tuple(lane.running)
    else:
        decode = tuple(row.id for row in rows)
    decode_s = lane.cost.decode_s(len(rows))
    may_prefill = prompts and (lane.batchable or not rows)
    pieces = _pieces(pool, lane, policy, prompts, decode_s) if may_prefill else []
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


def _image_to_encode(pool: SequencePool, lane: Lane, policy: SchedulerPolicy) -> Sequence | None:
    """Whose next image is to be encoded first."""
    pictured = [one for one in lane.prefilling.values() if one.encoded < len(one.images)]
    for one in pictured:
        one.skip_images()
        while one.encoded < len(one.images) and pool.encodings.claim(one.id, one.encoded):
            one.encoded += 1
            one.skip_images()
    waiting = in_turn((one for one in pictured if one.encoded < len(one.images)), lane.prefill_turns, policy)
    return waiting[0] if waiting else None


def _encoding(pool: SequencePool, lane: Lane, sequence: Sequence) -> Step:
    index, sequence.encoded = sequence.encoded, sequence.encoded + 1
    tokens = sequence.images[index].tokens
    lane.has_encoded = True
    lane.steady = None
    step = Step(
        lane.model,
        tuple(pool.preempted),
        tuple(pool.admitted.values()),
        (),
        (),
        (),
        lane.cost.encode_s(tokens),
        Encode(sequence.id, index, tokens),
    )
    pool.preempted.clear()
    pool.admitted.clear()
    return step


def _one_in_turn(lane: Lane, prompts: list[Sequence]) -> list[Sequence]:
    """Who decodes in a model that computes one sequence a step; nobody when it is the prompts' turn, once a round."""
    if prompts and lane.decodes_since_prefill >= len(lane.running):
        lane.decodes_since_prefill = 0
        return []
    lane.decodes_since_prefill += 1
    id, row = next(iter(lane.running.items()))  # noqa: A001
    del lane.running[id]
    lane.running[id] = row
    return [row]


def _pieces(
    pool: SequencePool, lane: Lane, policy: SchedulerPolicy, prompts: list[Sequence], decode_s: float
) -> list[tuple[Sequence, int]]:
    growth = len(lane.running) * lane.kv_bytes_per_token
    available = max(pool.kv.free, lane.least_growth(policy.min_prefill_chunk))
    room = (available - growth) / lane.kv_bytes_per_token if lane.kv_bytes_per_token else float("inf")
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
    order = in_turn(prompts, lane.prefill_turns, policy)
    lane.prefill_turns += 1
    return divide(order if lane.batchable else order[:1], allowed, lane.cost, policy)
