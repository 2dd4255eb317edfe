"""Keeps the worker below what would end it: the shell around `core.memory_budget`.

What can be given up goes in this order: beginnings of sequences that are kept for others, which give way to those that
run at once (`PrefixCache.fit`); buffers kept for reuse; the room that batches have to grow into; then sequences of the
lowest priority (the scheduler preempts them, and they wait), then requests that wait for more than there is. Nothing
here is exact: what others do on the machine is seen some time later, which is what the part that is not planned with is
for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import mlx.core as mx

from mlx_serving.core import buffer_squeeze
from mlx_serving.core.buffer_squeeze import Lent, SqueezeState
from mlx_serving.core.memory_budget import (
    Bound,
    MemoryPlan,
    MemoryPolicy,
    capacity,
    padding_allowed,
    plan,
    require_room,
    undisturbed,
)
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.schedule.scheduler_memory import SchedulerMemory
from mlx_serving.worker.heap import Heap
from mlx_serving.worker.memory_bounds import working_set_bytes
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.vision.features import FeatureCache

_INTERVAL_S = 0.5
_TIGHT = 7 / 8  # of what caches may take: from there on, no step may pass unseen
_HOLD_S = 10.0


class SequenceCaches(Protocol):
    """The caches of all sequences as they lie in memory."""

    @property
    def nbytes(self) -> int: ...

    def spare(self, padding: int) -> None:
        """From now on, no batch is to take more than so many bytes for padding and for room to grow."""

    def shrink(self) -> None:
        """Have them give back what they have to grow into."""


class MemoryGuard:
    """Belongs to the thread that owns MLX; make it before any model is loaded. `kv_share` of what is left for KV caches
    may be used. `bounds` are read anew every `interval_s`."""

    def __init__(
        self,
        policy: MemoryPolicy,
        kv_share: float,
        scheduler: SchedulerMemory,
        caches: SequenceCaches,
        bounds: Callable[[], Sequence[Bound]],
        prefixes: PrefixCache | None = None,
        features: FeatureCache | None = None,
        *,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._policy = policy
        self._kv_share = kv_share
        self._scheduler = scheduler
        self._caches = caches
        self._is_tight = False
        self._read_bounds = bounds
        self._prefixes = prefixes or PrefixCache(PrefixCachePolicy(enabled=False))
        self._features = FeatureCache() if features is None else features
        self._bounds = bounds()
        self._interval_s = interval_s
        self._parts: dict[str, dict[str, int]] = {}  # by model; what several have has one name
        self._squeeze: SqueezeState = buffer_squeeze.Apart()
        self._base = mx.get_active_memory()
        self._heap = Heap()
        self._due = 0.0
        self.plan = self._replan()
        room = self.plan.capacity.size
        mx.set_memory_limit(room)
        working_set = working_set_bytes()
        if working_set is not None:
            mx.set_wired_limit(min(room, working_set))

    @property
    def of_sequences(self) -> SchedulerMemory:
        return self._scheduler

    def require(self, model_id: str, weights: int) -> None:
        """Make room for a model of `weights` bytes, of which nothing has been read. Raises `InsufficientMemory`."""
        room = capacity(self._read_bounds(), self._policy)
        require_room(room, self._policy, model=model_id, weights=weights, loaded=self._weights)
        if mx.get_active_memory() + mx.get_cache_memory() + weights > room.size:
            _drop_buffers()

    def add_model(self, model_id: str, weights: int, shared: Iterable[tuple[str, int]] = ()) -> None:
        """A model with so many bytes of its own. What is `shared` counts once, whoever has it, by its name."""
        self._parts[model_id] = {f"of {model_id}": weights, **dict(shared)}
        self.plan = self._replan()

    def remove_model(self, model_id: str) -> None:
        del self._parts[model_id]
        self.plan = self._replan()

    def forget_model(self, model_id: str) -> None:
        """A model will not be there after all, if room was kept for it."""
        if model_id in self._parts:
            self.remove_model(model_id)

    @property
    def _weights(self) -> int:
        parts: dict[str, int] = {}
        for of_model in self._parts.values():
            parts |= of_model
        return sum(parts.values())

    def look(self) -> MemoryPlan:
        """The plan as it is at this moment."""
        self._due = 0.0
        self.refresh()
        return self.plan

    @property
    def next_look(self) -> float | None:
        """Monotonic seconds; None while nobody waits for what a look at the machine might bring."""
        return self._due if self._scheduler.is_awaited else None

    def refresh(self) -> None:
        """Follow what has changed. To be called before every step: while there is enough, most calls do nothing."""
        if self._is_tight or self._scheduler.is_short or time.monotonic() >= self._due:
            self.plan = self._replan()

    def _replan(self) -> MemoryPlan:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._interval_s
            self._bounds = self._read_bounds()
            self._heap.look(capacity(self._bounds, self._policy).size)
        in_caches = self._caches.nbytes
        surplus = max(0, self._taken(in_caches) - max(self._scheduler.reserved, in_caches))
        own = self._plan(self._bounds, surplus=surplus, squeezed=False)
        lent = self._plan(self._bounds, surplus=surplus, squeezed=True)
        was_lent = isinstance(self._squeeze, Lent)
        demand = self._scheduler.demand + max(0, in_caches - self._scheduler.held)
        self._squeeze = buffer_squeeze.step(self._squeeze, demand=demand, own=own.kv_caches, now=now, hold_s=_HOLD_S)
        is_lent = isinstance(self._squeeze, Lent)
        chosen = lent if is_lent else own
        mx.set_cache_limit(chosen.buffer_cache)
        if is_lent and not was_lent:
            _drop_buffers()
        free = self._free(chosen, in_caches)
        at_best = self._plan(undisturbed(self._bounds), surplus=0, squeezed=True)
        most = self._policy.kv_cache_bytes
        self._scheduler.allow(
            kv_caches=chosen.kv_caches,
            free=free,
            lendable=lent.kv_caches - chosen.kv_caches,
            ceiling=max(lent.kv_caches, at_best.kv_caches),
            prefill=max(1, chosen.prefill),  # others may take all there is: then prompts go on token by token
            relief=self._kv_share if len(self._parts) > 1 else 0.0,
            most=math.inf if most is None else most,
        )
        self._caches.spare(padding_allowed(free))
        self._prefixes.allow(chosen.kv_caches)
        self._features.allow(chosen.features)
        return chosen

    def _taken(self, in_caches: int) -> int:
        """Bytes that the caches of sequences take, and whatever else nothing was set aside for."""
        # What is kept of sequences has its place beside those that run, and gives way to them.
        set_aside = self._plan(self._bounds, surplus=0, squeezed=False).prefill
        besides = self._base + self._weights + self._prefixes.nbytes + set_aside
        return max(in_caches, mx.get_active_memory() - besides)

    def _free(self, chosen: MemoryPlan, in_caches: int) -> int:
        """Bytes that the caches of sequences may take more than they do; negative if they take too much."""
        taken = self._taken(in_caches)
        if taken > chosen.caches:
            self._caches.shrink()
            taken = self._taken(self._caches.nbytes)
        self._is_tight = taken + self._prefixes.nbytes > _TIGHT * chosen.caches
        return chosen.caches - taken

    def _plan(self, bounds: Sequence[Bound], *, surplus: int, squeezed: bool) -> MemoryPlan:
        return plan(
            capacity(bounds, self._policy),
            self._policy,
            weights=self._weights,
            surplus=surplus,
            kv_share=self._kv_share,
            squeezed=squeezed,
        )


def _drop_buffers() -> None:
    mx.synchronize()  # freeing what work in flight still uses can take the machine down
    mx.clear_cache()
