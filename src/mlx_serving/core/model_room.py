"""Which models give way when another one needs memory, and which have been idle for too long.

A model is the colder the less it was used of late: every use counts one, and counts half as much after each
`half_life_s`. The coldest give way first, those that nobody uses before those that somebody does. One in use is not
taken away from its users: it is drained, which means that it takes nothing new until they are done. A pinned model
stays. Nobody gives way in vain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_serving.core.bounds import at_least, greater_than


@dataclass(frozen=True, slots=True)
class RoomPolicy:
    """`drain_timeout_s` is how long a model that is in use may be waited for; then it stays, and who wanted its memory
    is refused. `keep_alive_s` is how long models may be idle of which nothing else is said; None: as long as nobody
    needs the memory. A negative time is for ever."""

    half_life_s: float = 600.0
    drain_timeout_s: float = 30.0
    keep_alive_s: float | None = None

    def __post_init__(self) -> None:
        greater_than("half_life_s", self.half_life_s, 0)
        at_least("drain_timeout_s", self.drain_timeout_s, 0)


@dataclass(frozen=True, slots=True)
class Use:
    """How much something was used, as of the monotonic time `at`, in seconds."""

    count: float = 0.0
    at: float = 0.0

    def again(self, now: float, half_life_s: float) -> Use:
        """Used once more."""
        return Use(self.count * 2 ** (-max(0.0, now - self.at) / half_life_s) + 1, now)

    def warmth(self, half_life_s: float) -> float:
        """The order of this is the order of the counts at any one time: their logarithms, of base 2, at time 0."""
        return math.log2(self.count) + self.at / half_life_s if self.count > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in the worker. `idle_since` is None while it is in use; `keep_alive_s` is how long it may be idle, None
    as the policy says, negative for ever. Its weights take `size` bytes, and `shared_size` bytes that it `shares` with
    all who give the same name to them."""

    name: str
    size: int
    use: Use = Use()
    idle_since: float | None = None
    pinned: bool = False
    keep_alive_s: float | None = None
    shares: str | None = None
    shared_size: int = 0


def give_way(
    needed: int, residents: Iterable[Resident], policy: RoomPolicy, *, may_drain: bool = True
) -> Sequence[str] | None:
    """The names of those whose going frees `needed` bytes, coldest first; None if there is no such place. Without
    `may_drain` only idle ones are asked."""
    everybody = list(residents)
    able = [one for one in everybody if not one.pinned and (may_drain or one.idle_since is not None)]
    return _fewest(needed, able, everybody, policy)


def give_way_to_caches(needed: int, residents: Iterable[Resident], policy: RoomPolicy) -> Sequence[str] | None:
    """The same for what a request wants to remember while it runs: nobody in use is asked, nor one that may be idle for
    ever."""
    everybody = list(residents)
    able = [one for one in everybody if not (one.pinned or one.idle_since is None or _stays(one, policy))]
    return _fewest(needed, able, everybody, policy)


def _fewest(
    needed: int, able: Sequence[Resident], everybody: Sequence[Resident], policy: RoomPolicy
) -> Sequence[str] | None:
    chosen: list[Resident] = []
    for one in sorted(able, key=lambda one: (one.idle_since is None, one.use.warmth(policy.half_life_s))):
        if _freed(chosen, everybody) >= needed:
            break
        chosen.append(one)
    if _freed(chosen, everybody) < needed:
        return None
    for one in reversed(chosen):  # a large one at the end may have made others needless
        rest = [other for other in chosen if other is not one]
        if _freed(rest, everybody) >= needed:
            chosen = rest
    return [one.name for one in chosen]


def _freed(going: Sequence[Resident], everybody: Sequence[Resident]) -> int:
    """What comes free when these go: what models share goes with the last one that has it."""
    staying = {one.shares for one in everybody if one not in going}
    shared = {one.shares: one.shared_size for one in going if one.shares is not None and one.shares not in staying}
    return sum(one.size for one in going) + sum(shared.values())


def overdue(residents: Iterable[Resident], policy: RoomPolicy, now: float) -> Sequence[str]:
    """Those that have been idle for as long as they may be."""
    return [one.name for one in residents if (due := _due(one, policy)) is not None and due <= now]


def next_due(residents: Iterable[Resident], policy: RoomPolicy) -> float | None:
    """When the next one will have been idle for too long, in monotonic seconds, if nobody uses it."""
    return min((due for one in residents if (due := _due(one, policy)) is not None), default=None)


def _due(one: Resident, policy: RoomPolicy) -> float | None:
    keep_alive_s = policy.keep_alive_s if one.keep_alive_s is None else one.keep_alive_s
    if one.pinned or one.idle_since is None or keep_alive_s is None or keep_alive_s < 0:
        return None
    return one.idle_since + keep_alive_s


def _stays(one: Resident, policy: RoomPolicy) -> bool:
    keep_alive_s = policy.keep_alive_s if one.keep_alive_s is None else one.keep_alive_s
    return keep_alive_s is not None and keep_alive_s < 0
