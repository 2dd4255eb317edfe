"""What the worker may do with memory: weights first, then what a step needs besides, and the rest is for KV caches.

    capacity  the least of: a share of each bound, less what others have taken of it
      weights        of the models that are loaded
      buffer cache   buffers that MLX keeps for reuse
      prefill        what computing a chunk of a prompt takes until it is done
      surplus        what is taken beyond that and what is reserved for the caches
      KV caches      what is left

A bound is anything that ends a process or a machine that goes beyond it: the memory of the machine or of its device, a
cgroup's limit, a resource limit of the process. What others take changes all the time, and the budget follows it, so
that sequences wait or are preempted before the system has to choose whom to kill.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mlx_serving.core.bounds import at_least, between
from mlx_serving.errors import InsufficientMemory

_GIB = 1 << 30
_MAX_BUFFER_CACHE = 2 * _GIB
_MAX_PREFILL = _GIB
_MAX_FEATURES = _GIB // 4
_PART = 16  # of the capacity: what the buffer cache and a prefill get where that is less
_PADDING_PART = 4
_SQUEEZED = 8  # the buffer cache keeps this part of its memory when KV caches need the rest


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """Sizes are bytes. `share` is the part of each bound that is planned with: the rest is for what nobody foresees.
    `limit_bytes` bounds weights, caches and steps together, `kv_cache_bytes` the KV caches alone; None leaves either to
    the machine. `buffer_cache_bytes` is kept for reuse at most, `prefill_bytes` set aside for computing prompts; None
    is a sixteenth of the capacity, but no more than 2 GiB and 1 GiB."""

    share: float = 0.9
    limit_bytes: int | None = None
    kv_cache_bytes: int | None = None
    buffer_cache_bytes: int | None = None
    prefill_bytes: int | None = None

    def __post_init__(self) -> None:
        between("share", self.share, 0.1, 1)
        for name, least in (("limit_bytes", 1), ("kv_cache_bytes", 1), ("buffer_cache_bytes", 0), ("prefill_bytes", 1)):
            value: int | None = getattr(self, name)
            if value is not None:
                at_least(name, value, least)


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit, and how much of it is not for models: taken by `others` now, or by this process before it loaded any
    (`base`). `name` is for people; `sharers` workers, this one included, have it together."""

    name: str
    limit: int
    others: int = 0
    base: int = 0
    sharers: int = 1


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes for everything that models need, and the name of the bound that allows no more."""

    size: int
    limited_by: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes. `kv_caches` is 0 when nothing is left; `caches` is what they may take as they lie in memory, with padding
    and room to grow, whatever the surplus. `features` of images are kept for later at most: what they take is part of
    the surplus."""

    capacity: Capacity
    weights: int
    buffer_cache: int
    prefill: int
    kv_caches: int
    caches: int
    features: int = 0


def capacity(bounds: Iterable[Bound], policy: MemoryPolicy) -> Capacity:
    """The tightest of `bounds`, of which there is at least one."""
    rooms = [Capacity(max(0, _room(one, policy) - one.base), one.name) for one in bounds]
    if policy.limit_bytes is not None:
        rooms.append(Capacity(policy.limit_bytes, "memory.limit_bytes"))
    return min(rooms, key=lambda room: room.size)


def _room(bound: Bound, policy: MemoryPolicy) -> int:
    planned = int(bound.limit * policy.share)
    # What others take includes the other workers: an equal part, unless there is less than that.
    return min(planned - bound.others, planned // bound.sharers)


def padding_allowed(free: int) -> int:
    """How many of the bytes that caches may still take one batch may have for padding and room to grow: others need
    some, and what is kept of sequences gives way only when it is seen that they do."""
    return max(0, free) // _PADDING_PART


def undisturbed(bounds: Iterable[Bound]) -> list[Bound]:
    """The same, if others took nothing: what may be had again at best."""
    return [replace(one, others=0) for one in bounds]


def plan(
    room: Capacity,
    policy: MemoryPolicy,
    *,
    weights: int,
    surplus: int = 0,
    kv_share: float = 1.0,
    squeezed: bool = False,
) -> MemoryPlan:
    """`kv_share` of what is left is for KV caches: less than 1 after a worker has died for want of memory. `squeezed`
    lends them most of the buffer cache."""
    buffer_cache, prefill = policy.buffer_cache_bytes, policy.prefill_bytes
    if buffer_cache is None:
        buffer_cache = min(_MAX_BUFFER_CACHE, room.size // _PART)
    if prefill is None:
        prefill = min(_MAX_PREFILL, room.size // _PART)
    # More than there is means no more than that, and is no number that MLX would take.
    buffer_cache, prefill = min(buffer_cache, room.size), min(prefill, room.size)
    features = min(_MAX_FEATURES, room.size // _PART)
    if squeezed:
        buffer_cache //= _SQUEEZED
        features //= _SQUEEZED
    rest = room.size - weights - buffer_cache - prefill
    caches = max(0, int(rest * kv_share))
    kv_caches = max(0, int((rest - surplus) * kv_share))
    if policy.kv_cache_bytes is not None:
        kv_caches = min(kv_caches, policy.kv_cache_bytes)
    return MemoryPlan(room, weights, buffer_cache, prefill, kv_caches, caches, features)


def require_room(room: Capacity, policy: MemoryPolicy, *, model: str, weights: int, loaded: int) -> None:
    """Refuse a model of which nothing has been read yet: its `weights` beside the `loaded` ones must leave memory to
    use it with. Raises `InsufficientMemory`."""
    after = plan(room, policy, weights=loaded + weights, squeezed=True)
    if after.kv_caches > 0:
        return
    available = max(0, room.size - loaded - after.buffer_cache - after.prefill)
    settings = {"memory.buffer_cache_bytes": policy.buffer_cache_bytes, "memory.prefill_bytes": policy.prefill_bytes}
    takers = [f"other models take {_readable(loaded)}"] if loaded else []
    takers += [f"{name} may take {_readable(given)}" for name, given in settings.items() if given is not None]
    others = f", of which {' and '.join(takers)}" if takers else ""
    raise InsufficientMemory(
        f"{model} takes {_readable(weights)} and some memory to work with, but only {_readable(available)} are left: "
        f"{room.limited_by} allows {_readable(room.size)} for models{others}",
        model=model,
        weights_bytes=weights,
        available_bytes=available,
        capacity_bytes=room.size,
        loaded_bytes=loaded,
        limited_by=room.limited_by,
    )


def _readable(size: int) -> str:
    for unit, name in ((_GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
