"""Who gets the free places, and who must give way."""

from __future__ import annotations

from mlx_serving.core.eviction import least_worth, victims_for
from mlx_serving.core.schedule.scheduled_sequence import Sequence
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.schedule.sequence_pool import SequencePool


class ArrivalWindow:
    """Holds the rows of a burst back until they can be admitted together.

    The first of a burst is not held, since nobody knows that others follow. The second, if it comes within the window,
    closes admission until the window that began with the first is over; then a burst that goes on begins anew.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._last = self._since = self._closed_until = float("-inf")

    def note_arrival(self, now: float) -> None:
        alone = now - self._last > self._window_s
        if alone or now > self._since + self._window_s:
            self._since = now
        if not alone:
            self._closed_until = self._since + self._window_s
        self._last = now

    def is_open(self, now: float) -> bool:
        return now >= self._closed_until


def admit(pool: SequencePool, policy: SchedulerPolicy, now: float) -> None:
    """Give places to those who are first, as long as there are any, and to the urgent at the cost of others.

    Nobody is passed over because it needs more memory than the next: it would never get it. Only while it is slots that
    are short may a request of a high priority take one from a low priority though somebody who has waited longer is
    before it: it takes nothing from that one.
    """
    pool.changed = False
    while (claim := pool.queue.first(now)) is not None:
        first, rank = claim
        if _follows(pool, policy, first, rank):
            continue
        if not _make_place(pool, policy, first):
            break
        pool.seat(first, rank)
    while pool.slots >= policy.max_num_seqs and (urgent := pool.queue.most_urgent()) is not None:
        if not _make_place(pool, policy, urgent):
            break
        pool.seat(urgent, urgent.rank_at(now, policy.ageing_s))
    pool.changed = False  # whoever was preempted just now need not be looked at before something else happens


def _follows(pool: SequencePool, policy: SchedulerPolicy, newcomer: Sequence, rank: int) -> bool:
    """Let a newcomer wait, if others who are as urgent compute right now what it begins with."""
    if newcomer.resident or newcomer.fork_of is not None or not newcomer.lane.prefilling:
        return False
    least = pool.prefixes.covered(newcomer.id) + policy.min_prefill_chunk
    leaders = [one for one in newcomer.lane.prefilling.values() if one.rank <= rank]
    shared = [(pool.prefixes.shared(newcomer.id, one.id), one) for one in leaders]
    coming = [(tokens, one) for tokens, one in shared if tokens >= least and tokens > one.computed]
    if not coming:
        return False
    # Who is nearest to the end of it, of those who compute most of it.
    tokens, leader = max(coming, key=lambda choice: (choice[0], choice[1].computed))
    pool.follow(newcomer, leader, tokens)
    return True


def make_room(pool: SequencePool, policy: SchedulerPolicy) -> bool:
    """Preempt until the next step of any model fits into the KV budget. False if that must wait for an update."""
    while _growth(pool, policy) > pool.kv.room:
        if pool.ending:
            return False
        pool.preempt(least_worth(reversed(pool.residents.values())))
    return True


def relieve(pool: SequencePool, policy: SchedulerPolicy) -> None:
    """Preempt one if caches take so much, beside their tokens, that memory has no place for the next step.

    What its caches give back is seen when memory is looked at again. The last sequence stays: it is in nobody's way.
    """
    if len(pool.residents) > 1 and not pool.ending and _growth(pool, policy) > pool.kv.free:
        pool.preempt(least_worth(reversed(pool.residents.values())))


def _make_place(pool: SequencePool, policy: SchedulerPolicy, newcomer: Sequence) -> bool:
    kv, needed = pool.kv, pool.reservation(newcomer) * newcomer.lane.kv_bytes_per_token
    # While nobody computes, nobody gives memory back: the newcomer goes on with what there is.
    limit = kv.bound if pool.slots else kv.limit
    victims = victims_for(
        newcomer,
        reversed(pool.residents.values()),  # of equals, who got its place last goes first
        slots_short=pool.slots + 1 - policy.max_num_seqs,
        # Who has its KV still takes no more than it has, however much more is reserved than there is.
        bytes_short=0 if newcomer.resident else kv.reserved + needed - limit,
        pinned={admission.fork_of for admission in pool.admitted.values() if admission.fork_of is not None},
    )
    if victims is None:
        return False
    for victim in victims:
        pool.preempt(victim)
    return True


def _growth(pool: SequencePool, policy: SchedulerPolicy) -> int:
    """Bytes that the next step needs at least, whichever model's it is."""
    return max((lane.least_growth(policy.min_prefill_chunk) for lane in pool.turns.busy), default=0)
