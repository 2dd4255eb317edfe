"""What the scheduler's sequences take of memory, and how much they may."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_serving.core.bounds import at_least
from mlx_serving.core.scheduled_sequence import Sequence, State
from mlx_serving.core.sequence_pool import SequencePool


class SchedulerMemory:
    """Sizes are bytes."""

    def __init__(self, pool: SequencePool, sequences: Mapping[str, Sequence]) -> None:
        self._pool = pool
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
        """What of the budget nobody has reserved."""
        return max(0, self._pool.kv.limit - self._pool.kv.reserved)

    @property
    def demand(self) -> int:
        """The same, with what those who wait will reserve."""
        pool = self._pool
        waiting = (one for one in self._sequences.values() if one.state in (State.QUEUED, State.HELD, State.SHELVED))
        return pool.kv.reserved + sum(pool.reservation(one) * one.lane.kv_bytes_per_token for one in waiting)

    @property
    def is_short(self) -> bool:
        """Whether somebody may have to give way, or wait aside, for want of it."""
        kv = self._pool.kv
        return kv.overcommitted or kv.limit < kv.largest

    @property
    def is_awaited(self) -> bool:
        """Whether somebody goes on only when `allow` gives more than now."""
        return bool(self._pool.shelved)

    def allow(self, *, kv_caches: int, ceiling: int, prefill: int) -> None:
        """What all KV caches may hold from now on, and what computing prompts may take besides in one step.

        Less than is held preempts with the next steps. `ceiling` is what KV caches can get at best: a request that
        needs more is wrong, one that needs more than they have is only too much for now.
        """
        at_least("kv_caches", kv_caches, 0)
        at_least("ceiling", ceiling, kv_caches)
        at_least("prefill", prefill, 1)
        pool = self._pool
        pool.changed = pool.changed or kv_caches > pool.kv.limit
        pool.kv.limit, pool.kv.ceiling, pool.prefill_bytes = kv_caches, ceiling, prefill
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
