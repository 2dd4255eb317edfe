"""What the scheduler's sequences take of memory, and how much they may."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mlx_serving.core.bounds import at_least
from mlx_serving.core.schedule.scheduled_sequence import Sequence, State
from mlx_serving.core.schedule.sequence_pool import SequencePool


class SchedulerMemory:
    """Sizes are bytes."""

    def __init__(self, pool: SequencePool, sequences: Mapping[str, Sequence], max_num_seqs: int) -> None:
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._sequences = sequences

    @property
    def held(self) -> int:
        """Of KV caches, filled by steps that were scheduled."""
        return self._pool.kv.held

    @property
    def reserved(self) -> int:
        """The same, with what those who have been admitted are expected to fill."""
        return self._pool.kv.reserved

    @property
    def spare(self) -> float:
        """What of the budget nobody has reserved, as far as it is in memory."""
        return max(0, self._pool.kv.bound - self._pool.kv.reserved)

    @property
    def demand(self) -> int:
        """What is reserved, with what those who wait will reserve; or what the largest of them may come to, because
        without that it would not be let in."""
        pool, states = self._pool, (State.QUEUED, State.HELD, State.SHELVED)
        waiting = [one for one in self._sequences.values() if one.state in states]
        reserved = pool.kv.reserved + sum(pool.reservation(one) * one.lane.kv_bytes_per_token for one in waiting)
        return max(reserved, max((one.most_bytes for one in waiting), default=0))

    @property
    def is_short(self) -> bool:
        """Whether somebody may have to give way, or wait aside, for want of it."""
        kv = self._pool.kv
        return kv.overcommitted or kv.limit < kv.largest

    @property
    def is_awaited(self) -> bool:
        """Whether somebody goes on only when `allow` gives more than now."""
        return bool(self._pool.shelved)

    def wanted(self, now: float) -> tuple[str, int] | None:
        """The model of the one who waits for memory and is to have it next, and how many bytes of other models would
        have to go for that; None if nobody waits, or it would not help."""
        pool = self._pool
        if pool.shelved:
            waiting = next(iter(pool.shelved.values()))
            lacking = pool.kv.weights_for(waiting.most_bytes)
        else:
            claim = pool.queue.first(now)
            if claim is None or claim[0].resident or pool.slots >= self._max_num_seqs:
                return None
            waiting = claim[0]
            lacking = pool.kv.weights_beside(pool.reservation(waiting) * waiting.lane.kv_bytes_per_token)
        return (waiting.lane.model, lacking) if lacking else None

    def allow(
        self,
        *,
        kv_caches: int,
        ceiling: int,
        prefill: int,
        free: float = math.inf,
        lendable: int = 0,
        relief: float = 0.0,
        most: float = math.inf,
    ) -> None:
        """What all KV caches may hold from now on, and what computing prompts may take besides in one step.

        Less than is held preempts with the next steps. `ceiling` is what KV caches can get at best: a request that
        needs more is wrong, one that needs more than they have is only too much for now. `free` is what memory has left
        for them besides what they take of it now: while that is less than a step needs, each step preempts one, but for
        the last. They get `lendable` more when `demand` says that they need it. For each byte of a model that goes they
        get `relief` more, but no more than `most` in all.
        """
        at_least("kv_caches", kv_caches, 0)
        at_least("lendable", lendable, 0)
        at_least("ceiling", ceiling, kv_caches + lendable)
        at_least("prefill", prefill, 1)
        pool = self._pool
        most_held = pool.kv.held + free
        pool.changed = pool.changed or kv_caches > pool.kv.limit or most_held > pool.kv.most_held
        pool.kv.limit, pool.kv.ceiling, pool.prefill_bytes = kv_caches, ceiling, prefill
        pool.kv.lendable, pool.kv.relief, pool.kv.most = lendable, relief, most
        pool.kv.most_held = most_held
        pool.unshelve()

    def sort_out(self) -> list[Sequence]:
        """Find those who wait for more than KV caches may hold, and would be in the way of others for as long. Who has
        begun is shelved until there is more; who has not is returned, to be refused, unless others still run and might
        leave enough behind."""
        pool = self._pool
        if not self.is_short:
            return []
        refused: list[Sequence] = []
        for one in tuple(self._sequences.values()):
            if one.state in (State.QUEUED, State.HELD) and not one.resident and one.most_bytes > pool.kv.limit:
                if one.boosts:
                    pool.shelve(one)
                elif not pool.slots:
                    refused.append(one)
        return refused
