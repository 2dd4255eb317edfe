"""Which prompt tokens are computed in a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from mlx_serving.core.schedule.scheduled_sequence import Sequence
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.schedule.step_cost import StepCost

_FIRST_CHUNKS = 4  # as many times min_prefill_chunk are tried when nothing is known and nobody is disturbed
_GROWTH = 2  # beside streams, a chunk is no larger than this many times what was measured lately
_UNDISTURBING_GROWTH = 8  # as long as nobody waits for a token, a step may turn out longer than was thought


@dataclass(frozen=True, slots=True)
class PrefillAllowance:
    """`seconds` and `size` (bytes that the computing takes) are a wish, at least one smallest chunk is done in any
    case; `tokens` are a bound, but for an image that must be whole."""

    seconds: float
    tokens: int
    size: float = inf


def allowance(
    policy: SchedulerPolicy,
    cost: StepCost,
    *,
    decode_s: float,
    disturbs: bool,
    share: float,
    room: float,
    size: float = inf,
) -> PrefillAllowance:
    """How much prefill may stand beside a decode that takes `decode_s`, in a model that has `share` of the device.

    `disturbs`: some stream waits for its next token meanwhile, of this model or another. The gap of a stream is a step
    of its own model and the turns of the others that it pays for, so a step may take its share of the target only.
    `room`: tokens that the KV budget still takes. `size`: bytes that the computing may take.
    """
    seconds = policy.max_step_s - decode_s
    if disturbs:
        least = decode_s * policy.min_prefill_share / (1 - policy.min_prefill_share)
        seconds = min(seconds, max(policy.target_gap_s * share - decode_s, least))
    if cost.reach:
        growth = _GROWTH if disturbs else _UNDISTURBING_GROWTH
        tokens = max(policy.min_prefill_chunk, growth * int(cost.reach))
    else:
        tokens = policy.min_prefill_chunk * (1 if disturbs else _FIRST_CHUNKS)
    return PrefillAllowance(max(0.0, seconds), int(min(tokens, policy.max_prefill_chunk, room)), size)


def in_turn(prefilling: Iterable[Sequence], turn: int, policy: SchedulerPolicy) -> list[Sequence]:
    """Those who prefill, the one first whose turn it is.

    By priority and then the shortest rest first, which keeps the mean time to the first token least, counting what
    others wait for as a rest; but every other
    turn begins with who has waited longest, counting its priority as a head start, so that a long prompt goes on under
    a stream of short ones.
    """
    order = sorted(prefilling, key=lambda one: (one.rank, one.rest, one.arrived))
    if turn % 2 and len(order) > 1:
        eldest = min(order, key=lambda one: one.claim_s(policy.ageing_s))
        order.remove(eldest)
        order.insert(0, eldest)
    return order


def divide(
    order: Iterable[Sequence], allowed: PrefillAllowance, cost: StepCost, policy: SchedulerPolicy
) -> list[tuple[Sequence, int]]:
    """Who computes how many tokens: the first as much as is allowed, the next what is left, if it is worth a chunk.

    Chunks are whole multiples of `min_prefill_chunk`, so that few different shapes occur; only the end of a prompt, or
    of a part of it that is kept by itself, is not, and an end smaller than a chunk is done with the chunk before it.
    Nor is a chunk that ends before or behind an image that must be whole.
    """
    smallest = policy.min_prefill_chunk
    seconds, tokens, size = allowed.seconds, allowed.tokens, allowed.size
    chunks: list[tuple[Sequence, int]] = []
    for sequence in order:
        rest = sequence.next_stop - sequence.computed
        memory = sequence.lane.prefill_memory
        affordable = cost.tokens_within(seconds, sequence.computed) if cost.reach else tokens
        affordable = min(affordable, memory.tokens_within(size, sequence.computed))
        count = int(min(affordable, tokens, rest))
        if not chunks:
            count = max(count, min(smallest, tokens, rest))
        if 0 < count < rest:
            if rest - count < smallest and rest <= tokens and memory.size(sequence.computed, rest) <= size:
                count = rest
            elif chunks or count > smallest:
                count -= count % smallest
        count = sequence.piece(count)
        if count == 0 or (chunks and count > tokens):
            break
        chunks.append((sequence, count))
        seconds -= cost.prefill_s(sequence.computed, count)
        size -= memory.size(sequence.computed, count)
        tokens -= count
        if seconds <= 0 or tokens <= 0 or size <= 0:
            break
    return chunks
