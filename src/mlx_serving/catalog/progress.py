"""How far the preparation of a model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Stage: TypeAlias = Literal["reading", "waiting", "downloading", "converting", "verifying"]
"""`reading`: the source is hashed. `waiting`: another process prepares the same model. `verifying`: what is there is
compared with what it should be."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes of `item` (a file or a repository). A `total` of 0 means that it is not known yet."""

    stage: Stage
    done: int
    total: int
    item: str


OnProgress: TypeAlias = Callable[[Progress], None]
"""Called often, also from other threads than the caller's. What it raises stops the work and reaches the caller."""
