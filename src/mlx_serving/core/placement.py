"""Which of several workers serves a request, and where a model is loaded once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from mlx_serving.core.bounds import at_least


class Holding(StrEnum):
    """What a worker has of a model. A worker that is `LEAVING` it, or has `FAILED` to load it, loads it anew."""

    READY = "ready"
    LOADING = "loading"
    ABSENT = "absent"
    LEAVING = "leaving"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as a request sees it: `ready` while its process answers, `given_up` when it will not come back by
    itself, `reserved` when it takes no requests of this kind for a while; the streams and models it has, and what it
    has of the model in question. `alone` is where that would have to do without another one that goes with it."""

    ready: bool
    given_up: bool
    reserved: bool
    streams: int
    models: int
    holding: Holding
    alone: bool = False


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """A model gets another worker when its streams in one are `replicate_above` more than all that the other has. What
    goes with it is worth as many streams."""

    replicate_above: int = 4

    def __post_init__(self) -> None:
        at_least("replicate_above", self.replicate_above, 1)


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of the worker that serves; and of the one that is to load the model too, for those who come later."""

    worker: int
    replica: int | None = None


def place(views: Sequence[WorkerView], policy: PlacementPolicy) -> Placement:
    """Choose among `views`, of which there is at least one.

    Who has the model goes before who is loading it, and that before who would have to; who cannot work now comes after
    all who can. Among equals the one with the fewest streams serves, then the one with the fewest models; where what
    goes with the model would have to be loaded, that counts like some streams.
    """

    def order(number: int) -> tuple[int, int, int, int]:
        view = views[number]
        streams, models = _load(view)
        return _rank(view), streams + policy.replicate_above * view.alone, models, number

    chosen = min(range(len(views)), key=order)
    return Placement(chosen, _replica(views, chosen, policy))


def deal(models: Sequence[str], workers: int) -> list[tuple[int, str]]:
    """Where models are loaded to begin with, as (worker, model): each in one worker, and none without a model."""
    rounds = max(workers, len(models)) if models else 0
    return [(number % workers, models[number % len(models)]) for number in range(rounds)]


def _replica(views: Sequence[WorkerView], chosen: int, policy: PlacementPolicy) -> int | None:
    if not _works(views[chosen]) or views[chosen].holding is not Holding.READY:
        return None
    if any(_works(view) and view.holding is Holding.LOADING for view in views):
        return None
    most = views[chosen].streams - policy.replicate_above
    free = [
        number
        for number, view in enumerate(views)
        if _works(view) and view.holding is Holding.ABSENT and view.streams <= most
    ]
    return min(free, key=lambda number: (_load(views[number]), number), default=None)


def _works(view: WorkerView) -> bool:
    return view.ready and not view.reserved and not view.given_up


def _load(view: WorkerView) -> tuple[int, int]:
    return view.streams, view.models


def _rank(view: WorkerView) -> int:
    if view.given_up:
        return 5
    if not _works(view):
        return 3
    match view.holding:
        case Holding.READY:
            return 0
        case Holding.LOADING:
            return 1
        case Holding.ABSENT | Holding.LEAVING:
            return 2
        case Holding.FAILED:
            return 4
        case _:
            assert_never(view.holding)
