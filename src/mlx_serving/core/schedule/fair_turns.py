"""Whose step is next: fair turns between models, and fair shares between callers."""

from __future__ import annotations

from mlx_serving.core.schedule.scheduled_sequence import Caller, Lane

_SPARE_CALLERS = 64


class FairTurns:
    """Turns between models by device time over weight: start-time fair queueing (Goyal, Vin, Cheng 1996).

    The busy model with the least virtual time is next. A model that was idle starts at the virtual time of now: it
    has no claim on the past. A step is charged as expected when it is ordered, and corrected when it was measured.
    """

    def __init__(self) -> None:
        self.busy: list[Lane] = []
        self._clock_s = 0.0

    def enter(self, lane: Lane) -> None:
        lane.virtual_s = max(lane.virtual_s, self._clock_s)
        self.busy.append(lane)

    def leave(self, lane: Lane) -> None:
        self.busy.remove(lane)

    def next(self) -> Lane | None:
        busy = self.busy
        if not busy:
            return None
        lane = busy[0]
        for other in busy[1:]:
            if other.virtual_s < lane.virtual_s:
                lane = other
        self._clock_s = max(self._clock_s, lane.virtual_s)
        return lane

    def share(self, lane: Lane) -> float:
        """The part of the device that is this model's while the others stay busy."""
        if len(self.busy) == 1:
            return 1.0
        return lane.weight / sum(other.weight for other in self.busy)


class Callers:
    """Who was served how much: the virtual token counter (Sheng et al., "Fairness in Serving Large Language Models",
    OSDI 2024). A caller who comes with nothing under way is lifted to the least served of the others, so that being
    away earns no claim."""

    def __init__(self) -> None:
        self._by_name: dict[str, Caller] = {}
        self._live = 0

    def enter(self, name: str) -> Caller:
        caller = self._by_name.get(name)
        if caller is None:
            caller = self._by_name[name] = Caller(name)
        if caller.live == 0:
            caller.served = max(caller.served, self._least_served())
            self._live += 1
        caller.live += 1
        return caller

    def leave(self, caller: Caller) -> None:
        caller.live -= 1
        if caller.live == 0:
            self._live -= 1
            if len(self._by_name) > 2 * self._live + _SPARE_CALLERS:
                self._forget_settled()

    def _least_served(self) -> int:
        return min((caller.served for caller in self._by_name.values() if caller.live), default=0)

    def _forget_settled(self) -> None:
        # Whoever is behind the others would be lifted anyway, and without others there is nothing to be fair to.
        floor = self._least_served() if self._live else None
        self._by_name = {
            name: caller
            for name, caller in self._by_name.items()
            if caller.live or (floor is not None and caller.served > floor)
        }
